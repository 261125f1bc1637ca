"""Recipes by name. A recipe is a pure function from a graph to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fanin import tables
from fanin.errors import RecipeError, compose, nearest
from fanin.graph import Graph
from fanin.plans import Plan

RecipeFunction = Callable[[Graph], Plan]
Recipe = str | RecipeFunction


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered recipe: its function, one line about it, where it comes from and, if published, its formula."""

    name: str
    function: RecipeFunction
    summary: str
    sources: tuple[str, ...]
    formula: str = ""


REGISTRY: dict[str, Entry] = {}
ALIASES = {"glorot": "xavier", "kaiming": "he", "zeros": "zero", "default": "torch"}


def register(name: str, *, sources: tuple[str, ...] = ()) -> Callable[[RecipeFunction], RecipeFunction]:
    """Make a recipe known by name; the first line of its docstring is its summary."""

    def enter(function: RecipeFunction) -> RecipeFunction:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        REGISTRY[name] = Entry(name, function, summary, sources)
        return function

    return enter


def recipe_named(name: str) -> RecipeFunction:
    """The recipe with this name or alias.

    Raises:
        RecipeError: no recipe has it; the message names the nearest.
    """
    entry = REGISTRY.get(ALIASES.get(name, name))
    if entry is None:
        known = [*REGISTRY, *ALIASES]
        raise RecipeError(compose(f"recipe {name!r}", "a registered recipe or a function", nearest(name, known)))
    return entry.function


def resolve(recipe: Recipe) -> tuple[str, RecipeFunction]:
    """The name and function of a recipe that is given by either."""
    other: object = recipe
    if isinstance(recipe, str):
        return ALIASES.get(recipe, recipe), recipe_named(recipe)
    if callable(other):
        return getattr(recipe, "__name__", "custom"), recipe
    if isinstance(other, Plan):
        given, instead = f"a plan of {tables.counted(len(other), 'row')} for a recipe", "fanin.apply(plan, model)"
    else:
        given, instead = f"recipe {recipe!r}", 'recipe="auto"'
    raise RecipeError(compose(given, "a name, or a function from a graph to a plan", instead=instead))
