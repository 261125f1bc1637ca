"""From a scheme to values: any region of any weight, from its seed and name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from fanin import sampling
from fanin.errors import SchemeError, compose
from fanin.fans import ELEMENTWISE, Axes, Block, Shape
from fanin.schemes import (
    Constant,
    DeltaOrthogonal,
    Identity,
    Keep,
    Normal,
    Orthogonal,
    Packed,
    ScaledOrthogonal,
    Scheme,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from fanin.schemes.base import Matrix, matrix_of
from fanin.schemes.orthogonal import require_odd_kernel


class Site(NamedTuple):
    """Where a scheme is applied: one whole parameter, wherever its pieces lie."""

    shape: Shape
    axes: Axes
    name: str
    """The name that, with the seed, decides the values."""
    padding_row: int | None = None


def fill_(
    tensor: torch.Tensor, scheme: Scheme, *, seed: int = 0, name: str = "w", axes: Axes | None = None
) -> torch.Tensor:
    """Fill one tensor in place, and return it.

    Args:
        tensor: any floating-point or complex tensor; also a view with any strides.
        scheme: the rule.
        seed: with the name it decides the values.
        name: the tensor's name; two tensors of one name and seed get the same values.
        axes: the parts that the tensor's axes play; ``(out, in, kernel…)`` when omitted, and element-wise for fewer
            than two axes.

    Raises:
        SchemeError: the scheme does not fit the axes.

    >>> from fanin.schemes import he_normal
    >>> weight = fill_(torch.empty(512, 256), he_normal(), seed=0, name="fc.weight")
    >>> round(weight.std().item(), 2)
    0.09
    """
    chosen = axes if axes is not None else Axes() if tensor.ndim > 1 else ELEMENTWISE
    fill_region(tensor, scheme, Site(tuple(tensor.shape), chosen, name), seed=seed)
    return tensor


def fill_region(
    tensor: torch.Tensor, scheme: Scheme, site: Site, *, seed: int = 0, offset: Sequence[int] | None = None
) -> None:
    """Write one rectangular region of a parameter's values into a tensor.

    Args:
        tensor: receives the values; any strides, dtype and device.
        scheme: of the whole parameter.
        site: the whole parameter.
        seed: with the site's name it decides every value.
        offset: where the region starts in the whole; the origin when omitted.
    """
    start = tuple(offset) if offset is not None else (0,) * len(site.shape)
    if isinstance(scheme, Keep) or not tensor.numel():
        return
    with torch.no_grad():
        if not is_elementwise(scheme):
            whole = draw_matrix(scheme, site, seed=seed, dtype=_working_dtype(tensor.dtype))
            tensor.copy_(whole[_window(start, tensor.shape)])
        else:
            _fill_elementwise(tensor, scheme, site, seed, start)
        _zero_padding(tensor, site, start)


def is_elementwise(scheme: Scheme) -> bool:
    """Whether any slice of what the scheme draws can be drawn without the rest."""
    return scheme.elementwise_parts if isinstance(scheme, Packed) else scheme.elementwise


def _fill_elementwise(tensor: torch.Tensor, scheme: Scheme, site: Site, seed: int, start: Shape) -> None:
    key = sampling.key(seed, site.name)
    if not site.axes.blocks:
        law = law_of(scheme.resolve(site.axes.fans(site.shape)))
        sampling.fill_(tensor, law, key, global_shape=site.shape, offset=start)
        return
    fans = site.axes.block_fans(site.shape)
    laws = {block.name: law_of(scheme.part(block.name).resolve(fans[block.name])) for block in site.axes.blocks}
    if len(set(laws.values())) == 1:
        sampling.fill_(tensor, next(iter(laws.values())), key, global_shape=site.shape, offset=start)
        return
    (axis,) = site.axes.out_axis
    for block in site.axes.blocks:
        for rows in _runs(block, start[axis], tensor.shape[axis]):
            piece = tensor.narrow(axis, rows.start - start[axis], len(rows))
            corner = (*start[:axis], rows.start, *start[axis + 1 :])
            sampling.fill_(piece, laws[block.name], key, global_shape=site.shape, offset=corner)


def _runs(block: Block, first: int, length: int) -> Iterator[range]:
    """The contiguous runs of a block's rows within ``[first, first + length)``."""
    for part in block.rows:
        pieces = [part] if part.step == 1 else [range(row, row + 1) for row in part]
        for piece in pieces:
            low, high = max(piece.start, first), min(piece.stop, first + length)
            if low < high:
                yield range(low, high)


def law_of(scheme: Scheme) -> sampling.Law:
    """The sampling law of an element-wise scheme that no longer depends on fans.

    Raises:
        SchemeError: the scheme is not one of constant, normal, uniform and truncated normal.
    """
    if isinstance(scheme, Constant):
        return sampling.Constant(scheme.value)
    if isinstance(scheme, Normal):
        return sampling.Normal(scheme.mean, scheme.std) if scheme.std else sampling.Constant(scheme.mean)
    if isinstance(scheme, Uniform):
        if scheme.low == scheme.high:
            return sampling.Constant(scheme.low)
        return sampling.Uniform(scheme.low, scheme.high)
    if isinstance(scheme, TruncatedNormal):
        if not scheme.std:
            return sampling.Constant(scheme.mean)
        return sampling.TruncatedNormal(scheme.mean, scheme.parent_std, *scheme.limits)
    raise SchemeError(
        compose(
            f"the element-wise scheme {type(scheme).__name__}",
            "a scheme whose resolve() gives Constant, Normal, Uniform or TruncatedNormal",
            "these are what the value contract can draw",
        )
    )


