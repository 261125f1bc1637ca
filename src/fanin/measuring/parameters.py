"""What the values of a parameter, and its gradient, look like before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fanin.fans import Axes
from fanin.graph import ParameterNode, Role
from fanin.measuring.statistics import real_parts, sample_flat, scale_of, zero_share
from fanin.observations import ERASING, LOWEST, SIGMAS, BlockSignal, BufferSignal, ParameterSignal
from fanin.tracing.names import NamedParameter

_PROBES = 16
"""How many entries of a row are compared before whole rows are."""

_QUARTILE_SAMPLE = 4096
"""Values from which quartiles are taken: σ to within 3 %, at a tenth of the cost of sorting a whole sample."""

_FEW = 64
"""Of fewer values the quartiles say little of the standard deviation: with 64 it is off by a fifth at two sigma."""

_ZEROS = 0.25
"""With more zeros the quartiles are those of zeros."""

_KERNELS = 8
"""Of fewer kernels the median of one place says little of it."""

_MEDIAN = 1.4826022185056018
"""A normal law's standard deviation over the median of its absolute values."""

_DISTINCT = 256
"""Values that are compared with each other."""

_QUARTILES = 1.3489795003921634
"""The interquartile range of a normal distribution, in standard deviations."""


def observe(entry: NamedParameter, node: ParameterNode) -> ParameterSignal:
    """Measure one parameter's values.

    >>> from fanin.tracing.modules import graph_of
    >>> from fanin.tracing.names import named_parameters
    >>> layer = torch.nn.Linear(2, 3)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(0.5)
    >>> signal = observe(named_parameters(layer)[0], graph_of(layer)["weight"])
    >>> signal.constant, round(signal.duplicate_rows, 2)
    (True, 0.67)
    """
    values = local(entry.parameter)
    shape, dtype = tuple(entry.parameter.shape), str(entry.parameter.dtype).removeprefix("torch.")
    if values.is_meta or not values.numel() or not (values.is_floating_point() or values.is_complex()):
        return ParameterSignal(entry.name, shape, dtype, meta=values.is_meta)
    scale = scale_of(values)
    axes = node.axes if tuple(values.shape) == shape else Axes(in_axis=(), out_axis=())
    power = scale.rms**2 * values.numel()
    values = real_parts(values)  # a last axis more, which is of no unit
    sample = sample_flat(values, _QUARTILE_SAMPLE)
    finite = sample[torch.isfinite(sample)]
    columns = _duplicates(values, axes, axes.in_axis)
    whole = torch.nan_to_num(values, 0.0, 0.0, 0.0) if scale.non_finite else values
    low, high = (float(bound) for bound in torch.aminmax(whole))
    zeros = zero_share(values)
    blocks, bulks = _blocks(values, axes)
    if max(bulk.outlier for bulk in bulks) > SIGMAS and _is_of_one_form(values, axes, bulks[0].std):
        bulks = (replace(bulks[0], outlier=SIGMAS, tails=0.0),)
    return ParameterSignal(
        name=entry.name,
        shape=shape,
        dtype=dtype,
        mean=scale.mean,
        std=_std(values, scale.mean, scale.rms, bool(scale.non_finite)),
        rms=scale.rms,
        min=low,
        max=high,
        zero=zeros,
        non_finite=scale.non_finite,
        outlier=max(bulk.outlier for bulk in bulks),
        tail_power=sum(bulk.tails for bulk in bulks) / power if power else 0.0,
        subnormal=_subnormal(finite, values.dtype),
        duplicate_rows=_duplicates(values, axes, axes.out_axis),
        duplicate_columns=columns,
        zero_columns=_zero_vectors(values, (*axes.batch_axis, *axes.in_axis)) if columns else 0.0,
        zero_vectors=_zero_vectors(values, tuple(range(values.ndim - 1))) if zeros and values.ndim > 1 else 0.0,
        constant_rows=columns > 0 and _has_constant_rows(values, axes),
        equal_vectors=_is_one_vector(values, 0.0),
        duplicate_slices=duplicate_share(values, axes.batch_axis) if axes.batch_axis else 0.0,
        repeats=_repeats(values, stacked=_is_stack(node)),
        side_repeats=_side_repeats(values, axes),
        blocks=blocks,
        padding_rms=None if node.padding_row is None else scale_of(values[node.padding_row]).rms,
    )


