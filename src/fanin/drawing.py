"""From a scheme to values: any region of any weight, from its seed and name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from fanin import sampling, sharding
from fanin.fans import ELEMENTWISE, Axes, Block, Shape
from fanin.matrices import draw_matrix
from fanin.schemes import Keep, Scheme, require_scheme
from fanin.sites import Site, is_elementwise, law_of


def fill_(
    tensor: torch.Tensor, scheme: Scheme, *, seed: int = 0, name: str = "w", axes: Axes | None = None
) -> torch.Tensor:
    """Fill one tensor in place, and return it.

    Args:
        tensor: any floating-point or complex tensor; also a view with any strides, or a `DTensor`, of which each
            process fills its own part.
        scheme: the rule.
        seed: with the name it decides the values.
        name: the tensor's name; two tensors of one name and seed get the same values.
        axes: the parts that the tensor's axes play; ``(out, in, kernel…)`` when omitted, and element-wise for fewer
            than two axes.

    Raises:
        SchemeError: the scheme does not fit the axes.
        ApplyError: a `DTensor` is a pending sum.

    >>> from fanin.schemes import he_normal
    >>> weight = fill_(torch.empty(512, 256), he_normal(), seed=0, name="fc.weight")
    >>> round(weight.std().item(), 2)
    0.09
    """
    require_scheme(scheme)
    chosen = axes if axes is not None else Axes() if tensor.ndim > 1 else ELEMENTWISE
    fill_pieces(sharding.pieces(tensor), scheme, Site(tuple(tensor.shape), chosen, name), seed=seed)
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
    fill_pieces([(tensor, start)], scheme, site, seed=seed)


def fill_pieces(
    pieces: Iterable[tuple[torch.Tensor, tuple[int, ...]]], scheme: Scheme, site: Site, *, seed: int = 0
) -> None:
    """Write several regions of a parameter's values, each into a tensor of its own.

    An element-wise scheme draws the regions alone; a matrix-wide one is drawn whole, once.

    Args:
        pieces: the tensors, each with the index at which its region starts in the whole.
        scheme, site, seed: see `fill_region`.
    """
    held = [(tensor, start) for tensor, start in pieces if tensor.numel()]
    if isinstance(scheme, Keep) or not held:
        return
    with torch.no_grad():
        whole = None
        if not is_elementwise(scheme):
            whole = draw_matrix(scheme, site, seed=seed, dtype=_working_dtype(held[0][0].dtype))
        for tensor, start in held:
            if whole is None:
                _fill_elementwise(tensor, scheme, site, seed, start)
            else:
                tensor.copy_(whole[_window(start, tensor.shape)])
            _zero_padding(tensor, site, start)


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


def _window(start: Shape, sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(low, low + size) for low, size in zip(start, sizes, strict=True))


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def _zero_padding(tensor: torch.Tensor, site: Site, start: Shape) -> None:
    if site.padding_row is None or not site.shape:
        return
    row = site.padding_row % site.shape[0] - start[0]
    if 0 <= row < tensor.shape[0]:
        tensor[row].zero_()