def draw_matrix(scheme: Scheme, site: Site, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The whole value of a matrix-wide scheme: each block, stacked weight and group is a matrix of its own.

    Raises:
        SchemeError: the parameter is not a matrix, or the scheme does not fit its kernel.
    """
    if not site.axes.in_axis or site.axes.one_hot:
        raise SchemeError(
            compose(
                f"{scheme.label} for {site.name!r} of shape {tuple(site.shape)}",
                "a weight with an input axis",
                "a bias, a norm's scale or an embedding table is no matrix from inputs to outputs",
                "fanin.schemes.Zeros() or fanin.schemes.Normal(std=…)",
            )
        )
    key = sampling.key(seed, site.name)
    if not site.axes.blocks:
        return _draw_stack(scheme, site, key, 0, dtype)
    whole = torch.empty(site.shape, dtype=dtype)
    (axis,) = site.axes.out_axis
    for index, block in enumerate(site.axes.blocks):
        rows = torch.tensor([row for part in block.rows for row in part])
        shape = (*site.shape[:axis], block.size, *site.shape[axis + 1 :])
        piece = site._replace(shape=shape, axes=site.axes.with_blocks(()))
        part_scheme = scheme.part(block.name)
        if part_scheme.elementwise:
            values = torch.empty(site.shape, dtype=dtype)
            law = law_of(part_scheme.resolve(piece.axes.fans(shape)))
            sampling.fill_(values, law, key)
            values = values.index_select(axis, rows)
        else:
            values = _draw_stack(part_scheme, piece, key, index, dtype)
        whole.index_copy_(axis, rows, values)
    return whole


def _draw_stack(scheme: Scheme, site: Site, key: int, block: int, dtype: torch.dtype) -> torch.Tensor:
    """All matrices of a parameter, or of one block of it, in the parameter's own layout."""
    batch = [site.shape[axis] for axis in site.axes.batch_axis]
    matrix = matrix_of(site.axes.fans(site.shape), site.shape, site.axes)
    count = math.prod(batch)
    stack = []
    for index in range(count):
        first = (block * count + index) * matrix.groups
        groups = [_draw_one(scheme, matrix, site, key, first + group, dtype) for group in range(matrix.groups)]
        stack.append(torch.cat(groups, dim=1 if matrix.transposed else 0))
    return _arrange(torch.stack(stack), site.shape, site.axes)


def _draw_one(scheme: Scheme, matrix: Matrix, site: Site, key: int, part: int, dtype: torch.dtype) -> torch.Tensor:
    """One matrix as rows × columns × kernel; ``part`` numbers its stream under the parameter's key."""
    rows, columns, kernel = matrix.rows, matrix.columns, matrix.kernel
    if isinstance(scheme, Orthogonal | ScaledOrthogonal):
        flat = sampling.orthogonal_rows(*matrix.flat, key, part=part, dtype=dtype)
        entry = scheme.expected(site.axes.fans(site.shape), site.shape, site.axes).std
        flat *= math.copysign(entry * math.sqrt(max(matrix.flat)), scheme.gain)
        return _unflatten(flat, matrix)
    values = torch.zeros(rows, columns, kernel, dtype=dtype)
    if isinstance(scheme, DeltaOrthogonal):
        require_odd_kernel(site.shape, site.axes)
        values[:, :, kernel // 2] = scheme.gain * sampling.orthogonal_rows(rows, columns, key, part=part, dtype=dtype)
        return values
    if isinstance(scheme, Identity):
        values[:, :, _centre(site)] = scheme.gain * torch.eye(rows, columns, dtype=dtype)
        return values
    if isinstance(scheme, Sparse):
        return _unflatten(_draw_sparse(scheme, matrix, key, part, dtype), matrix)
    raise SchemeError(compose(f"the matrix-wide scheme {type(scheme).__name__}", "one that fanin can draw"))


def _draw_sparse(scheme: Sparse, matrix: Matrix, key: int, part: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal values where a uniform draw of its own ranks among the ``incoming`` smallest of its row."""
    values = torch.empty(matrix.flat, dtype=dtype)
    sampling.fill_(values, law_of(Normal(scheme.std)), key, part=part, lane=sampling.MATRIX)
    ranks = torch.empty(matrix.flat, dtype=torch.float64)
    sampling.fill_(ranks, sampling.Uniform(0.0, 1.0), key, part=part, lane=sampling.CHOICE)
    chosen = ranks.argsort(dim=1, stable=True)[:, : scheme.incoming]
    return values * torch.zeros(matrix.flat, dtype=torch.bool).scatter_(1, chosen, True)


def _unflatten(flat: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """From the flattened matrix to rows × columns × kernel."""
    if matrix.transposed:
        return flat.reshape(matrix.rows, matrix.kernel, matrix.columns).transpose(1, 2)
    return flat.reshape(matrix.rows, matrix.columns, matrix.kernel)


def _centre(site: Site) -> int:
    """The flat position ``(k//2, …)`` within the kernel."""
    position = 0
    for axis in site.axes.kernel_axes(len(site.shape)):
        position = position * site.shape[axis] + site.shape[axis] // 2
    return position


def _arrange(stack: torch.Tensor, shape: Shape, axes: Axes) -> torch.Tensor:
    """From (batch…, rows, columns, kernel) to the axes as the parameter has them."""
    order = [*axes.batch_axis, *axes.out_axis, *axes.in_axis, *axes.kernel_axes(len(shape))]
    return stack.reshape([shape[axis] for axis in order]).permute(*(order.index(axis) for axis in range(len(shape))))


def _window(start: Shape, sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(low, low + size) for low, size in zip(start, sizes, strict=True))


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _zero_padding(tensor: torch.Tensor, site: Site, start: Shape) -> None:
    if site.padding_row is None or not site.shape:
        return
    row = site.padding_row % site.shape[0] - start[0]
    if 0 <= row < tensor.shape[0]:
        tensor[row].zero_()
