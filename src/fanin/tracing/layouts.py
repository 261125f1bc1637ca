"""The axes of a weight: from the consuming operation's layout back through the views that led to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fanin.fans import EMBEDDING, Axes
from fanin.tracing import compatibility
from fanin.tracing.attention import einsum_labels, einsum_place
from fanin.tracing.records import Operation, Value
from fanin.tracing.uses import Link, Use
from fanin.tracing.vocabulary import CONTRACTIONS, PAIRS, VIEWS

Layout = dict[int, str]
"""Axis of the weight as the operation sees it → ``in``, ``out``, ``batch`` or ``kernel``."""

Sources = list[set[int]]
"""For each axis of a value, the axes of the parameter that it was made from."""

_OPPOSITE = {"in": "out", "out": "in"}


def axes_of(use: Use) -> Axes | None:
    """The axes of a contracting weight; None where they cannot be told."""
    if any(link.operation.target == "embedding" for link in use.chain):
        return EMBEDDING
    layout = layout_at(use.operation, use.slot, use.value)
    if layout is None:
        return None
    traced = _trace_back(use)
    if traced is None:
        return None
    sources, contracted, removed = traced
    parts: dict[int, str] = {}
    for axis, part in layout.items():
        for source in sources[axis] if axis < len(sources) else ():
            parts.setdefault(source, part)
    for source, beside in contracted.items():
        opposite = _OPPOSITE.get(parts.get(beside, ""))
        if opposite is not None:
            parts[source] = opposite
    parts.update({source: "batch" for source in removed if source not in parts})
    return _assemble(use, parts)


def layout_at(operation: Operation, slot: str, value: Value) -> Layout | None:
    """The parts that the axes of a weight play in the operation that consumes it."""
    target, ndim = operation.target, len(value.shape)
    if target in CONTRACTIONS and slot == CONTRACTIONS[target].weight:
        return _slot_layout(operation, ndim)
    if target == "einsum":
        return _einsum_layout(operation, value)
    if target in ("tensordot", "inner", "dot"):
        return _tensordot_layout(operation, slot, ndim)
    if target in PAIRS:
        return _matrix_layout(slot == PAIRS[target][0], value)
    return None


def _slot_layout(operation: Operation, ndim: int) -> Layout:
    kernel = dict.fromkeys(range(2, ndim), "kernel")
    if operation.target == "bilinear":
        return {0: "out", 1: "in", 2: "in"}
    if operation.target == "conv_tbc":
        return {0: "kernel", 1: "in", 2: "out"}
    if is_transposed(operation):
        return {0: "in", 1: "out", **kernel}
    return {0: "out", 1: "in", **kernel} if ndim > 1 else {0: "in"}


def _matrix_layout(is_left: bool, value: Value) -> Layout:
    ndim = len(value.shape)
    if ndim == 1:
        return {0: "in"}
    layout: Layout = {axis: "batch" for axis in range(ndim - 2) if value.shape[axis] > 1}
    layout[ndim - 2], layout[ndim - 1] = ("out", "in") if is_left else ("in", "out")
    return layout


def _einsum_layout(operation: Operation, value: Value) -> Layout | None:
    *terms, out = einsum_labels(operation)
    place = einsum_place(operation, value)
    if len(terms) < 2:
        return None
    others = "".join(term for other, term in enumerate(terms) if other != place)
    kept = {letter: "batch" if letter in others else "out" for letter in out}
    return {axis: kept.get(letter, "in") for axis, letter in enumerate(terms[place])}


def _tensordot_layout(operation: Operation, slot: str, ndim: int) -> Layout:
    if operation.target != "tensordot":
        return {axis: "in" if axis == ndim - 1 else "out" for axis in range(ndim)}
    dims = operation.arguments["dims_self" if slot == "self" else "dims_other"]
    summed = {axis % ndim for axis in dims}
    return {axis: "in" if axis in summed else "out" for axis in range(ndim)}


def is_transposed(operation: Operation) -> bool:
    """Whether a convolution is a transposed one."""
    return operation.target.startswith("conv_transpose") or bool(operation.arguments.get("transposed"))


def channel_axis(operation: Operation, use: Use) -> int | None:
    """The axis of the output that the weight's out axis becomes."""
    target, ndim = operation.target, len(operation.output.shape)
    if target in CONTRACTIONS:
        weight = operation.of(CONTRACTIONS[target].weight)
        kernel = len(weight.shape) - 2 if weight is not None else 0
        return ndim - 1 - kernel if CONTRACTIONS[target].role != "linear" and target != "conv_tbc" else ndim - 1
    if target == "einsum":
        layout = _einsum_layout(operation, use.value)
        outs = [axis for axis, part in (layout or {}).items() if part == "out"]
        if len(outs) != 1:
            return None
        *terms, out = einsum_labels(operation)
        return out.index(terms[einsum_place(operation, use.value)][outs[0]])
    if target in PAIRS:
        return ndim - 2 if use.slot == PAIRS[target][0] and ndim > 1 else ndim - 1
    return ndim - 1 if target in ("embedding", "embedding_bag") else None


