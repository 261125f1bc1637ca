"""Words to values, in kernels that numba compiles: bit for bit those of `device.py`, many times faster.

One text serves both precisions: words are uint32 or uint64, and constants take the width of what they meet.

- numba widens 32-bit integers to 64 bits at each operation, which halves the width of the vectors. `like` narrows
  each result, and LLVM then computes in 32 bits.
- Nothing is contracted or reordered: no `fastmath`, and LLVM fuses a product and a sum only where told to.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fanin.sampling.instructions import (
    constant,
    floating,
    generic,
    inlined,
    like,
    number_from,
    pattern_of,
    polynomial,
    signed,
)
from fanin.sampling.philox import GROUP

HALF = GROUP // 2


class UniformNumbers(NamedTuple):
    """`UniformConstants`, each in the precision that computes."""

    low: np.floating[Any]
    scale: np.floating[Any]
    top: np.floating[Any]


class NormalNumbers(NamedTuple):
    """`NormalConstants`, each in the precision that computes."""

    mean: np.floating[Any]
    std: np.floating[Any]


class TruncatedNumbers(NamedTuple):
    """`TruncatedConstants`, each in the precision that computes, and `turn` as a word."""

    mean: np.floating[Any]
    std: np.floating[Any]
    low: np.floating[Any]
    high: np.floating[Any]
    turn: np.unsignedinteger[Any]
    below: np.floating[Any]
    above: np.floating[Any]
    step: np.floating[Any]
    side: np.floating[Any]


class MiddleNumbers(TruncatedNumbers):
    """The same, of a law whose cuts lie within three standard deviations."""


Numbers: TypeAlias = UniformNumbers | NormalNumbers | TruncatedNumbers


def draw_values(words: Any, values: Any, numbers: Any) -> None:
    """Turn words into values of a law."""
    raise NotImplementedError


@generic(draw_values)
def _draw_values(words: Any, values: Any, numbers: Any) -> Any:
    return _DRAW[numbers.instance_class]


def _uniform(words: Any, values: Any, numbers: Any) -> None:
    """low + scale · u, at most top."""
    low, scale, top = numbers.low, numbers.scale, numbers.top
    for i in range(len(values)):
        unit = floating(like(words[i], words[i] >> constant(words[i], "spare"))) * constant(low, "unit")
        values[i] = min(unit * scale + low, top)


def _normal(words: Any, values: Any, numbers: Any) -> None:
    """mean + std · z: the first half of a group's words are radii, the second half angles."""
    mean, std = numbers.mean, numbers.std
    for g in range(len(values) // GROUP):
        for c in range(HALF):
            at = g * GROUP + c
            unit = floating(words[at]) * constant(mean, "step") + constant(mean, "half_step")
            radius = np.sqrt(logarithm(unit) * constant(mean, "-2"))
            sine, cosine = circle(words[at + HALF])
            values[at] = radius * cosine * std + mean
            values[at + HALF] = radius * sine * std + mean


def _middle(words: Any, values: Any, numbers: Any) -> None:
    """A truncated normal whose cuts lie within three standard deviations."""
    for i in range(len(values)):
        q = tail_probability(words[i], numbers)
        log = -logarithm(middle_argument(q))
        distance = middle_factor(q) * polynomial(log, "middle")
        values[i] = place(distance, words[i], numbers)


def _truncated(words: Any, values: Any, numbers: Any) -> None:
    """A truncated normal with any cuts."""
    for i in range(len(values)):
        q = tail_probability(words[i], numbers)
        tail = q < constant(q, "tail_start")
        log = -logarithm(q if tail else middle_argument(q))
        middle = middle_factor(q) * polynomial(log, "middle")
        root = np.sqrt(log)
        far = polynomial(root, "tail") / polynomial(root, "tail_below")
        values[i] = place(far if tail else middle, words[i], numbers)


@inlined
def tail_probability(word: Any, numbers: Any) -> Any:
    """The probability of what lies further out than the word's value, on its side of the mean."""
    under = word < numbers.turn
    count = floating(word if under else like(word, constant(word, "last") - word))
    return (count + constant(count, "0.5")) * numbers.step + (numbers.below if under else numbers.above)


@inlined
def middle_argument(q: Any) -> Any:
    """4q · (1 − q)."""
    return q * constant(q, "4") * (constant(q, "1") - q)


@inlined
def middle_factor(q: Any) -> Any:
    """1 − 2q."""
    return constant(q, "1") - q * constant(q, "2")


@inlined
def place(distance: Any, word: Any, numbers: Any) -> Any:
    """mean ± std · distance, between the cuts."""
    x = -distance if word < numbers.turn else distance * numbers.side
    return min(max(x * numbers.std + numbers.mean, numbers.low), numbers.high)


@inlined
def circle(word: Any) -> Any:
    """Sine and cosine of the word's share of a full turn."""
    turned = like(word, word + constant(word, "eighth"))
    quadrant = like(word, turned >> constant(word, "quadrant_shift"))
    inside = like(word, turned & constant(word, "inside"))
    eighth = signed(constant(word, "eighth"))
    offset = floating(like(eighth, signed(inside) - eighth))
    offset = offset * constant(offset, "quarter_step")
    square = offset * offset
    sine, cosine = offset * polynomial(square, "sine"), polynomial(square, "cosine")
    none, one, two = constant(word, "0"), constant(word, "1"), constant(word, "2")
    odd = like(word, quadrant & one) != none
    upright, flat = (cosine, sine) if odd else (sine, cosine)
    upright = -upright if like(word, quadrant & two) != none else upright
    flat = -flat if like(word, like(word, quadrant + one) & two) != none else flat
    return upright, flat


@inlined
def logarithm(x: Any) -> Any:
    """Log x for normal x > 0: x = m · 2ᵏ with √½ ≤ m < √2."""
    pattern = pattern_of(x)
    fraction = constant(pattern, "fraction")
    exponent = like(pattern, like(pattern, pattern - constant(pattern, "root_half")) >> fraction)
    m = number_from(like(pattern, pattern - like(pattern, exponent << fraction)))
    one = constant(x, "1")
    s = (m - one) / (m + one)
    return floating(exponent) * constant(x, "log_two") + s * polynomial(s * s, "logarithm")


_DRAW = {
    UniformNumbers: _uniform,
    NormalNumbers: _normal,
    MiddleNumbers: _middle,
    TruncatedNumbers: _truncated,
}
