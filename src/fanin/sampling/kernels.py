"""The kernels that fill memory: runs of elements, drawn in blocks that fit the innermost cache.

First the words of a block, then its values, computed where they belong. Philox runs in 64-bit lanes. Their high halves
may hold rubbish: the processor's 32 × 32 → 64 multiplication ignores them, so nothing is packed or unpacked between
rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fanin.sampling import philox
from fanin.sampling.instructions import generic, kernel, like, pattern_of
from fanin.sampling.variates import draw_values

GROUP = philox.GROUP
COUNTERS = np.uint64(philox.COUNTERS)
DIRECT = 16
"""Whole groups of one run, from which on they are drawn by themselves, where they belong."""
BLOCK = 64
"""Groups in a block: 4096 words and as many values are 32 KiB in single precision."""
SHORT_BLOCK = 32
"""The same for a law whose values cost less than their words: memory then takes short bursts, while words are drawn."""

ROUNDS = philox.ROUNDS
MULTIPLIER_0, MULTIPLIER_1 = (np.uint64(multiplier) for multiplier in philox.MULTIPLIERS)
WEYL_0, WEYL_1 = (np.uint64(step) for step in philox.WEYL)
MASK = np.uint64(philox.MASK)
WORD = np.uint64(32)


@kernel
def fill_runs(out: Any, starts: Any, length: Any, stream: Any, numbers: Any, scratch: Any) -> None:
    """Write runs of consecutive elements of the global tensor, one behind the other.

    Args:
        out: float32, float64, or uint16 for the bit patterns of bfloat16; len(starts) · length elements.
        starts: int64, the flat index in the global tensor at which each run starts.
        length: of each run.
        stream: uint64, the two key words and the third and fourth counter word.
        numbers: the law; for each kind another kernel is compiled.
        scratch: the words of a block of groups, and as many values.
    """
    words, values = scratch
    block = len(words) // GROUP
    line, groups, sources, sizes, places = np.empty((5, block), np.int64)
    at, pending, spans = 0, 0, 0
    for run in range(len(starts)):
        position, end = starts[run], starts[run] + length
        while position < end:
            skip = position % GROUP
            whole = (end - position - (GROUP - skip) % GROUP) // GROUP
            if skip == 0 and whole >= DIRECT:
                whole = min(whole, block)
                size = whole * GROUP
                for g in range(whole):
                    line[g] = position // GROUP + g
                target = block_target(out, values, at, size)
                draw_words(words, line[:whole], stream)
                draw_values(words, target, numbers)
                deliver(out, at, target)
            else:
                touched = 1 if whole >= DIRECT else min((skip + end - position + GROUP - 1) // GROUP, block - pending)
                size = min(touched * GROUP - skip, end - position)
                for g in range(touched):
                    groups[pending + g] = position // GROUP + g
                sources[spans], sizes[spans], places[spans] = pending * GROUP + skip, size, at
                pending, spans = pending + touched, spans + 1
            position += size
            at += size
            if pending == block or (pending > 0 and position == end and run == len(starts) - 1):
                draw_words(words, groups[:pending], stream)
                draw_values(words, values[: pending * GROUP], numbers)
                for span in range(spans):
                    copy(out, places[span], values, sources[span], sizes[span])
                pending, spans = 0, 0


def block_target(out: Any, values: Any, at: Any, size: Any) -> Any:
    """Return where a block's values are computed: in the output, if they are of its type."""
    raise NotImplementedError


@generic(block_target)
def _block_target(out: Any, values: Any, at: Any, size: Any) -> Any:
    def direct(out: Any, values: Any, at: Any, size: Any) -> Any:
        return out[at : at + size]

    def staged(out: Any, values: Any, at: Any, size: Any) -> Any:
        return values[:size]

    return direct if out.dtype == values.dtype else staged


def deliver(out: Any, at: Any, target: Any) -> None:
    """Round a block's values to the output, unless they were computed there."""
    raise NotImplementedError


@generic(deliver)
def _deliver(out: Any, at: Any, target: Any) -> Any:
    def nothing(out: Any, at: Any, target: Any) -> None:
        return None

    def convert(out: Any, at: Any, target: Any) -> None:
        copy(out, at, target, 0, len(target))

    return nothing if out.dtype == target.dtype else convert


@kernel
def copy(out: Any, at: Any, values: Any, begin: Any, size: Any) -> None:
    """Round some values to the output. Slices, unlike indices, are known not to count from the end."""
    source, here = values[begin : begin + size], out[at : at + size]
    for i in range(size):
        here[i] = rounded(out, source[i])


def rounded(out: Any, value: Any) -> Any:
    """Return a value as an element of the output."""
    raise NotImplementedError


@generic(rounded)
def _rounded(out: Any, value: Any) -> Any:
    def same(out: Any, value: Any) -> Any:
        return value

    def bfloat16(out: Any, value: Any) -> Any:
        pattern = like(np.uint32(0), pattern_of(value))
        # Half a unit less one, plus the last bit that stays: a tie goes to the even neighbour.
        even = like(pattern, like(pattern, pattern >> 16) & 1)
        return like(pattern, like(pattern, pattern + like(pattern, even + 0x7FFF)) >> 16)

    return same if out.dtype == value else bfloat16


def draw_words(words: Any, groups: Any, stream: Any) -> None:
    """Write the words of some groups: 32 bits each, or the leading 53 of 64."""
    raise NotImplementedError


@generic(draw_words)
def _draw_words(words: Any, groups: Any, stream: Any) -> Any:
    def single(words: Any, groups: Any, stream: Any) -> None:
        philox_groups(words, groups, stream[0], stream[1], stream[2], stream[3])

    def double(words: Any, groups: Any, stream: Any) -> None:
        low = np.empty(len(groups) * GROUP, np.uint32)
        philox_groups(low, groups, stream[0], stream[1], stream[2] + np.uint64(1), stream[3])
        philox_groups(words, groups, stream[0], stream[1], stream[2], stream[3])
        for i in range(len(low)):
            words[i] = (words[i] << np.uint64(21)) | np.uint64(low[i] >> np.uint32(11))

    return single if words.dtype.bitwidth == 32 else double


@kernel
def philox_groups(words: Any, groups: Any, k0: Any, k1: Any, x2_start: Any, x3_start: Any) -> None:
    """Philox4x32-10 of the counters of some groups; only the low halves of the 64-bit lanes mean anything."""
    for g in range(len(groups)):
        first = np.uint64(groups[g]) * COUNTERS
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
