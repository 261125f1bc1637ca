"""What the settings of published recipes may be, asked when a recipe is built."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

from fanin.errors import RecipeError, compose


def require_sizes(recipe: str, **settings: object) -> None:
    """Require settings that are the size of something: finite numbers of at least 0.

    Raises:
        RecipeError: one is none.
    """
    for key, value in settings.items():
        if not is_number(value) or value < 0:
            raise _refused(recipe, key, value, "a finite number of at least 0", "0.02")


def require_numbers(recipe: str, **settings: object) -> None:
    """Require settings that may be negative too: finite numbers.

    Raises:
        RecipeError: one is none.
    """
    for key, value in settings.items():
        if not is_number(value):
            raise _refused(recipe, key, value, "a finite number", "1.0")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a setting is a finite number."""
    return isinstance(value, int | float | Real) and type(value) is not bool and math.isfinite(value)


def _refused(recipe: str, key: str, value: object, needed: str, example: str) -> RecipeError:
    instead = f"fanin.recipes.{recipe}({key}={example})"
    return RecipeError(compose(f"{recipe}({key}={value!r})", needed, instead=instead))