def local(parameter: torch.Tensor) -> torch.Tensor:
    """The values that are here: all of them, or this process's shard."""
    found: Any = parameter.detach()
    return found.to_local() if hasattr(found, "to_local") else found  # type: ignore[no-any-return]


def _std(values: torch.Tensor, mean: float, rms: float, broken: bool) -> float:
    # rms² − mean² cancels where the mean is large against the std, as in a norm's scale of ones.
    if broken or abs(mean) < 0.99 * rms:
        return math.sqrt(max(rms**2 - mean**2, 0.0))
    return float(values.double().std(correction=0).item())


@dataclass(frozen=True, slots=True)
class _Bulk:
    """Where most values of a matrix lie, and which do not.

    Args:
        std: taken from the interquartile range.
        outlier: the largest distance from the median, in these.
        tails: the sum of squares of what is over ten of these away.
    """

    std: float = 0.0
    outlier: float = 0.0
    tails: float = 0.0

    @classmethod
    def of(cls, values: torch.Tensor) -> _Bulk:
        """Measure one matrix."""
        sample = sample_flat(values, _QUARTILE_SAMPLE)
        ordered = sample[torch.isfinite(sample)].sort().values
        low, high = (float(bound) for bound in torch.aminmax(torch.nan_to_num(values, 0.0, 0.0, 0.0)))
        if ordered.numel() < 2 or low == high:
            return cls()
        first, middle, third = (ordered[int(share * (ordered.numel() - 1))].item() for share in (0.25, 0.5, 0.75))
        sigma = (third - first) / _QUARTILES or float(ordered.std(correction=0))
        farthest = max(high - middle, middle - low) / sigma if sigma else 0.0
        return cls(sigma, farthest, _tails(values, middle, SIGMAS * sigma) if farthest > SIGMAS else 0.0)


def _is_of_one_form(values: torch.Tensor, axes: Axes, std: float) -> bool:
    """Whether what is far out of a kernel's bulk is so in most kernels at the same place: the form of a filter.

    A filter that was written, or has learned, is large at its centre and next to nothing at its edges; what stands out
    of a draw stands out of its own place too. Of few kernels nobody can say.
    """
    along = (*axes.batch_axis, *axes.in_axis, *axes.out_axis)
    if axes.blocks or len(along) == values.ndim or not along:
        return False
    kernels = _vectors(values, along).double()
    if len(kernels) < _KERNELS or kernels.shape[1] < 2:
        return False
    far = (kernels - kernels.median()).abs() > SIGMAS * std
    usual = kernels.abs().median(0).values * _MEDIAN
    return bool((kernels.abs() <= SIGMAS * usual)[far].all())


def _tails(values: torch.Tensor, middle: float, distance: float) -> float:
    far = values[torch.isfinite(values) & ((values - middle).abs() > distance)]
    return float(far.double().square().sum())


def _subnormal(sample: torch.Tensor, dtype: torch.dtype) -> float:
    tiny = (sample != 0) & (sample.abs() < torch.finfo(dtype).tiny)
    return float(tiny.sum()) / max(sample.numel(), 1)


def _blocks(values: torch.Tensor, axes: Axes) -> tuple[tuple[BlockSignal, ...], tuple[_Bulk, ...]]:
    """The named blocks, and the bulk of each of them; without blocks that of the whole."""
    if not axes.blocks or len(axes.out_axis) != 1:
        return (), (_Bulk.of(values),)
    parts = {block.name: block_of(values, axes, block.name) for block in axes.blocks}
    bulks = {name: _Bulk.of(part) if _has_bulk(part) else _Bulk() for name, part in parts.items()}
    return tuple(_block(part, name, bulks[name].std) for name, part in parts.items()), tuple(bulks.values())


def _has_bulk(values: torch.Tensor) -> bool:
    """Whether quartiles say what most values of a block are: not of few, nor of zeros."""
    return values.numel() >= _FEW and zero_share(values) <= _ZEROS


def _block(values: torch.Tensor, name: str, bulk: float) -> BlockSignal:
    std, mean = torch.std_mean(values.double(), correction=0)
    return BlockSignal(name, mean.item(), std.item(), bulk)


