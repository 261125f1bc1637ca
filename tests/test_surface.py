"""The public contract: what `fanin` exports, and what importing it costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fanin

LAZY = ("numba", "altair", "vl_convert", "jinja2", "timm", "torchvision", "transformers", "typer", "sklearn", "scipy")


def loaded_after(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def help_of(*words: str) -> str:
    """The statements that print a command's help."""
    return (
        f"import sys; sys.argv = {['fanin', *words, '--help']!r}\n"
        "from fanin.cli import main\n"
        "try: main()\n"
        "except SystemExit as leaving: assert not leaving.code"
    )


def test_all_is_sorted_and_complete() -> None:
    assert list(fanin.__all__) == sorted(fanin.__all__)
    for name in fanin.__all__:
        assert hasattr(fanin, name)


def test_every_public_name_is_documented() -> None:
    for name in fanin.__all__:
        thing = getattr(fanin, name)
        assert inspect.getdoc(thing), f"fanin.{name} has no docstring"
    for name in fanin.schemes.__all__:
        thing = getattr(fanin.schemes, name)
        assert name == "REGISTRY" or inspect.getdoc(thing), f"fanin.schemes.{name} has no docstring"


def test_import_leaves_the_extras_alone() -> None:
    loaded = loaded_after("import torch") | {"fanin"}
    brought = loaded_after("from fanin import *") - loaded
    assert "fanin" in loaded
    assert not brought & set(LAZY)


def test_import_alone_needs_neither_torch_nor_numpy() -> None:
    assert not loaded_after("import fanin") & {"torch", "numpy", *LAZY}


@pytest.mark.parametrize("words", [(), ("check",), ("plan",), ("compare",)])
def test_help_needs_no_torch(words: tuple[str, ...]) -> None:
    assert not loaded_after(help_of(*words)) & {"torch", "numpy"}


def test_watching_imports_can_fail() -> None:
    assert "jinja2" in loaded_after("import jinja2")
    assert {"torch", "numpy"} <= loaded_after("import fanin; fanin.trace")


def test_what_type_checkers_read_is_what_runs() -> None:
    """The imports that only type checkers see name every public thing, at the home it is loaded from."""
    tree = ast.parse(Path(str(fanin.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(homes) == set(fanin.__all__)
    assert set(fanin.__all__) <= set(dir(fanin))
    for name, home in homes.items():
        if home != f"fanin.{name}":
            module = home.removeprefix("fanin.").removesuffix(f".{name}")
            assert fanin._HOMES[name] == module
    assert set(fanin._HOMES) == {name for name, home in homes.items() if home != f"fanin.{name}"}


@pytest.mark.parametrize(
    "statement",
    [
        "import fanin.plans as p, torch; m = torch.nn.Linear(2, 2); p.Plan.from_json(PLAN).check(m)",
        "from fanin.race import comparison; comparison.connections.establish('race'); assert comparison._writers",
        "from fanin.diagnoses import connections; connections.establish('diagnoses')",
    ],
)
def test_records_find_what_serves_them(statement: str) -> None:
    """Also when nothing was imported but the module of the record."""
    import torch

    text = fanin.plan(torch.nn.Linear(2, 2), recipe="he").to_json()
    assert "fanin" in loaded_after(f"PLAN = {text!r}\n{statement}")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'initialise'"):
        _ = fanin.initialise
    assert not hasattr(fanin, "__wrapped__")


def test_architecture_words_are_accepted() -> None:
    assert fanin.recipes.recipe_named("glorot") is fanin.recipes.recipe_named("xavier")
    assert fanin.recipes.recipe_named("kaiming") is fanin.recipes.recipe_named("he")
