"""Axes of figures: from values to places, and which powers of ten are written beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALLEST = 300
"""The power of ten below which everything lies on the low end, as zeros do."""
TICKS = 6
"""At most so many stretches between the ticks of a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """An axis from its low end to its high end, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """How far up a value lies, from 0 to 1; values outside lie on the ends."""
        share = (self._place(value) - self._place(self.low)) / (self._place(self.high) - self._place(self.low))
        return min(max(share, 0.0), 1.0)

    def value(self, share: float) -> float:
        """The inverse of `share`."""
        place = self._place(self.low) + share * (self._place(self.high) - self._place(self.low))
        return float(10**place) if self.log else place

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The values to mark on a logarithmic axis, from its high end down, with their words."""
        low, high = round(math.log10(self.low)), round(math.log10(self.high))
        every = max(math.ceil((high - low) / TICKS), 1)
        return [(10.0**power, power_text(power)) for power in range(high, low - 1, -every)]

    def _place(self, value: float) -> float:
        if not self.log:
            return min(value, 1e300)
        return math.log10(max(value, 10.0**-SMALLEST))


def log_scale(values: Iterable[float]) -> Scale:
    """A logarithmic axis of whole powers of ten that holds all values; there must be one, and all be above 0.

    >>> log_scale([0.02, 3.0])
    Scale(low=0.01, high=10.0, log=True)
    """
    known = list(values)
    low = max(math.floor(math.log10(min(known))), -SMALLEST)
    high = math.ceil(math.log10(max(known)))
    return Scale(10.0**low, 10.0 ** max(high, low + 1), log=True)


def power_text(power: int) -> str:
    """A power of ten in words.

    >>> power_text(-12)
    '10⁻¹²'
    """
    return f"10{str(power).translate(SUPERSCRIPTS)}"
