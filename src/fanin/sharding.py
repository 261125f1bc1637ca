"""Where the elements that this process holds lie in the whole tensor: the geometry of a `DTensor`.

A shard is the Cartesian product of a set of indices along each axis. Plain shards give one run of indices an axis;
FSDP2 over tensor parallelism, which shards an axis twice from the inside out, gives several.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import nn

from fanin.errors import ApplyError, compose
from fanin.plans import Plan
from fanin.rows import Row
from fanin.sites import is_elementwise
from fanin.tracing.names import named_parameters

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Runs = tuple[range, ...]
"""Indices along one axis, as ascending ranges of step 1."""


class Piece(NamedTuple):
    """A rectangular part of a tensor, in memory, and the index of its first element in the whole."""

    tensor: torch.Tensor
    offset: tuple[int, ...]


def is_distributed(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether this is a `DTensor`; torch's distributed package is not imported to find out."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that this process holds, as a tensor that shares their memory."""
    if not is_distributed(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.to_local().detach()


def pieces(tensor: torch.Tensor) -> list[Piece]:
    """The rectangles that make up this process's part of a tensor: one, the whole, where it is not distributed.

    Raises:
        ApplyError: the tensor is a pending sum, or laid out in a way that this version of fanin does not know.
    """
    held = local(tensor)
    if not is_distributed(tensor):
        return [Piece(held, (0,) * held.ndim)]
    if not held.numel():
        return []
    axes = indices(tensor)
    if tuple(held.shape) != tuple(_count(runs) for runs in axes):
        raise _unknown_layout(tensor, f"a local shape of {tuple(held.shape)}")
    return list(_rectangles(held, axes))


def indices(tensor: DTensor) -> tuple[Runs, ...]:
    """Which indices of each axis this process holds; nothing is sent between processes.

    Raises:
        ApplyError: see `pieces`.
    """
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return tuple(() for _ in tensor.shape)
    for placement in tensor.placements:
        if placement.is_partial():
            raise _partial(tensor)
        if not placement.is_replicate() and not isinstance(getattr(placement, "dim", None), int):
            raise _unknown_layout(tensor, f"the placement {placement}")
    return divide(tuple(tensor.shape), tensor.placements, tuple(mesh.shape), coordinate, _order(tensor))


def divide(
    shape: Sequence[int],
    placements: Sequence[Any],
    mesh: Sequence[int],
    coordinate: Sequence[int],
    order: Iterable[int] | None = None,
) -> tuple[Runs, ...]:
    """The indices of each axis that one coordinate of a mesh holds.

    Each sharding cuts what the ones before it left into chunks of ⌈n/k⌉. A strided one first cuts that into
    ``split_factor`` chunks and takes its part of each.

    Args:
        shape: of the whole tensor.
        placements: one for each dimension of the mesh; ``dim`` and ``split_factor`` are read.
        mesh: its shape.
        coordinate: in the mesh.
        order: of the mesh's dimensions; from left to right when omitted.

    >>> from torch.distributed.tensor import Replicate, Shard
    >>> divide((10, 4), [Shard(0), Replicate()], (4, 2), (3, 0))
    ((range(9, 10),), (range(0, 4),))
    """
    axes: list[Runs] = [(range(size),) for size in shape]
    for dimension in range(len(mesh)) if order is None else order:
        placement = placements[dimension]
        if placement.is_replicate():
            continue
        axis = placement.dim % len(shape)
        parts = int(getattr(placement, "split_factor", 1))
        first = [_chunk(axes[axis], parts, index) for index in range(parts)]
        axes[axis] = _merged(run for part in first for run in _chunk(part, mesh[dimension], coordinate[dimension]))
    return tuple(axes)


def _order(tensor: DTensor) -> list[int] | None:
    """The order in which the mesh's dimensions divide the tensor, where torch records one."""
    recorded = getattr(getattr(tensor, "_spec", None), "shard_order", None)
    if not recorded or any(getattr(placement, "split_factor", 1) > 1 for placement in tensor.placements):
        return None
    order = [dimension for entry in recorded for dimension in entry.mesh_dims]
    return [*order, *(dimension for dimension in range(tensor.device_mesh.ndim) if dimension not in order)]


def _chunk(runs: Runs, chunks: int, index: int) -> Runs:
    total = _count(runs)
    size = -(-total // chunks)
    first, last = min(size * index, total), min(size * (index + 1), total)
    result = []
    passed = 0
    for run in runs:
        low, high = max(first - passed, 0), min(last - passed, len(run))
        if low < high:
            result.append(run[low:high])
        passed += len(run)
    return tuple(result)


def _merged(runs: Iterable[range]) -> Runs:
    result: list[range] = []
    for run in runs:
        if result and result[-1].stop == run.start:
            result[-1] = range(result[-1].start, run.stop)
        else:
            result.append(run)
    return tuple(result)


def _count(runs: Runs) -> int:
    return sum(len(run) for run in runs)


def _rectangles(held: torch.Tensor, axes: Sequence[Runs]) -> Iterator[Piece]:
    placed = [list(zip(itertools.accumulate(map(len, runs), initial=0), runs, strict=False)) for runs in axes]
    for corner in itertools.product(*placed):
        window = tuple(slice(at, at + len(run)) for at, run in corner)
        yield Piece(held[window], tuple(run.start for _, run in corner))


def is_divided(tensor: torch.Tensor) -> bool:
    """Whether processes hold different parts of the tensor."""
    return is_distributed(tensor) and any(not placement.is_replicate() for placement in tensor.placements)


def reshard(model: nn.Module) -> None:
    """Register the sharded parameters of FSDP2 modules again, where a forward pass left the gathered ones."""
    module = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(module, "FSDPModule", None)
    for part in model.modules():
        if kind is not None and isinstance(part, kind):
            part.reshard()


def note(plan: Plan, model: nn.Module) -> Plan:
    """The plan with a word in the reason of each matrix that processes divide and must draw whole."""
    divided = {entry.name for entry in named_parameters(model) if is_divided(entry.parameter)}
    if not divided:
        return plan

    def noted(row: Row) -> Row:
        if row.name not in divided or is_elementwise(row.scheme):
            return row
        return replace(row, reason=f"{row.reason}; a matrix is drawn whole by each process, which keeps its part")

    return replace(plan, rows=tuple(noted(row) for row in plan))


def _partial(tensor: DTensor) -> ApplyError:
    return ApplyError(
        compose(
            f"a tensor placed as {tuple(tensor.placements)}",
            "Shard or Replicate on every dimension of the mesh",
            "a Partial tensor is a sum that is still to be made: its parts have no values of their own",
            "tensor.redistribute(placements=[Replicate()]) before",
        )
    )


def _unknown_layout(tensor: DTensor, what: str) -> ApplyError:
    return ApplyError(
        compose(
            f"{what} of a {tuple(tensor.shape)} tensor placed as {tuple(tensor.placements)}",
            "a layout whose indices can be told",
            f"torch {torch.__version__} lays it out in a way that fanin does not know",
            "Shard and Replicate placements",
        )
    )