def block_of(values: torch.Tensor, axes: Axes, name: str) -> torch.Tensor:
    """A named block of packed values, as memory of its own; all values as they are for the empty name."""
    if not name:
        return values
    rows = [row for block in axes.blocks if block.name == name for part in block.rows for row in part]
    return values.index_select(axes.out_axis[0], torch.tensor(rows, device=values.device))


def _duplicates(values: torch.Tensor, axes: Axes, of: tuple[int, ...]) -> float:
    """The share of units that equal an earlier one; within each slice of a stack, then over all."""
    if not of or values.ndim < 2:
        return 0.0
    return duplicate_share(values, (*axes.batch_axis, *of))


def _zero_vectors(values: torch.Tensor, along: tuple[int, ...]) -> float:
    """The share of the vectors along some axes that are zero throughout."""
    empty = _vectors(values, along) == 0
    return float(empty.all(1).double().mean())


def _has_constant_rows(values: torch.Tensor, axes: Axes) -> bool:
    """Whether the weights of each unit are one number: whatever the inputs, only their sum is seen."""
    along = (*axes.batch_axis, *axes.out_axis)
    if not along:
        return False
    rows = _vectors(values, along)
    return bool((rows == rows[:, :1]).all())


def duplicate_share(values: torch.Tensor, axes: Sequence[int]) -> float:
    """The share of the vectors along some axes that equal an earlier one bit for bit.

    A few entries of each are compared first; whole vectors only where those agree. Vectors of one element are no
    evidence, so they count as different.

    >>> duplicate_share(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]), (0,)) == 1 / 3
    True
    """
    units = math.prod(values.shape[axis] for axis in axes)
    if units < 2 or values.numel() // units < 2:
        return 0.0
    return len(repeated(_vectors(values, axes))[0]) / units


def repeated(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows of a matrix equal an earlier one bit for bit, and which one that is."""
    keys = _keys(vectors[:, :: max(vectors.shape[1] // _PROBES, 1)])
    if torch.unique(keys, return_counts=True)[1].max() == 1:
        nothing = torch.empty(0, dtype=torch.int64, device=vectors.device)
        return nothing, nothing
    later, leaders = _led(keys)
    same = (vectors[later] == vectors[leaders]).all(1)
    return later[same], leaders[same]


def shared_gradient(values: torch.Tensor, gradient: torch.Tensor, axes: Axes) -> float:
    """The share of input units whose weights equal an earlier one's, and whose gradient does too: these stay equal.

    >>> weight, gradient = torch.ones(4, 3), torch.tensor([[1.0, 2.0, 1.0]]).expand(4, 3)
    >>> shared_gradient(weight, gradient, Axes()) == 1 / 3
    True
    """
    along = (*axes.batch_axis, *axes.in_axis)
    if gradient.is_sparse or gradient.shape != values.shape or not axes.in_axis:
        return 0.0
    units = math.prod(values.shape[axis] for axis in along)
    later, leaders = repeated(_vectors(real_parts(values), along))
    moves = _vectors(real_parts(gradient), along)
    same = (moves[later] - moves[leaders]).abs().amax(1) <= _rounding(moves.dtype) * moves.abs().max()
    return float(same.sum()) / units


def along(values: torch.Tensor, gradient: torch.Tensor) -> float | None:
    """The sum of products of values and gradient; None of a gradient of other than all values.

    >>> along(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]))
    0.0
    """
    if gradient.is_sparse or gradient.shape != values.shape:
        return None
    # In single precision, as one product of vectors: in double this took as long as the layer's own backward.
    found = float(torch.dot(real_parts(values).flatten().float(), real_parts(gradient).flatten().float()))
    return found if math.isfinite(found) else None


def _rounding(dtype: torch.dtype) -> float:
    """How far two sums of the same numbers may lie apart, beside the largest of their kind.

    √ε of float32 for as many terms as ε leaves exact; shorter types add in float32 and round twice at the end.
    """
    return max(math.sqrt(torch.finfo(torch.float32).eps), 2 * torch.finfo(dtype).eps)


def equal_groups(gradient: torch.Tensor, axes: Axes) -> dict[str, int]:
    """Into how many groups of how many units those with a gradient fall, alike within a group to within rounding.

    Nothing unless all groups are of one size, and of more than one unit.

    >>> equal_groups(torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 2.0], [3.0, 1.0], [0.0, 0.0]]), Axes())
    {'grad_groups': 2, 'grad_group_size': 2}
    """
    along = (*axes.batch_axis, *axes.out_axis)
    if gradient.is_sparse or not axes.out_axis or gradient.ndim < 2:
        return {}
    rows = _vectors(real_parts(gradient), along)
    tolerance = _rounding(rows.dtype) * rows.abs().max()
    rows = rows[rows.abs().amax(1) > tolerance]
    sizes: set[int] = set()
    count = 0
    while len(rows):
        alike = (rows - rows[:1]).abs().amax(1) <= tolerance
        sizes.add(int(alike.sum()))
        if len(sizes) > 1 or 1 in sizes:
            return {}
        rows, count = rows[~alike], count + 1
    return {"grad_groups": count, "grad_group_size": sizes.pop()} if sizes else {}


def _vectors(values: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """The vectors along some axes, as the rows of a matrix."""
    others = [axis for axis in range(values.ndim) if axis not in axes]
    return values.permute(*axes, *others).flatten(0, len(axes) - 1).flatten(1)


def _keys(probes: torch.Tensor) -> torch.Tensor:
    """One integer for each row, equal where rows are: a sum of its bits times odd numbers, modulo 2⁶⁴."""
    bits = probes.contiguous().to(torch.float32).view(torch.int32).to(torch.int64)
    odd = torch.arange(1, 2 * bits.shape[1], 2, device=bits.device) * 0x9E3779B97F4A7C15 % 2**31 * 2 + 1
    mixed = (bits * odd[None]) ^ (bits >> 7)
    return (mixed * odd.flip(0)[None]).sum(1)


def _led(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The places whose key was there before, and for each the first place with it."""
    order = torch.argsort(keys, stable=True)
    ordered = keys[order]
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    leaders = order[torch.cummax(torch.where(starts, torch.arange(len(order), device=keys.device), 0), 0).values]
    later = ~starts
    return order[later], leaders[later]


