"""Filling memory on a CPU: pieces of a region, shared out among threads that run compiled kernels.

Importing this module imports numba. A kernel is compiled when it is first called, and then kept in numba's cache.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fanin.sampling import kernels, philox, reflections, variates
from fanin.sampling.distributions import Normal, NormalConstants, RandomLaw, Uniform, UniformConstants, resolve
from fanin.sampling.polynomials import DOUBLE, SINGLE, Precision
from fanin.sampling.regions import Piece, Region
from fanin.sampling.threads import share

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""What the kernels write in place."""

_ALONE = 2**16
"""Elements that one thread draws sooner than others can be woken."""
_MOST = 2**19
"""Elements in a piece: enough to make the call cheap, few enough to share out evenly."""


def fill(
    flat: torch.Tensor, law: RandomLaw, key: int, within: Region, lane: int = philox.VALUES, part: int = 0
) -> None:
    """Write the values of a region into a flat CPU tensor of one of `DTYPES`; compare `device.fill`."""
    precision = DOUBLE if flat.dtype is torch.float64 else SINGLE
    numbers = _prepare(law, precision)
    block = kernels.SHORT_BLOCK if isinstance(law, Uniform) else kernels.BLOCK
    stream = _stream(key, lane, part)
    memory = _memory(flat)

    def draw(piece: Piece) -> None:
        out = memory[piece.at : piece.at + piece.size]
        kernels.fill_runs(out, piece.starts, piece.length, stream, numbers, _scratch(precision, block))

    most = min(max(flat.numel() // (4 * torch.get_num_threads()), _ALONE), _MOST)
    share(draw, within.pieces(most), helpers=flat.numel() > _ALONE)
    if not flat.is_inference():
        torch.autograd.graph.increment_version(flat)  # as any write in place; autograd has not seen this one


def fill_orthogonal(out: npt.NDArray[Any], key: int, part: int) -> None:
    """Write the tall matrix that `haar` defines into an array of float32 or float64 with any strides."""
    length, count = out.shape
    precision = DOUBLE if out.dtype == np.float64 else SINGLE
    firsts = range(0, count, reflections.BLOCK)
    ends = np.cumsum([0] + [reflections.padded(length - first) * reflections.BLOCK for first in firsts])
    vectors = np.empty(ends[-1], out.dtype)
    triangles = np.empty((len(firsts), reflections.BLOCK**2), out.dtype)
    signs = np.empty(count, out.dtype)
    stream, normal = _stream(key, philox.MATRIX, part), _prepare(Normal(0.0, 1.0), precision)

    def prepare(first: int) -> None:
        block, size = first // reflections.BLOCK, min(reflections.BLOCK, count - first)
        rows = np.empty((size, length - first), out.dtype)
        starts = np.arange(first, first + size, dtype=np.int64) * length + first
        kernels.fill_runs(rows.reshape(-1), starts, length - first, stream, normal, _scratch(precision))
        mine = vectors[ends[block] : ends[block + 1]]
        reflections.prepare_block(rows, mine, triangles[block], signs[first : first + size])

    def apply(first: int) -> None:
        size = min(reflections.PANEL, count - first)
        panel = np.zeros((reflections.padded(length), reflections.PANEL), out.dtype)
        np.fill_diagonal(panel[first:, :size], 1.0)
        reflections.apply_blocks(panel.reshape(-1), first, vectors, ends, triangles)
        np.multiply(panel[:length, :size], -signs[first : first + size], out=out[:, first : first + size])

    helpers = out.size > _ALONE
    share(prepare, firsts, helpers)
    share(apply, reversed(range(0, count, reflections.PANEL)), helpers)  # the last panels take longest


def _memory(flat: torch.Tensor) -> npt.NDArray[Any]:
    """See a tensor's memory as an array; bfloat16, which numpy lacks, as the bit patterns."""
    if flat.dtype is torch.bfloat16:
        return flat.detach().view(torch.uint16).numpy()
    return flat.detach().numpy()


def _stream(key: int, lane: int, part: int) -> npt.NDArray[np.uint64]:
    return np.array([*philox.key_words(key), philox.counter_word(lane, low=False), part], np.uint64)


def _scratch(precision: Precision, block: int = kernels.BLOCK) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    size = block * kernels.GROUP
    return np.empty(size, precision.word), np.empty(size, precision.scalar)


@functools.lru_cache(maxsize=1024)
def _prepare(law: RandomLaw, precision: Precision) -> variates.Numbers:
    """Give a law's constants the types that the kernels compute in."""
    constants = resolve(law, precision)
    real = precision.scalar
    if isinstance(constants, UniformConstants):
        return variates.UniformNumbers(real(constants.low), real(constants.scale), real(constants.top))
    if isinstance(constants, NormalConstants):
        return variates.NormalNumbers(real(constants.mean), real(constants.std))
    kind = variates.MiddleNumbers if constants.middle_only else variates.TruncatedNumbers
    fields = {name: real(getattr(constants, name)) for name in kind._fields if name != "turn"}
    return kind(turn=precision.word(constants.turn), **fields)
