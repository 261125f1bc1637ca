"""A bracketed root finder, all that the fixed points need."""

from __future__ import annotations

from collections.abc import Callable


def find_root(function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-14) -> float:
    """A root between two points of opposite sign, by the Illinois variant of the false position.

    >>> round(find_root(lambda x: x * x - 2, 1.0, 2.0), 12)
    1.414213562373
    """
    at_low, at_high = function(low), function(high)
    for _ in range(200):
        if at_low == 0.0 or at_high == 0.0 or abs(high - low) <= tolerance * max(abs(low), abs(high)):
            break
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        if not min(low, high) < middle < max(low, high):
            middle = 0.5 * (low + high)
        value = function(middle)
        if value * at_high < 0.0:
            low, at_low = high, at_high
        else:
            at_low *= 0.5  # keeps the stale end from slowing the other
        high, at_high = middle, value
        if value == 0.0:
            return middle
    return low if abs(at_low) < abs(at_high) else high
