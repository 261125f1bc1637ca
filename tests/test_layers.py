"""A module imports only from floors below its own, and the pure floors import no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "fanin"

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "connections",
        "errors",
        "fields",
        "files",
        "texts",
        "tables",
        "citations",
        "fans",
        "gains",
        "meanfield",
        "schemes",
    ),
    ("graph", "rows", "selection", "differences", "plans", "observations", "signals", "diagnoses", "race"),
    ("recipes", "findings"),
    (
        "progress",
        "sampling",
        "tracing",
        "sites",
        "matrices",
        "drawing",
        "matching",
        "populations",
        "ranges",
        "writability",
        "parametrized",
        "applying",
        "verification",
        "planning",
        "deferral",
        "memory",
        "sharding",
        "measuring",
        "diagnosing",
        "holding",
        "isometries",
        "calibration",
        "comparison",
        "models",
        "examples",
    ),
    (
        "reports",
        "integrations",
        "testing",
        "checking",
        "tasks",
        "guide",
        "commands",
        "cli",
        "__init__",
        "__main__",
    ),
)
"""From the ground up; modules of one floor may import each other."""

PURE = 3
"""How many floors, from the ground, know nothing of torch."""


def floor_of(module: str) -> int:
    for level, names in enumerate(FLOORS):
        if module in names:
            return level
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS and to the design")


def imports(path: Path) -> set[str]:
    """The absolute names that a file imports at run time; what only type checkers see is left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def modules() -> list[tuple[str, Path]]:
    """(the module's name on its floor, file) for every file of the package."""
    return [(path.relative_to(PACKAGE).with_suffix("").parts[0], path) for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value).rsplit("fanin/", 1)[-1])
def test_imports_point_downwards(module: str, path: Path) -> None:
    own = floor_of(module)
    for name in imports(path):
        if (
            name.startswith("fanin.")
            and (PACKAGE / name.split(".")[1]).exists() | (PACKAGE / f"{name.split('.')[1]}.py").exists()
        ):
            assert floor_of(name.split(".")[1]) <= own, f"{path.name} imports {name} from a floor above it"


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value).rsplit("fanin/", 1)[-1])
def test_pure_floors_know_no_torch(module: str, path: Path) -> None:
    if floor_of(module) < PURE:
        assert not {name for name in imports(path) if name.split(".")[0] == "torch"}


def test_reader_sees_imports_within_functions(tmp_path: Path) -> None:
    """The proof that the proof can fail: a hidden import is found."""
    file = tmp_path / "sly.py"
    file.write_text("def f():\n    import torch\n    from fanin import cli\n")
    assert {"torch", "fanin.cli"} <= imports(file)
