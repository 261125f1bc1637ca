"""Filling a tensor, or a region of one, with the values of its name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch

from fanin.errors import SchemeError, compose
from fanin.sampling import device, philox
from fanin.sampling.distributions import Constant, Law, RandomLaw
from fanin.sampling.polynomials import DOUBLE, SINGLE, Precision
from fanin.sampling.regions import Region, region

_STAGE = 2**20
"""Elements drawn to a temporary before they are copied to a dtype or a layout that cannot be drawn in place."""


def fill_(
    tensor: torch.Tensor,
    law: Law,
    key: int,
    *,
    global_shape: Sequence[int] | None = None,
    offset: Sequence[int] | None = None,
    lane: int = philox.VALUES,
    part: int = 0,
) -> torch.Tensor:
    """Fill a tensor, in place, with a region of the values that a key and a law decide.

    An element's value depends on the key, the law and the element's flat index in the global tensor, in C order;
    neither on the region, nor on the strides, the device or the number of threads. bfloat16, float16 and float8
    tensors get the float32 values, rounded once; float64 tensors get values in double precision, which agree with the
    float32 ones to about that precision. A complex tensor takes its imaginary parts from a lane of their own, and each
    part has 1/√2 of the law's standard deviation.

    Args:
        tensor: floating-point or complex, with any strides, on any device but meta.
        law: `Constant`, `Uniform`, `Normal` or `TruncatedNormal`.
        key: the tensor's key, `philox.key(seed, name)`.
        global_shape: the shape of the tensor that `tensor` is a region of; its own shape by default.
        offset: the index of the region's first element in the global tensor; zeros by default.
        lane: the stream under the key; even, for a complex tensor's imaginary parts take the next.
        part: which of several tensors under one key and lane; 0 ≤ part < 2³².

    Returns:
        The same tensor.

    Raises:
        SchemeError: the region leaves the global tensor, or the tensor is on meta or of an integer dtype.

    >>> from fanin.sampling import Normal
    >>> whole = fill_(torch.empty(4, 6), Normal(0.0, 1.0), key=1)
    >>> shard = fill_(torch.empty(4, 2), Normal(0.0, 1.0), key=1, global_shape=(4, 6), offset=(0, 3))
    >>> torch.equal(shard, whole[:, 3:5])
    True
    """
    _require_values(tensor)
    whole = tensor.shape if global_shape is None else tuple(global_shape)
    begin = (0,) * len(whole) if offset is None else tuple(offset)
    with torch.no_grad():
        if tensor.is_complex():
            parts = torch.view_as_real(tensor)
            real, imaginary = law.parts()
            _fill_real(parts[..., 0], real, key, whole, begin, lane, part)
            _fill_real(parts[..., 1], imaginary, key, whole, begin, lane + 1, part)
        else:
            _fill_real(tensor, law, key, whole, begin, lane, part)
    return tensor


def _fill_real(
    tensor: torch.Tensor, law: Law, key: int, whole: Sequence[int], offset: Sequence[int], lane: int, part: int
) -> None:
    precision = DOUBLE if tensor.dtype is torch.float64 else SINGLE
    within = region(tensor.shape, whole, offset)
    if isinstance(law, Constant):
        tensor.fill_(precision.round(law.value))
        return
    kernels = compiled() if tensor.device.type == "cpu" else None
    if tensor.is_contiguous() and (kernels is None or tensor.dtype in kernels.DTYPES):
        _fill_flat(tensor, law, key, within, precision, lane, part)
        return
    for block, at in _blocks(tensor, tuple(offset)):
        stage = torch.empty(block.shape, dtype=_computed_in(precision), device=tensor.device)
        _fill_flat(stage, law, key, region(block.shape, whole, at), precision, lane, part)
        block.copy_(stage)


def _fill_flat(
    tensor: torch.Tensor, law: RandomLaw, key: int, within: Region, precision: Precision, lane: int, part: int
) -> None:
    kernels = compiled() if tensor.device.type == "cpu" else None
    if kernels is None:
        device.fill(tensor.view(-1), law, key, within, precision, lane, part)
    else:
        kernels.fill(tensor.view(-1), law, key, within, lane, part)


@functools.cache
def compiled() -> ModuleType | None:
    """Import the kernels when they are first needed; where numba is missing, warn once and do without."""
    try:
        from fanin.sampling import cpu
    except ImportError as error:
        warnings.warn(
            f"numba cannot be imported ({error}): values are drawn by torch operations, the same but many times slower",
            stacklevel=2,
        )
        return None
    return cpu


def _blocks(tensor: torch.Tensor, offset: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """Cut a tensor along its first axes into blocks that fit the stage; each comes with its offset."""
    if tensor.numel() <= _STAGE:
        yield tensor, offset
        return
    axis = next(axis for axis, size in enumerate(tensor.shape) if size > 1)
    step = max(_STAGE // (tensor.numel() // tensor.shape[axis]), 1)
    for begin in range(0, tensor.shape[axis], step):
        block = tensor.narrow(axis, begin, min(step, tensor.shape[axis] - begin))
        yield from _blocks(block, (*offset[:axis], offset[axis] + begin, *offset[axis + 1 :]))


def _computed_in(precision: Precision) -> torch.dtype:
    return torch.float64 if precision is DOUBLE else torch.float32


def _require_values(tensor: torch.Tensor) -> None:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        raise SchemeError(
            compose(
                given=f"a tensor of dtype {tensor.dtype} on {tensor.device}",
                needed="a floating-point or complex tensor that has memory",
                why="values are real numbers, written in place",
                instead="tensor = torch.empty_like(tensor, device='cpu') for a meta tensor",
            )
        )
