"""What lies behind a tensor: which weights, how many, and which residual stream. No tensor is kept alive by it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

_ATTRIBUTE = "_fanin_trail"
_serial = itertools.count()

_FORK_STEPS = 8
"""How many operations a shortcut may pass (pooling, a projection, a norm) and still be one."""


_MADE_STEPS = 16
"""How many operations may lie between a weight and an activation: moves, a bias, a norm, a sum."""


@dataclass(slots=True, eq=False)
class Trail:
    """The path to one tensor.

    Args:
        parents: the trails of what it was computed from.
        depth: weights on its longest path.
        axis: which axis indexes its units; None where that is not known.
        weights: the parameters it is made of, when no activation has come in yet.
        parameter: whether it is made of parameters only: a weight on its way through reparametrizations.
        tower: the number of the first weight on its longest path.
        scores: whether it is a product of two signals, a sum for each pair of their places, or one number for each
            place, since the last weight: what a softmax over it makes is attention, and no choice of classes.
        stream: the residual stream that it is, from 0.
        stream_depth: how many branches that stream has received.
        stream_start: RMS of the stream before its first branch.
    """

    parents: tuple[Trail, ...] = ()
    depth: int = 0
    axis: int | None = None
    weights: tuple[str, ...] = ()
    parameter: bool = False
    tower: int | None = None
    scores: bool = False
    stream: int | None = None
    stream_depth: int = 0
    stream_start: float | None = None
    serial: int = field(default_factory=lambda: next(_serial))


def trail_of(item: Any) -> Trail | None:
    """The trail of a tensor that the run has met."""
    return getattr(item, _ATTRIBUTE, None) if isinstance(item, torch.Tensor) else None


def leave(tensor: torch.Tensor, trail: Trail) -> None:
    """Mark a tensor of the run with its trail."""
    setattr(tensor, _ATTRIBUTE, trail)


def tensors_in(items: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among arguments, two levels deep as torch's own functions take them."""
    for item in items:
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from tensors_in(item)


def follows(trail: Trail, ancestor: Trail) -> bool:
    """Whether a trail leads back to another."""
    seen: set[int] = set()
    open_ends = [trail]
    while open_ends:
        here = open_ends.pop()
        if here is ancestor:
            return True
        # An ancestor is always older than what follows from it.
        for parent in here.parents:
            if parent.serial >= ancestor.serial and parent.serial not in seen:
                seen.add(parent.serial)
                open_ends.append(parent)
    return False


def is_branch(branch: Trail, stream: Trail) -> bool:
    """Whether one summand is a residual branch of the other: computed, through more weights, from what the other is.

    The other may itself be a shortcut with one weight (a projection), as where a residual network changes its width.
    """
    if branch.depth <= stream.depth and stream.stream is None:
        return False
    fork = stream
    for _ in range(_FORK_STEPS):
        if fork.depth < stream.depth - 1:
            return False
        if follows(branch, fork):
            return branch.depth > fork.depth
        if not fork.parents:
            return False
        fork = fork.parents[0]
    return False


def made_by(trail: Trail) -> tuple[str, ...]:
    """The parameters of the last weight before a tensor, and of what came between; from the nearest on."""
    names: dict[str, None] = {}
    steps = [trail]
    for _ in range(_MADE_STEPS):
        if not steps:
            break
        here = steps.pop(0)
        names |= dict.fromkeys(here.weights)
        steps += [parent for parent in here.parents if parent.depth == trail.depth and not parent.parameter]
    return tuple(names)


def moved_axis(name: str, args: tuple[Any, ...], axis: int | None, ndim: int) -> int | None:
    """Where the unit axis is after a permutation; None after a change of shape that may have split it."""
    if axis is None:
        return None
    if name == "permute":
        order = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        places = [int(place) % ndim for place in order]
        return places.index(axis) if axis in places else None
    if name in ("transpose", "swapaxes") and len(args) == 3:
        first, second = int(args[1]) % ndim, int(args[2]) % ndim
        return {first: second, second: first}.get(axis, axis)
    if name == "flatten" and len(args) > 1 and args[1] == 2:
        return axis if axis < 2 else None
    return None


RESHAPES = frozenset(
    (
        "permute",
        "transpose",
        "swapaxes",
        "flatten",
        "reshape",
        "view",
        "unflatten",
        "movedim",
        "t",
        "__get__",
        "unsqueeze",
    )
)
"""Functions after which the unit axis is elsewhere, or is not known."""


def unit_axis(trail: Trail, ndim: int) -> int:
    """The axis that indexes units: as it is known, else the last of matrices and sequences, the second of images."""
    if trail.axis is not None and trail.axis < ndim:
        return trail.axis
    return ndim - 1 if ndim <= 3 else 1
