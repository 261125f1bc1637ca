"""Residual sums: which operand goes around, which is the branch, and which sums belong to one stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from fanin.tracing.dataflow import Flow, activations_of, contracts, is_activation, is_signal
from fanin.tracing.norms import HandNorm
from fanin.tracing.records import Operation, Space, Value
from fanin.tracing.vocabulary import (
    ACTIVATIONS,
    ATTENTION,
    CONTRACTIONS,
    MOVES,
    NORMS,
    PRODUCTS,
    RULES,
    SELECTING,
    SUMS,
)

TOKENS = 3 / 4
"""What is joined to fewer others than this share leaves is the same stream: four patches and a class token are."""

_BOUNDED = frozenset({"tanh", "sigmoid", "hardtanh", "hardsigmoid", "softmax"})
_WITH_PARAMETERS = SUMS | PRODUCTS | {"addcmul"}


@dataclass(slots=True, eq=False)
class Residual:
    """One residual sum.

    Args:
        operation: the sum.
        skip: the operand that goes around.
        branch: the operand that was computed.
        root: where the two part.
        projected: the skip passes a weight of its own.
        branches: how many branches the branch operand is itself a sum of.
        stream: the stream's number, in order of execution.
    """

    operation: Operation
    skip: Value
    branch: Value
    root: Value
    projected: bool = False
    branches: int = 1
    stream: int = -1


class Residuals:
    """All residual sums of a run, and the depth of each stream."""

    def __init__(self, flow: Flow, norms: Mapping[int, HandNorm]) -> None:
        self._flow = flow
        self._norms = norms
        self._shifts = _shifts(flow)
        self.by_operation: dict[int, Residual] = {}
        self._by_output: dict[int, Residual] = {}
        for operation in flow.run.operations:
            operands = sum_operands(operation)
            if operands is None or operation.index in norms or not flow.counts(operation):
                continue
            found = self._classify(operation, *operands)
            if found is not None:
                self.by_operation[operation.index] = found
                self._by_output[operation.output.id] = found
        self._in_order = list(self.by_operation.values())
        self.depths: dict[int, int] = {}
        self.post_normed: set[int] = set()
        """Streams of which every sum is normalized before it goes around the next branch."""
        self._number_streams()

    def enclosing(self, given: Value, made: Value) -> Residual | None:
        """The innermost residual sum in whose branch a layer from `given` to `made` lies."""
        first = bisect_left(self._in_order, made.producer.index if made.producer else 0, key=_place)
        for residual in islice(self._in_order, first, None):
            if self._flow.descends(given, residual.root) and self._flow.descends(residual.branch, made):
                return residual
        return None

    def is_scaled(self, residual: Residual) -> bool:
        """Whether the skip is multiplied on its way into the sum, or the branch by a constant."""
        return _weighs(residual.operation) or any(
            operation.target in PRODUCTS and not (way is residual.branch and _has_weight(operation))
            for way in (residual.skip, residual.branch)
            for operation in self._made_by(way, residual.root)
        )

    def _made_by(self, value: Value, root: Value) -> Iterator[Operation]:
        """What made a value by leaving its content alone, back to where the two ways of a sum part."""
        for before in self._flow.back_chain(value):
            if before is root or before.producer is None or self._flow.before(before) is None:
                return
            yield before.producer

    def _classify(self, operation: Operation, first: Value, second: Value) -> Residual | None:
        flow = self._flow
        for skip, branch in ((first, second), (second, first)):
            root = self._skip_root(skip, branch)
            if root is not None and _is_squashed(operation.output) and self._is_selected(skip, root):
                return None  # a candidate for a state, and what its gates let pass of that, from parts of one weight
            if root is not None:
                return Residual(operation, skip, branch, root, branches=self._count(branch, root))
        if not (is_activation(first) and is_activation(second)):
            return None
        root = flow.nearest_common(first, second)
        if root is None:
            return None
        bent = [self._bends(value, root) for value in (first, second)]
        if bent[0] == bent[1]:
            return None
        skip, branch = (second, first) if bent[0] else (first, second)
        if not flow.between(root, skip, flow.weighted) or not self._weight_behind_bend(root, branch):
            return None
        if self._weights_since(root, skip) & self._weights_since(root, branch):
            return None  # one weight on both ways: a step of a recurrence, and the step before it
        return Residual(operation, skip, branch, root, projected=True, branches=self._count(branch, root))

    def _bends(self, value: Value, root: Value) -> bool:
        """Whether a non-linearity lies between the two."""
        return bool(self._flow.between(root, value, self._flow.nonlinear))

    def _weights_since(self, root: Value, value: Value) -> int:
        """The parameters that act between the two and do more than shift, as a set of bits."""
        acting = self._flow.parameters & ~self._shifts
        return self._flow.lineage(value) & acting & ~self._flow.lineage(root)

    def _weight_behind_bend(self, root: Value, branch: Value) -> bool:
        """Whether a layer follows a non-linearity in a branch: a reparametrized sample μ + ε·exp(s) is no residual."""
        flow = self._flow
        inside = (op for op in flow.weight_operations if flow.descends(branch, op.output))
        return any(self._bends(value, root) for op in inside for value in activations_of(op))

    def _is_selected(self, value: Value, root: Value) -> bool:
        """Whether a value is one part of another."""
        for before in self._flow.back_chain(value):
            if before is root:
                return False
            if before.producer is not None and before.producer.target in SELECTING:
                return True
        return False

    def _skip_root(self, skip: Value, branch: Value) -> Value | None:
        """The value from which the branch was computed, with a weight or norm in between; None if there is none."""
        flow = self._flow
        steps = 0
        value: Value | None = skip
        while value is not None and steps < 64:
            steps += 1
            if flow.descends(branch, value) and value is not branch and _can_be_skipped(value):
                return value if flow.between(value, branch, flow.weighted) else None
            before = flow.before(value)
            if before is None and value.id in self._by_output:
                before = self._by_output[value.id].skip
            if before is None:
                before = self._before_shift(value)
            value = before
        return None

    def _before_shift(self, value: Value) -> Value | None:
        """The signal to which nothing but a parameter was added, as Fixup's blocks do for each way on its own."""
        operands = sum_operands(value.producer) if value.producer else None
        if operands is None:
            return None
        signals = [given for given in operands if not self._flow.bits.get(given.id, 0) & self._shifts]
        return signals[0] if len(signals) == 1 else None

    def _count(self, branch: Value, root: Value) -> int:
        """How many parallel branches a branch operand sums up; a linear correction such as LoRA's is none.

        Experts whose weights are a softmax's are one, for the weights add up to one.
        """
        return max(self._leaves(branch, root), 1)

    def _leaves(self, branch: Value, root: Value) -> int:
        value = branch
        for value in self._flow.back_chain(branch):
            operands = sum_operands(value.producer) if value.producer else None
            if operands is None or (value.producer and value.producer.index in self.by_operation):
                continue
            first, second = operands
            if not (is_activation(first) and is_activation(second)):
                continue
            common = self._flow.nearest_common(first, second)
            if common is None or not (self._bends(first, common) and self._bends(second, common)):
                continue
            if self._flow.descends(first, root) and self._flow.descends(second, root):
                return self._leaves(first, root) + self._leaves(second, root)
        return 0 if self._is_share(value.producer) else 1

    def _is_share(self, operation: Operation | None) -> bool:
        """Whether an operation multiplies a signal by what a softmax gave it."""
        if operation is None or operation.target != "mul" or len(factors := activations_of(operation)) < 2:
            return False
        chains = (self._flow.back_chain(factor) for factor in factors)
        return any(value.producer is not None and value.producer.target == "softmax" for c in chains for value in c)

    def _number_streams(self) -> None:
        parents: dict[int, int] = {}

        def find(key: int) -> int:
            while parents.setdefault(key, key) != key:
                key = parents[key]
            return key

        continued: list[tuple[Residual, bool]] = []
        for residual in self.by_operation.values():
            origin, normed = self._origin(residual.root)
            parents[find(residual.operation.output.id)] = find(origin.id)
            if origin.id in self._by_output:
                continued.append((residual, normed))
        numbers: dict[int, int] = {}
        for residual in self.by_operation.values():
            key = find(residual.operation.output.id)
            residual.stream = numbers.setdefault(key, len(numbers))
            self.depths[residual.stream] = self.depths.get(residual.stream, 0) + residual.branches
        self.post_normed.update(residual.stream for residual, normed in continued if normed)
        self.post_normed.difference_update(residual.stream for residual, normed in continued if not normed)

    def _origin(self, value: Value) -> tuple[Value, bool]:
        """The residual sum (or the first value) that a stream comes from, and whether a norm lies behind it."""
        normed = False
        while value.id not in self._by_output:
            before, producer = self._flow.before(value), value.producer
            if before is None and producer is not None:
                before = self._behind(producer)
                normed |= producer.index in self._norms or producer.target in NORMS
            if before is None or before.space != Space.ACTIVATION:
                break
            value = before
        return value, normed

    def _behind(self, operation: Operation) -> Value | None:
        if operation.target == "cat":
            return _most_of(operation) or self._coupled(operation)
        norm = self._norms.get(operation.index)
        if norm is not None:
            return norm.entry
        if operation.target in NORMS:
            return operation.of(NORMS[operation.target])
        given = activations_of(operation)
        if operation.target in _WITH_PARAMETERS and len(given) == 1:
            return given[0]  # a scale or a shift that is learned, as MobileBERT has them in place of norms
        kind = RULES.get(operation.target, ("", ""))[0]
        if (operation.target in ACTIVATIONS or kind in ("activation", "norm")) and len(given) == 1:
            return given[0]
        return None

    def _coupled(self, operation: Operation) -> Value | None:
        """A part of a stream that a coupling added to, put beside the stream's other parts; None for other signals."""
        parts = activations_of(operation)
        for part in parts:
            root = self._root_of_sum(part)
            if root is not None and len(parts) > 1 and all(self._is_part(other, root) for other in parts):
                return part
        return None

    def _root_of_sum(self, value: Value) -> Value | None:
        """Where the two sides of the residual sum parted that made a value, up to moves of the whole."""
        chain = self._flow.back_chain(value, through_selection=False)
        found = (self._by_output.get(before.id) for before in chain)
        return next((residual.root for residual in found if residual is not None), None)

    def _is_part(self, value: Value, root: Value) -> bool:
        """Whether a value is a part of a stream, as it was or with branches added."""
        current: Value | None = value
        while current is not None:
            if any(before is root for before in self._flow.back_chain(current)):
                return True
            current = self._root_of_sum(current)
        return False


