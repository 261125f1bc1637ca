"""Matrix-wide schemes: every entry depends on the others, so a matrix is drawn whole."""

from __future__ import annotations

import math

import torch

from fanin import sampling
from fanin.fans import Axes, Shape
from fanin.schemes import (
    CentredOrthogonal,
    DeltaOrthogonal,
    Identity,
    LooksLinear,
    Normal,
    Orthogonal,
    ScaledOrthogonal,
    Scheme,
    Sparse,
)
from fanin.schemes.base import Matrix, matrix_of
from fanin.schemes.orthogonal import require_odd_kernel, require_two_columns
from fanin.sites import Site, law_of, parts, require_matrix, unknown_scheme

CPU = torch.device("cpu")
"""Matrices are made here whatever the default device is; the sums' order is the same for all."""


def draw_matrix(scheme: Scheme, site: Site, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The whole value of a matrix-wide scheme: each block, stacked weight and group is a matrix of its own.

    Raises:
        SchemeError: the parameter is not a matrix, or the scheme does not fit its kernel.
    """
    require_matrix(scheme, site)
    key = sampling.key(seed, site.name)
    if not site.axes.blocks:
        return _draw_stack(scheme, site, key, 0, dtype)
    whole = torch.empty(site.shape, dtype=dtype, device=CPU)
    (axis,) = site.axes.out_axis
    for index, (part_scheme, piece) in enumerate(parts(scheme, site)):
        rows = torch.tensor([row for part in site.axes.blocks[index].rows for row in part], device=CPU)
        if part_scheme.elementwise:
            values = torch.empty(site.shape, dtype=dtype, device=CPU)
            law = law_of(part_scheme.resolve(piece.axes.fans(piece.shape)))
            sampling.fill_(values, law, key)
            values = values.index_select(axis, rows)
        else:
            values = _draw_stack(part_scheme, piece, key, index, dtype)
        whole.index_copy_(axis, rows, values)
    return whole


def stack_of(values: torch.Tensor, site: Site) -> torch.Tensor:
    """All matrices of a weight without blocks, each as rows × columns × kernel: how `draw_matrix` laid them out."""
    axes, shape = site.axes, site.shape
    order = [*axes.batch_axis, *axes.out_axis, *axes.in_axis, *axes.kernel_axes(len(shape))]
    matrix = matrix_of(axes.fans(shape), shape, axes)
    whole = (-1, matrix.groups, matrix.rows, matrix.columns, matrix.kernel)
    if matrix.transposed:
        whole = (-1, matrix.rows, matrix.groups, matrix.columns, matrix.kernel)
    stack = values.permute(order).reshape(whole)
    return (stack.transpose(1, 2) if matrix.transposed else stack).flatten(0, 1)


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
        return _draw_orthogonal(scheme, matrix, site, key, part, dtype)
    if isinstance(scheme, CentredOrthogonal):
        return _draw_centred(scheme, matrix, site, key, part, dtype)
    if isinstance(scheme, LooksLinear):
        half = _draw_orthogonal(scheme, scheme.half(matrix), site, key, part, dtype)
        upper = torch.cat([half, -half], dim=1) if scheme.mirrored else half
        return torch.cat([upper, -upper])[:rows, :columns]
    values = torch.zeros(rows, columns, kernel, dtype=dtype, device=CPU)
    if isinstance(scheme, DeltaOrthogonal):
        require_odd_kernel(site.shape, site.axes)
        values[:, :, kernel // 2] = scheme.gain * sampling.orthogonal_rows(rows, columns, key, part=part, dtype=dtype)
        return values
    if isinstance(scheme, Identity):
        values[:, :, _centre(site)] = scheme.gain * torch.eye(rows, columns, dtype=dtype, device=CPU)
        return values
    if isinstance(scheme, Sparse):
        return _unflatten(_draw_sparse(scheme, matrix, key, part, dtype), matrix)
    raise unknown_scheme(scheme)


def _draw_orthogonal(
    scheme: Orthogonal | ScaledOrthogonal | LooksLinear,
    matrix: Matrix,
    site: Site,
    key: int,
    part: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Haar rows or columns, at the standard deviation that the scheme expects of its entries."""
    flat = sampling.orthogonal_rows(*matrix.flat, key, part=part, dtype=dtype)
    entry = scheme.expected(site.axes.fans(site.shape), site.shape, site.axes).std
    flat *= math.copysign(entry * math.sqrt(max(matrix.flat)), scheme.gain)
    return _unflatten(flat, matrix)


def _draw_centred(
    scheme: CentredOrthogonal, matrix: Matrix, site: Site, key: int, part: int, dtype: torch.dtype
) -> torch.Tensor:
    """A scaled orthogonal matrix of one column less, and the reflection that swaps (1, 0, …) for (1, …, 1)/√n.

    With a column of zeros put first nothing of it lies along (1, 0, …), and so nothing of its image along the other.
    """
    require_two_columns(matrix)
    rows, columns = matrix.flat
    if not columns:
        return torch.zeros(rows, columns, 1, dtype=dtype, device=CPU).reshape(rows, matrix.columns, matrix.kernel)
    core = sampling.orthogonal_rows(rows, columns - 1, key, part=part, dtype=dtype)
    entry = scheme.expected(site.axes.fans(site.shape), site.shape, site.axes).std
    core *= math.copysign(entry * centred_scale(matrix), scheme.gain)
    unit = columns**-0.5
    # numpy's sums do not depend on the number of threads
    along = torch.from_numpy(core.numpy().sum(1, keepdims=True)) * unit
    return _unflatten(torch.cat([along, core - along * (unit / (1 - unit))], dim=1), matrix)


def centred_scale(matrix: Matrix) -> float:
    """What a Haar matrix of one column less is multiplied by for entries of std 1 once it is centred."""
    rows, columns = matrix.flat
    return math.sqrt(columns / (columns - 1) * max(rows, columns - 1))


def centred_core(flat: torch.Tensor) -> torch.Tensor:
    """What a centred matrix was made of: its mirror image without the first column."""
    unit = flat.shape[-1] ** -0.5
    return flat[..., 1:] + flat[..., :1] * (unit / (1 - unit)) if flat.shape[-1] else flat


def _draw_sparse(scheme: Sparse, matrix: Matrix, key: int, part: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal values where a uniform draw of its own ranks among the ``incoming`` smallest of its row."""
    values = torch.empty(matrix.flat, dtype=dtype, device=CPU)
    sampling.fill_(values, law_of(Normal(scheme.std)), key, part=part, lane=sampling.MATRIX)
    ranks = torch.empty(matrix.flat, dtype=torch.float64, device=CPU)
    sampling.fill_(ranks, sampling.Uniform(0.0, 1.0), key, part=part, lane=sampling.CHOICE)
    chosen = ranks.argsort(dim=1, stable=True)[:, : scheme.incoming]
    return values * torch.zeros(matrix.flat, dtype=torch.bool, device=CPU).scatter_(1, chosen, True)


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
