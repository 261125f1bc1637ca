"""The errors that fanin raises, and the one shape that their messages have.

Every message says what was given, what was needed, why, and what to write instead. A reader in a hurry finds the
line to write at the end.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FaninError(Exception):
    """The base of all errors that fanin raises on purpose."""


class SchemeError(FaninError, ValueError):
    """A scheme was built with arguments that it cannot have, or asked for what it cannot do."""


class PlanError(FaninError, ValueError):
    """A plan, or an edit of one, does not fit the model, its own rows or its file format."""


class RecipeError(FaninError, ValueError):
    """A recipe is unknown, or refuses a model that lacks what the recipe needs."""


class TraceError(FaninError, RuntimeError):
    """A model could not be traced and there is nothing to fall back to."""


class ApplyError(FaninError, RuntimeError):
    """A plan could not be written into a model; the model is as it was."""


class InputsError(FaninError, ValueError):
    """A model, its example inputs or its data could not be found or used."""


class MissingExtraError(FaninError, ImportError):
    """An optional package is needed that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            compose(
                given=f"the package {package!r} is not installed",
                needed=f"{package} for {purpose}",
                instead=f'pip install ".[{extra}]"  # in a clone of fanin',
            )
        )


def compose(given: str, needed: str, why: str = "", instead: str = "") -> str:
    """Join the four parts of a message: given, needed, why, and the line to write instead.

    >>> print(compose("std=-1", "a standard deviation of at least 0", instead="Normal(std=0.02)"))
    given: std=-1
    needed: a standard deviation of at least 0
    write instead: Normal(std=0.02)
    """
    parts = [f"given: {given}", f"needed: {needed}"]
    if why:
        parts.append(f"why: {why}")
    if instead:
        parts.append(f"write instead: {instead}")
    return "\n".join(parts)


def article(name: str) -> str:
    """A name with the article that it is read with.

    >>> article("Linear"), article("int")
    ('a Linear', 'an int')
    """
    return f"{'an' if name[:1].lower() in set('aeiou') else 'a'} {name}"


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names are nearest to a wrong one, or list some when none is near.

    >>> nearest("kaimin", ["kaiming", "xavier"])
    "did you mean 'kaiming'?"
    """
    options = sorted(set(known))
    close = difflib.get_close_matches(name, options, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(option) for option in close) + "?"
    shown = ", ".join(options[:12])
    more = f", … ({len(options) - 12} more)" if len(options) > 12 else ""
    return f"known: {shown}{more}"