def _place(residual: Residual) -> int:
    return residual.operation.index


def _most_of(operation: Operation) -> Value | None:
    """The signal beside which only a few tokens are put, as the class token of every scale in CoaT; None for others."""
    largest = max(activations_of(operation), key=lambda value: value.numel, default=None)
    return largest if largest is not None and largest.numel > TOKENS * operation.output.numel else None


def _shifts(flow: Flow) -> int:
    """The parameters that are added and do nothing else, as a set of bits."""
    added = (
        value for value in flow.run.parameters.values() if value.users and all(op.target in SUMS for op in value.users)
    )
    return sum(flow.bits.get(value.id, 0) for value in added)


def _is_squashed(value: Value) -> bool:
    """Whether nothing but activations that are bounded takes in a value."""
    return bool(value.users) and all(user.target in _BOUNDED for user in value.users)


def _weighs(operation: Operation) -> bool:
    """Whether a sum has a factor of its own: ``torch.add(branch, stream, alpha=2)``."""
    return bool(operation.arguments.get("alpha", 1) != 1)


def _has_weight(operation: Operation) -> bool:
    return any(value.space == Space.WEIGHT for _, value in operation.inputs)


def sum_operands(operation: Operation | None) -> tuple[Value, Value] | None:
    """The two signals of a sum, where it has two; one of them may be a parameter on its way."""
    if operation is None:
        return None
    if operation.target in SUMS:
        first, second = operation.of("self"), operation.of("other")
    elif operation.target == "addcmul":
        first = operation.of("self")
        factors = [operation.of("tensor1"), operation.of("tensor2")]
        moving = [factor for factor in factors if factor is not None and is_activation(factor)]
        second = moving[0] if len(moving) == 1 else None
    else:
        return None
    if first is None or second is None or first is second or not (is_signal(first) and is_signal(second)):
        return None
    return (first, second) if is_activation(first) or is_activation(second) else None


_SEQUENCE = frozenset({"cat", "stack", "layer_norm", "rms_norm", *CONTRACTIONS, ATTENTION})
"""What takes a learned token as a signal of its own."""


def _can_be_skipped(value: Value) -> bool:
    """An activation; or a learned token, which takes a place in the sequence, unlike a position, which is added."""
    if value.space == Space.ACTIVATION:
        return True
    waiting, seen = [value], 0
    while waiting and seen < 32:
        seen += 1
        for user in waiting.pop().users:
            if user.target in _SEQUENCE and user.output.space == Space.ACTIVATION:
                return True
            if user.target in MOVES and user.output.space == Space.WEIGHT:
                waiting += user.outputs
    return False


def is_weight_slot(operation: Operation, argument: str) -> bool:
    """Whether a signal enters a contraction as its kernel (dynamic convolutions)."""
    return (
        operation.target in CONTRACTIONS
        and argument == CONTRACTIONS[operation.target].weight
        and not contracts(operation)
    )
