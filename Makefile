# The two commands of the README are `make demo` and `make test`; everything else is for those who change the code.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format bench audit clean help

help:
	@echo "make demo    install, then race seven initializations on handwritten digits"
	@echo "make test    install, then lint, type-check and run every test"
	@echo "make lint    ruff and mypy alone"
	@echo "make bench   the benchmarks behind the numbers in the docs (long)"
	@echo "make audit   diagnose the models of timm, torchvision and transformers (hours; can be stopped and continued)"

$(STAMP): pyproject.toml
	@echo "» creating $(VENV) and installing fanin with its development tools (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	@echo "» racing seven initializations on handwritten digits"
	@$(BIN)/fanin compare

lint: $(STAMP)
	@echo "» ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "» mypy"
	@$(BIN)/mypy

test: lint
	@echo "» pytest, on up to four cores"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@for script in $(filter-out benchmarks/audit.py,$(wildcard benchmarks/[a-z]*.py)); do echo "» $$script"; PYTHONPATH=tests $(BIN)/python $$script || exit 1; done

audit: $(STAMP)
	@nice $(BIN)/python benchmarks/audit.py --write

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
