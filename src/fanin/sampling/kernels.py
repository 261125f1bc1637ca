"""The kernels that numba compiles: bit for bit the values of `device.py`, many times faster.

A kernel works through blocks that fit the innermost cache: first the words of a block, then its values, computed
where they belong. What makes it fast, and what to keep when it is changed:

- Philox runs in 64-bit lanes. Their high halves may hold rubbish: the processor's 32 × 32 → 64 multiplication ignores
  them, so nothing is packed or unpacked between rounds.
- numba widens 32-bit integers to 64 bits at each operation, which halves the width of the vectors. `like` narrows
  each result, and LLVM then computes in 32 bits.
- numba looks only at this file to see whether its cache is out of date: touch it after a change to `instructions.py` or
  `polynomials.py`.
- Nothing is contracted or reordered: no `fastmath`, and LLVM fuses a product and a sum only where told to.

"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fanin.sampling import philox
from fanin.sampling.instructions import (
    constant,
    floating,
    generic,
    inlined,
    kernel,
    like,
    number_from,
    pattern_of,
    polynomial,
    signed,
)

GROUP = philox.GROUP
HALF = GROUP // 2
COUNTERS = np.uint64(philox.COUNTERS)
BLOCK = 64
"""Groups in a block: 4096 words and as many values are 32 KiB in single precision."""

ROUNDS = philox.ROUNDS
MULTIPLIER_0, MULTIPLIER_1 = (np.uint64(multiplier) for multiplier in philox.MULTIPLIERS)
WEYL_0, WEYL_1 = (np.uint64(step) for step in philox.WEYL)
MASK = np.uint64(philox.MASK)
WORD = np.uint64(32)


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


@kernel
def fill_runs(out: Any, starts: Any, length: Any, stream: Any, numbers: Any, scratch: Any) -> None:
    """Write runs of consecutive elements of the global tensor, one behind the other.

    Args:
        out: float32, float64, or uint16 for the bit patterns of bfloat16; len(starts) · length elements.
        starts: int64, the flat index in the global tensor at which each run starts.
        length: of each run.
        stream: uint64, the two key words and the third and fourth counter word.
        numbers: the law; for each kind another kernel is compiled.
        scratch: BLOCK · GROUP words and as many values.
    """
    words, values = scratch
    at = 0
    for run in range(len(starts)):
        position, end = starts[run], starts[run] + length
        while position < end:
            skip = position % GROUP
            whole = skip == 0 and end - position >= GROUP
            groups = min((end - position) // GROUP, BLOCK) if whole else 1
            size = groups * GROUP if whole else min(GROUP - skip, end - position)
            draw_words(words, np.uint64(position // GROUP), groups, stream)
            target = values_target(out, values, at, groups, whole)
            draw_values(words, target, numbers)
            deliver(out, values, at, skip, size, whole)
            position += size
            at += size


def values_target(out: Any, values: Any, at: Any, groups: Any, whole: Any) -> Any:
    """Return where a block's values are computed: in the output, if they are of its type and fill whole groups."""
    raise NotImplementedError


@generic(values_target)
def _values_target(out: Any, values: Any, at: Any, groups: Any, whole: Any) -> Any:
    def direct(out: Any, values: Any, at: Any, groups: Any, whole: Any) -> Any:
        return out[at : at + groups * GROUP] if whole else values[: groups * GROUP]

    def staged(out: Any, values: Any, at: Any, groups: Any, whole: Any) -> Any:
        return values[: groups * GROUP]

    return direct if out.dtype == values.dtype else staged


def deliver(out: Any, values: Any, at: Any, skip: Any, size: Any, whole: Any) -> None:
    """Copy a block's values to the output, or round them to it, unless they were computed there."""
    raise NotImplementedError


@generic(deliver)
def _deliver(out: Any, values: Any, at: Any, skip: Any, size: Any, whole: Any) -> Any:
    def copy(out: Any, values: Any, at: Any, skip: Any, size: Any, whole: Any) -> None:
        if not whole:
            for i in range(size):  # assigning a slice would compile two seconds of error messages
                out[at + i] = values[skip + i]

    def round_to_bfloat16(out: Any, values: Any, at: Any, skip: Any, size: Any, whole: Any) -> None:
        source, target = values[skip : skip + size], out[at : at + size]
        for i in range(size):
            pattern = like(np.uint32(0), pattern_of(source[i]))
            # Half a unit less one, plus the last bit that stays: a tie goes to the even neighbour.
            even = like(pattern, like(pattern, pattern >> 16) & 1)
            target[i] = like(pattern, like(pattern, pattern + like(pattern, even + 0x7FFF)) >> 16)

    return copy if out.dtype == values.dtype else round_to_bfloat16


def draw_words(words: Any, group: Any, groups: Any, stream: Any) -> None:
    """Write the words of consecutive groups: 32 bits each, or the leading 53 of 64."""
    raise NotImplementedError


@generic(draw_words)
def _draw_words(words: Any, group: Any, groups: Any, stream: Any) -> Any:
    def single(words: Any, group: Any, groups: Any, stream: Any) -> None:
        philox_groups(words, group, groups, stream[0], stream[1], stream[2], stream[3])

    def double(words: Any, group: Any, groups: Any, stream: Any) -> None:
        low = np.empty(groups * GROUP, np.uint32)
        philox_groups(low, group, groups, stream[0], stream[1], stream[2] + np.uint64(1), stream[3])
        philox_groups(words, group, groups, stream[0], stream[1], stream[2], stream[3])
        for i in range(groups * GROUP):
            words[i] = (words[i] << np.uint64(21)) | np.uint64(low[i] >> np.uint32(11))

    return single if words.dtype.bitwidth == 32 else double


@kernel
def philox_groups(words: Any, group: Any, groups: Any, k0: Any, k1: Any, x2_start: Any, x3_start: Any) -> None:
    """Philox4x32-10 of the counters of consecutive groups; only the low halves of the 64-bit lanes mean anything."""
    for g in range(groups):
        first = (group + np.uint64(g)) * COUNTERS
        for c in range(philox.COUNTERS):
            x0, x2, x3 = first + np.uint64(c), x2_start, x3_start
            x1 = x0 >> WORD
            key0, key1 = k0, k1
            for _ in range(ROUNDS):
                product0, product1 = (x0 & MASK) * MULTIPLIER_0, (x2 & MASK) * MULTIPLIER_1
                x0, x1 = (product1 >> WORD) ^ x1 ^ key0, product1
                x2, x3 = (product0 >> WORD) ^ x3 ^ key1, product0
                key0, key1 = key0 + WEYL_0, key1 + WEYL_1
            at = g * GROUP + c
            words[at] = x0 & MASK
            words[at + 16] = x1 & MASK
            words[at + 32] = x2 & MASK
            words[at + 48] = x3 & MASK


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