def _is_one_vector(values: torch.Tensor, tolerance: float) -> bool:
    """Whether the vectors along the last axis are the same along the axis before it, beside the largest of them."""
    if values.ndim < 2 or values.shape[-2] < 2 or values.shape[-1] < 2:
        return False
    first = values.narrow(-2, 0, 1)
    if not tolerance:
        # Of large matrices, which are never equal, two rows tell.
        return torch.equal(values.narrow(-2, 1, 1), first) and bool((values == first).all())
    largest = float(values.abs().max())
    # As above: in nearly all gradients two vectors tell, and the rest is not compared.
    if float((values.narrow(-2, 1, 1) - first).abs().max()) > tolerance * largest:
        return False
    return float((values - first).abs().max()) <= tolerance * largest


def _is_stack(node: ParameterNode) -> bool:
    """Whether the first axis counts matrices: experts, or relations, whose inputs are one sum or outputs one list."""
    axes = node.axes
    several = (axes.out_axis, axes.in_axis if node.role is Role.LINEAR else ())
    return 0 in axes.batch_axis or any(0 in part[:1] and len(part) > 1 for part in several)


def _repeats(values: torch.Tensor, *, stacked: bool) -> int:
    """How often one block fills the tensor along its first axis; 1 for a constant tensor, which repeats trivially.

    Single rows that are all the same are equal units, and no block; along a stack of matrices they are equal experts.
    """
    if values.ndim < 1 or values.shape[0] < 2 or values.shape[0] > 2**16:
        return 1
    length = values.shape[0]
    first = values[:, :_PROBES].flatten(1)[:, :_PROBES] if values.ndim > 1 else values[:, None]
    if bool((first == first[:1, :1]).all()) or (not stacked and _is_one_slice(values)):
        return 1
    most = min(length if stacked else length // 2, 64)
    for count in (count for count in range(most, 1, -1) if length % count == 0):
        size = length // count
        if torch.equal(first[:-size], first[size:]) and torch.equal(values[:-size], values[size:]):
            return count
    return 1


def _side_repeats(values: torch.Tensor, axes: Axes) -> int:
    """How often one block fills the tensor along an axis of inputs or outputs that is not its first."""
    sides = (values.transpose(0, axis) for axis in (*axes.in_axis, *axes.out_axis) if 0 < axis < values.ndim)
    return max((_repeats(side, stacked=False) for side in sides if not _is_one_slice(side)), default=1)


def _is_one_slice(values: torch.Tensor) -> bool:
    """Whether all is the same along the first axis: equal units, and no block of several."""
    return torch.equal(values[:1], values[1:2]) and torch.equal(values[:-1], values[1:])


def twins_of(entries: Sequence[NamedParameter], signals: Sequence[ParameterSignal]) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters that hold the same values; constants and what else is written, not drawn, are left out."""
    groups: dict[tuple[Any, ...], list[list[NamedParameter]]] = {}
    for entry, signal in zip(entries, signals, strict=True):
        if signal.meta or signal.constant or signal.elements < 2:
            continue
        key = (signal.shape, signal.dtype, signal.mean, signal.rms, signal.min, signal.max)
        for group in groups.setdefault(key, []):
            if torch.equal(local(group[0].parameter), local(entry.parameter)):
                group.append(entry)
                break
        else:
            groups[key].append([entry])
    twins = (group for found in groups.values() for group in found if len(group) > 1)
    return tuple(tuple(entry.name for entry in group) for group in twins if not _is_written(local(group[0].parameter)))


def _is_written(values: torch.Tensor) -> bool:
    """Whether values are of few numbers, as offsets of places and signs are: a draw repeats itself only by rounding.

    Of 256 values over half differ when they are drawn, also in bfloat16, which has as many to each power of two.
    """
    sample = sample_flat(real_parts(values), _DISTINCT)
    return 2 * len(set(sample.tolist())) <= sample.numel()


def observe_gradient(gradient: torch.Tensor, axes: Axes) -> dict[str, Any]:
    """Measure one parameter's gradient."""
    values = gradient.coalesce().values() if gradient.is_sparse else local(gradient)
    scale = scale_of(values)
    same = tuple(values.shape) == tuple(gradient.shape) and values.ndim > 1
    values = real_parts(values)
    # A sparse gradient holds only the rows that were looked up.
    share = math.sqrt(values.numel() / max(gradient.numel(), 1)) if gradient.is_sparse else 1.0
    return {
        "reached": True,
        "grad_rms": scale.rms * share,
        "grad_max": scale.max,
        "grad_zero": 1 - share**2 * (1 - zero_share(values)),
        "grad_non_finite": scale.non_finite,
        # Sums over a batch round otherwise for each row: by √ε at most, of as many terms as ε leaves exact.
        "grad_equal_vectors": same
        and scale.max > 0
        and _is_one_vector(values, math.sqrt(torch.finfo(values.dtype).eps)),
        "grad_duplicate_rows": _duplicates(values, axes, axes.out_axis) if same and scale.max else 0.0,
    }


def observe_buffer(name: str, buffer: torch.Tensor) -> BufferSignal:
    """Measure one buffer."""
    values = local(buffer)
    shape, dtype = tuple(buffer.shape), str(buffer.dtype).removeprefix("torch.")
    if values.is_meta or not values.numel():
        return BufferSignal(name, shape, dtype, meta=values.is_meta)
    scale = scale_of(values)
    broken = float(torch.isnan(values).sum()) / values.numel() if scale.non_finite else 0.0
    lowest = float(torch.nan_to_num(values).amin())
    return BufferSignal(
        name,
        shape,
        dtype,
        max=scale.max,
        min=lowest,
        non_finite=scale.non_finite,
        not_a_number=broken,
        subnormal=_subnormal(sample_flat(values, _QUARTILE_SAMPLE).to(values.dtype), values.dtype),
        erasing=_largest(values.abs()) if scale.max > ERASING else 0.0,
        highest=_largest(values) if scale.max > ERASING else 0.0,
    )


def _largest(values: torch.Tensor) -> float:
    """The largest of the values over 1/ε, without those that masks are filled with; 0 without any."""
    found = values[(values > ERASING) & (values < LOWEST)]
    return float(found.max()) if found.numel() else 0.0