def _assemble(use: Use, parts: dict[int, str]) -> Axes | None:
    def those(part: str) -> tuple[int, ...]:
        return tuple(sorted(axis for axis, played in parts.items() if played == part))

    inward, outward = those("in"), those("out")
    if not inward:
        return None
    operation = use.operation
    stride = operation.arguments.get("stride", 1) if CONTRACTIONS.get(operation.target) else 1
    kernel = max(len(use.value.shape) - 2, 1)
    steps = stride if isinstance(stride, list) and len(stride) > 1 else [_single(stride)] * kernel
    convolves = operation.target in CONTRACTIONS and CONTRACTIONS[operation.target].role != "linear"
    return Axes(
        in_axis=inward,
        out_axis=outward,
        batch_axis=those("batch"),
        groups=int(operation.arguments.get("groups", 1)) if convolves else 1,
        stride=math.prod(steps) if convolves else 1,
        transposed=is_transposed(operation),
        factors=operation.target == "bilinear",
    )


def _single(stride: Any) -> int:
    return int(stride[0]) if isinstance(stride, list) else int(stride)


def _trace_back(use: Use) -> tuple[Sources, dict[int, int], set[int]] | None:
    """Where each axis of the consumed value comes from, which axes were contracted beside which, and which are gone."""
    sources: Sources = [{axis} for axis in range(len(use.parameter.shape))]
    contracted: dict[int, int] = {}
    removed: set[int] = set()
    for link in use.chain:
        if link.operation.target in PAIRS and len(sources) >= 2:
            sources = _through_product(link, sources, contracted)
        else:
            before = set().union(*sources)
            after = _through(link, sources)
            if after is None:
                return None
            gone = before - set().union(*after)
            removed |= {axis for axis in gone if use.parameter.shape[axis] > 1}
            sources = after
    return sources, contracted, removed


def _through_product(link: Link, sources: Sources, contracted: dict[int, int]) -> Sources:
    """A product of two weights: one axis survives, the other is contracted and plays the opposite part."""
    rows, columns = sources[-2], sources[-1]
    is_left = link.slot == PAIRS[link.operation.target][0]
    kept, lost = (rows, columns) if is_left else (columns, rows)
    for axis in lost:
        contracted[axis] = min(kept, default=axis)
    matrix = [kept, set[int]()] if is_left else [set[int](), kept]
    return [*sources[:-2], *matrix]


def _through(link: Link, sources: Sources) -> Sources | None:
    operation, ndim = link.operation, len(sources)
    target, arguments, made = operation.target, operation.arguments, len(link.made.shape)
    if target == "permute":
        return [sources[axis] for axis in arguments["dims"]]
    if target in ("transpose", "t", "mT", "numpy_T", "adjoint"):
        first, second = (arguments.get("dim0", -2), arguments.get("dim1", -1)) if ndim > 1 else (0, 0)
        swapped = list(sources)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        return swapped
    if target in ("select", "unbind"):
        axis = arguments.get("dim", 0) % ndim
        return [part for index, part in enumerate(sources) if index != axis]
    if target == "stack":
        axis = arguments.get("dim", 0) % (ndim + 1)
        return [*sources[:axis], set(), *sources[axis:]]
    if target in VIEWS and made != ndim:
        return _through_view(link, sources)
    if made == ndim:
        return sources if target not in VIEWS or link.made.shape == link.given.shape else _through_view(link, sources)
    return [set() for _ in range(made - ndim)] + sources if made > ndim else None


def _through_view(link: Link, sources: Sources) -> Sources | None:
    """Which axes a view is made of, read off its strides."""
    given = torch.empty(link.given.shape, device="meta")
    arguments = {
        name: given if item is link.given else item
        for name, item in link.operation.arguments.items()
        if item is link.given or not isinstance(item, Value)
    }
    try:
        with compatibility.no_modes():
            view = link.operation.function(**arguments)
    except (RuntimeError, TypeError):
        return None
    return [_covering(size, step, given, sources) for size, step in zip(view.shape, view.stride(), strict=True)]


def _covering(size: int, step: int, given: torch.Tensor, sources: Sequence[set[int]]) -> set[int]:
    if size == 1 or step == 0:
        return set()
    covered: set[int] = set()
    for axis, (length, stride) in enumerate(zip(given.shape, given.stride(), strict=True)):
        if length > 1 and (stride <= step < stride * length or step <= stride < step * size):
            covered |= sources[axis]
    return covered
