"""Packed weights: which rows of one matrix are queries, which are gates.

The numbers of the rows are put on the channels of the operation's output and carried, by the recorded operations
themselves, to wherever the signal goes; what arrives there are the rows, also when heads are interleaved or gates
alternate with values.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from fanin.fans import Block
from fanin.tracing import compatibility
from fanin.tracing.gates import KEEP, WRITE
from fanin.tracing.layouts import channel_axis
from fanin.tracing.passages import Passage, Step, Terminal
from fanin.tracing.records import Operation, Value
from fanin.tracing.uses import Use
from fanin.tracing.vocabulary import MOVES
from fanin.tracing.walks import Walker

_MOST_VISITS = 4
_LARGE = 1 << 16
_ACCUMULATING = ("index_add", "scatter_add", "scatter_reduce")
_NAMES = {"softmax_q": "q", "softmax_k": "k", "attention_value": "v", "gate_value": "up"}

Key = tuple[str, str | None, int]
"""Block name, activation, and the first row where blocks of one kind are told apart."""

Arrival = tuple[Terminal, torch.Tensor]
"""What is met first, and the sorted channels that meet it."""


class Packing:
    """Blocks of packed weights, over one run; what was replayed for a weight serves for its bias."""

    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._replayed: dict[tuple[int, int], list[Arrival]] = {}

    def blocks_of(self, uses: list[Use], axis: int, length: int, *, apart: bool = False) -> tuple[Block, ...]:
        """The blocks of a parameter along its out axis, one where all rows do the same; none where it cannot be told.

        Args:
            uses: the uses to follow, all in one role.
            axis: the parameter's out axis.
            length: its size.
            apart: rows that meet different operations are different blocks, though the operations are alike; as the
                gates of a recurrence are.
        """
        keys: list[Key] = []
        owners = torch.full((length,), -1)
        found: list[tuple[Key, bool, torch.Tensor]] = []
        for use in uses:
            placed = _rows_on_output(use, axis)
            if placed is None:
                return ()
            channel, numbers = placed
            for terminal, positions in self._arrivals(use.operation.output, channel):
                gate = self._walker.gate_at(terminal)
                rows = numbers[positions]
                rows = rows[rows >= 0]
                place = int(rows[0]) if apart and len(rows) else 0
                found.append(((*_block_key(terminal, gate), place), gate in (KEEP, WRITE), rows))
        # At the first step of a recurrence there is no state yet: what a gate does to it is seen later, and counts.
        for key, _, rows in sorted(found, key=lambda item: not item[1]):
            if key not in keys:
                keys.append(key)
            owners[rows[owners[rows] < 0]] = keys.index(key)
        return _blocks(keys, owners)

    def _arrivals(self, output: Value, channel: int) -> list[Arrival]:
        """Every first thing that is met, in execution order, with the channels that meet it."""
        key = (output.id, channel)
        if key not in self._replayed:
            view = [1] * len(output.shape)
            view[channel] = -1
            labels = torch.arange(output.shape[channel], dtype=torch.int32).view(view).expand(output.shape)
            self._replayed[key] = list(_replay_ahead(self._walker, output, labels))
        return self._replayed[key]


def _blocks(keys: list[Key], owners: torch.Tensor) -> tuple[Block, ...]:
    """The blocks in the order of their first rows, each name once; last the rows that meet nothing that is known."""
    members = [(key, torch.nonzero(owners == place).flatten().tolist()) for place, key in enumerate(keys)]
    named = sorted(((key, rows) for key, rows in members if rows), key=lambda pair: pair[1][0])
    idle = torch.nonzero(owners < 0).flatten().tolist()
    if named and idle:
        named.append((("rest", None, 0), idle))
    names: list[str] = []
    for name, activation, _ in (key for key, _ in named):
        choices = (name, activation or "unknown", *(f"{name}{number}" for number in range(2, len(named) + 2)))
        names.append(next(choice for choice in choices if choice not in names))
    return tuple(Block(name, as_ranges(rows), key[1]) for name, (key, rows) in zip(names, named, strict=True))


def _block_key(terminal: Terminal, gate: str) -> tuple[str, str | None]:
    if terminal.kind == "glu":
        return "gate", terminal.name
    if terminal.kind != "activation":
        return "plain", None if terminal.kind == "opaque" else "none"
    if terminal.name in _NAMES:
        return _NAMES[terminal.name], terminal.name
    return {"factor": "gate"}.get(gate, gate) or terminal.name, terminal.name


def as_ranges(rows: list[int]) -> tuple[range, ...]:
    """Sorted rows as the fewest ranges: runs, or one range with a step where they alternate.

    >>> as_ranges([0, 1, 2, 6, 7, 8]), as_ranges([0, 2, 4])
    ((range(0, 3), range(6, 9)), (range(0, 6, 2),))
    """
    steps = {after - before for before, after in pairwise(rows)}
    if len(steps) < 2:
        step = steps.pop() if steps else 1
        return (range(rows[0], rows[-1] + step, step),) if rows else ()
    breaks = [place for place, (before, after) in enumerate(pairwise(rows), start=1) if after != before + 1]
    return tuple(range(rows[start], rows[end - 1] + 1) for start, end in pairwise([0, *breaks, len(rows)]))


def _rows_on_output(use: Use, axis: int) -> tuple[int, torch.Tensor] | None:
    """The channel axis of the consumer's output, and the parameter's row on each of its channels."""
    shape = use.parameter.shape
    view = [1] * len(shape)
    view[axis] = shape[axis]
    labels: torch.Tensor | None = torch.arange(shape[axis], dtype=torch.int32).view(view).expand(shape)
    for link in use.chain:
        if labels is None:
            return None
        labels = carry(labels, link.operation, link.given, link.made)
    if labels is None:
        return None
    output = use.operation.output.shape
    channel = channel_axis(use.operation, use)
    row = _varying(labels)
    if row is None:
        return None
    if channel is None:
        channel = _broadcast_axis(labels, len(output))
    if channel is None or row.numel() != output[channel]:
        return None
    return channel, row.long()


def _varying(labels: torch.Tensor) -> torch.Tensor | None:
    """The one axis along which the labels vary, as a vector."""
    varying = [axis for axis in range(labels.ndim) if labels.shape[axis] > 1 and labels.stride(axis) != 0]
    if len(varying) > 1:
        varying = [axis for axis in varying if bool((labels.select(axis, 0) != labels.select(axis, 1)).any())]
    if len(varying) != 1:
        return None
    index = [0] * labels.ndim
    return labels[tuple(slice(None) if axis == varying[0] else index[axis] for axis in range(labels.ndim))]


def _broadcast_axis(labels: torch.Tensor, ndim: int) -> int | None:
    """For what is added: the axis of the sum that its numbers fall on."""
    varying = [axis for axis in range(labels.ndim) if labels.shape[axis] > 1]
    return varying[-1] + ndim - labels.ndim if varying else None


def _replay_ahead(walker: Walker, start: Value, labels: torch.Tensor) -> Iterator[Arrival]:
    """Carry labels along every way ahead."""
    found: list[tuple[Terminal, torch.Tensor]] = []
    waiting: list[tuple[Value, Passage, torch.Tensor]] = [(start, Passage(), labels)]
    visits: dict[int, int] = {}
    while waiting:
        value, passage, labels = waiting.pop()
        # A rotary position brings the same value twice, its halves exchanged; more often would only be repetition.
        visits[value.id] = visits.get(value.id, 0) + 1
        if visits[value.id] > _MOST_VISITS:
            continue
        for event in walker.events(value, passage):
            if isinstance(event, Step):
                for output in event.outputs:
                    carried = carry(labels, event.operation, value, output)
                    if carried is not None:
                        waiting.append((output, event.passage, carried))
            elif event.name == "glu":
                found += _glu_halves(walker.run.operations[event.index], event, labels)
            else:
                found.append((event, labels))
    for terminal, carried in sorted(found, key=lambda pair: (pair[0].kind == "skip", pair[0].index)):
        yield terminal, _unique(carried)


def _glu_halves(operation: Operation, terminal: Terminal, labels: torch.Tensor) -> list[tuple[Terminal, torch.Tensor]]:
    first, second = labels.chunk(2, operation.arguments.get("dim", -1))
    value = Terminal("activation", "gate_value", terminal.index, terminal.passage)
    gate = Terminal("glu", "sigmoid", terminal.index, terminal.passage)
    return [(value, first), (gate, second)]


def _unique(labels: torch.Tensor) -> torch.Tensor:
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1 and labels.stride(axis) == 0:
            labels = labels.narrow(axis, 0, 1)
    if labels.numel() > _LARGE:
        labels = _thinned(labels)
    # Counting: sorting, as torch.unique does, is twenty times slower.
    counts = torch.bincount(labels.flatten() + 1)
    return torch.nonzero(counts[1:]).flatten()


def _thinned(labels: torch.Tensor) -> torch.Tensor:
    """Without repetitions along axes of positions: there only the ends (class tokens, padding) can differ."""
    for axis, size in enumerate(labels.shape):
        if size > 8:
            inner = [labels.select(axis, place) for place in (1, size // 2, size - 2)]
            if torch.equal(inner[0], inner[1]) and torch.equal(inner[1], inner[2]):
                labels = labels.index_select(axis, torch.tensor([0, 1, size // 2, size - 2, size - 1]))
    return labels


def carry(labels: torch.Tensor, operation: Operation, given: Value, made: Value) -> torch.Tensor | None:
    """The labels behind an operation: moved as it moves its argument, elsewhere as they were."""
    target = operation.target
    try:
        if operation.function is not None and target in MOVES and target not in ("contiguous", "clone", "to"):
            moved = _replay(labels, operation, given, made)
            if moved is not None and tuple(moved.shape) == made.shape:
                return moved
        return _fitted(labels, made.shape)
    except (RuntimeError, TypeError, IndexError, ValueError):
        return None


def _replay(labels: torch.Tensor, operation: Operation, given: Value, made: Value) -> torch.Tensor | None:
    missing = False

    def stand_in(item: object) -> object:
        nonlocal missing
        if isinstance(item, Value):
            if item is given:
                return labels
            if not item.is_float:
                missing |= item.constant is None
                return item.constant
            return torch.full((), -1, dtype=labels.dtype).expand(item.shape)
        return [stand_in(part) for part in item] if isinstance(item, list) else item

    if operation.target in ("view", "reshape", "view_as", "reshape_as"):
        # Expanded labels have other strides than the tensor had: a view of it may be none of them.
        return labels.reshape(made.shape)
    if operation.target == "expand_as":
        return labels.expand(made.shape)
    if operation.target == "masked_fill":
        return _fitted(labels, made.shape)
    arguments: dict[str, Any] = {name: stand_in(item) for name, item in operation.arguments.items()}
    if missing:
        return None
    if operation.target in _ACCUMULATING or arguments.get("accumulate"):
        return _largest(operation.target, arguments)
    if operation.target in ("index_put", "copy", "scatter", "index_copy") and arguments["self"] is labels:
        arguments["self"] = labels.clone()
    with compatibility.no_modes():
        if operation.target == "cat":
            return _joined(arguments["tensors"], arguments.get("dim", 0), made.shape)
        result = operation.function(**arguments)
    return result if isinstance(result, torch.Tensor) else result[made.output_index]


def _largest(target: str, arguments: dict[str, Any]) -> torch.Tensor:
    """Where numbers are added up: a sum of labels would be another row, the largest is one that arrived."""
    labels: torch.Tensor = arguments["self"]
    if "accumulate" in arguments:
        put = labels.clone().index_put(arguments["indices"], arguments["values"])
        return torch.maximum(labels, put)
    dim, index = arguments["dim"], arguments["index"]
    added = arguments["source"] if target == "index_add" else arguments["src"]
    if target == "index_add":
        view = [1] * added.ndim
        view[dim] = -1
        index = index.view(view).expand(added.shape)
    return labels.scatter_reduce(dim, index, added, "amax")


def _joined(parts: list[torch.Tensor], dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    """``torch.cat`` that stays thin along the axes on which nothing varies: else it takes most of a large trace."""
    for axis in range(len(shape)):
        if axis != dim % len(shape) and all(part.ndim == len(shape) and not part.stride(axis) for part in parts):
            parts = [part.narrow(axis, 0, 1) for part in parts]
    return torch.cat(parts, dim).expand(shape)


def _fitted(labels: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Labels for a result of another shape: along axes of another size, every place has the same rows."""
    if len(shape) < labels.ndim:
        # A reduction: drop the axes that are gone, if the labels do not vary along them.
        keep = _aligned(tuple(labels.shape), shape)
        if keep is None:
            return None
        for axis in reversed([a for a in range(labels.ndim) if a not in keep]):
            labels = labels.select(axis, 0)
    while labels.ndim < len(shape):
        labels = labels.unsqueeze(0)
    for axis, size in enumerate(shape):
        if labels.shape[axis] != size:
            labels = labels.narrow(axis, 0, 1)
    return labels.expand(shape)


def _aligned(longer: tuple[int, ...], shorter: tuple[int, ...]) -> list[int] | None:
    keep, position = [], 0
    for axis, size in enumerate(longer):
        if position < len(shorter) and size == shorter[position]:
            keep.append(axis)
            position += 1
    return keep if position == len(shorter) else None
