"""Numbers and lists in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fanin import tables


def enumerate_words(words: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part) if words else ""


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None


def loss_text(value: float, chance: float) -> str:
    """A loss, to a fixed fraction of chance; ``∞`` for a run that diverged.

    >>> loss_text(0.0052854, 2.3026), loss_text(0.0052854, 0.01)
    ('0.0053', '0.005285')
    """
    if math.isinf(value):
        return "∞"
    decimals = 4 - math.floor(math.log10(chance)) if chance > 0 else 4
    return f"{value:.{max(decimals, 0)}f}" if value < 1e4 * chance else f"{value:.2g}"


def percent(value: float | None) -> str:
    """A share for a cell.

    >>> percent(0.9583), percent(None)
    ('95.8 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def scientific(value: float | None) -> str:
    """A ratio that may be far from 1: ``0.9``, ``2e-12``."""
    return "–" if value is None else tables.number(value, 1)
