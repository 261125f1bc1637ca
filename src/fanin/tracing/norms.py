"""Normalizations that are written out by hand: ``x * rsqrt(mean(x²) + ε)``, ``x / ‖x‖``, ``γ (x − mean) / √var``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fanin.tracing.dataflow import Flow, is_activation
from fanin.tracing.records import Operation, Space, Value
from fanin.tracing.vocabulary import POINTWISE, PRODUCTS, REDUCTIONS, ROOTS, VIEWS

_LONGEST = 16
_MORE = frozenset({"amax", "stack", "var_mean", "std_mean"})


@dataclass(frozen=True, slots=True, eq=False)
class HandNorm:
    """One normalization: its operations, where the signal enters and leaves, and what scales it before that."""

    operations: frozenset[int]
    entry: Value
    exit: Value
    scaling: frozenset[int]


def find_norms(flow: Flow) -> dict[int, HandNorm]:
    """Index of an operation → the normalization that it is part of."""
    found: dict[int, HandNorm] = {}
    for operation in flow.run.operations:
        if operation.target in PRODUCTS:
            norm = _norm_at(operation)
            if norm is not None:
                found.update(dict.fromkeys(norm.operations, norm))
    return found


def _norm_at(operation: Operation) -> HandNorm | None:
    first, second = operation.of("self"), operation.of("other")
    if first is None or second is None or not is_activation(first) or not is_activation(second) or first is second:
        return None
    pairs = [(first, second)] if operation.target == "div" else [(first, second), (second, first)]
    for signal, scale in pairs:
        for start, scaling in _unscaled(signal):
            roots, centring = _roots(start)
            inside = _statistic(scale, {value.id for value in roots})
            if inside is not None:
                indices = {operation.index, *inside, *centring, *scaling}
                return HandNorm(frozenset(indices), roots[-1], operation.output, frozenset(scaling))
    return None


def _unscaled(signal: Value) -> Iterator[tuple[Value, set[int]]]:
    """A signal as it is, and what it is before a learned scale multiplies it, with the operation that does."""
    yield signal, set()
    producer = signal.producer
    if producer is None or producer.target != "mul":
        return
    given = {value.id: value for _, value in producer.inputs}.values()
    if any(value.space == Space.WEIGHT for value in given):
        yield from ((value, {producer.index}) for value in given if is_activation(value))


def _roots(signal: Value) -> tuple[list[Value], set[int]]:
    """The signal before casts and before its mean was taken off, and the operations that did so."""
    roots, operations = [signal], set[int]()
    while True:
        producer = roots[-1].producer
        if producer is None or len(operations) > 6:
            return roots, operations
        before = producer.of("self")
        if before is None or not is_activation(before):
            return roots, operations
        if producer.target in ("sub", "add"):
            other = producer.of("other")
            mean = _statistic(other, {before.id}, needs_root=False) if other is not None else None
            if mean is None:
                return roots, operations
            operations |= {producer.index, *mean}
        elif producer.target in ("to", "float", "contiguous"):
            operations.add(producer.index)
        else:
            return roots, operations
        roots.append(before)


def _statistic(scale: Value, roots: set[int], needs_root: bool = True) -> set[int] | None:
    """The operations that compute a statistic of the roots, when `scale` is one and of nothing else."""
    operations: dict[int, Operation] = {}
    waiting, reached, reduced, rooted = [scale], False, False, not needs_root
    while waiting:
        value = waiting.pop()
        if value.id in roots:
            reached = True
            continue
        operation = value.producer
        if operation is None or not is_activation(value):
            if is_activation(value):
                return None
            continue
        if operation.index in operations:
            continue
        target = operation.target
        if len(operations) > _LONGEST or target not in POINTWISE | VIEWS | REDUCTIONS | ROOTS | _MORE:
            return None
        operations[operation.index] = operation
        reduced |= target in REDUCTIONS
        rooted |= target in ROOTS and (target != "pow" or operation.arguments.get("exponent") in (-0.5, 0.5))
        waiting += [given for _, given in operation.inputs if is_activation(given)]
    return set(operations) if reached and reduced and rooted else None
