"""The public contract: what `fanin` exports, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import fanin

LAZY = ("numba", "altair", "vl_convert", "jinja2", "timm", "torchvision", "transformers", "typer", "sklearn", "scipy")


def loaded_after(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


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
    brought = loaded_after("import fanin") - loaded
    assert not brought & set(LAZY)


def test_watching_imports_can_fail() -> None:
    assert "jinja2" in loaded_after("import jinja2")


def test_architecture_words_are_accepted() -> None:
    assert fanin.recipes.recipe_named("glorot") is fanin.recipes.recipe_named("xavier")
    assert fanin.recipes.recipe_named("kaiming") is fanin.recipes.recipe_named("he")
