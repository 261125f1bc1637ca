"""What a recorded run means: which values carry signal, what descends from what, and small questions about both."""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cached_property

from fanin.tracing.records import Operation, Run, Space, Value
from fanin.tracing.vocabulary import (
    ACTIVATIONS,
    ATTENTION,
    CONTRACTIONS,
    LINEAR_MAPS,
    LOOKUPS,
    MOVES,
    NORMS,
    PAIRS,
    POOLS,
    PRODUCTS,
    RECURRENCES,
    RULES,
    SELECTING,
    SUMS,
)

_STARTING = frozenset({"layer_norm", "rms_norm", "group_norm"})


class Flow:
    """A run with its values sorted into constants, weights and activations, and their ancestors.

    Args:
        run: the recorded run; the spaces of its values are filled in.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.bits: dict[int, int] = {}
        self.ancestors: list[int] = [0] * len(run.values)
        self.nonlinear = 0
        self.weighted = 0
        for value in run.values:
            value.space = _initial_space(value)
        for operation in run.operations:
            space = _space(operation)
            for value in operation.outputs:
                value.space = space
        for value in run.values:
            if value.is_float and value.space >= Space.WEIGHT:
                self.bits[value.id] = 1 << len(self.bits)
        self._by_bit = list(self.bits)
        self.parameters = sum(self.bits[value.id] for value in run.parameters.values() if value.id in self.bits)
        for operation in run.operations:
            self._descend(operation)

    def _descend(self, operation: Operation) -> None:
        inherited = 0
        for _, value in operation.inputs:
            bit = self.bits.get(value.id)
            if bit:
                inherited |= bit | self.ancestors[value.id]
        outputs = 0
        for value in operation.outputs:
            self.ancestors[value.id] = inherited
            outputs |= self.bits.get(value.id, 0)
        if outputs and operation.output.space == Space.ACTIVATION:
            if is_nonlinear(operation):
                self.nonlinear |= outputs
            if carries_weight(operation):
                self.weighted |= outputs

    def lineage(self, value: Value) -> int:
        """The value and its ancestors, as a set of bits."""
        return self.ancestors[value.id] | self.bits.get(value.id, 0)

    def descends(self, value: Value, ancestor: Value) -> bool:
        """Whether a value was computed from another (or is it)."""
        return bool(self.lineage(value) & self.bits.get(ancestor.id, 0))

    def between(self, ancestor: Value, value: Value, marked: int) -> bool:
        """Whether any marked value lies on a way from an ancestor to a value (itself included)."""
        start = self.bits.get(ancestor.id, 0)
        candidates = self.lineage(value) & marked & ~self.lineage(ancestor)
        while candidates:
            bit = candidates.bit_length() - 1
            if self.ancestors[self._by_bit[bit]] & start:
                return True
            candidates &= ~(1 << bit)
        return False

    def nearest_common(self, first: Value, second: Value) -> Value | None:
        """The latest activation from which both were computed."""
        common = self.lineage(first) & self.lineage(second)
        while common:
            bit = common.bit_length() - 1
            value = self.run.values[self._by_bit[bit]]
            if value.space == Space.ACTIVATION:
                return value
            common &= ~(1 << bit)
        return None

    def back_chain(self, value: Value, *, through_selection: bool = True) -> Iterator[Value]:
        """The value, and what it was before operations that leave its content alone, step by step."""
        while True:
            yield value
            before = self.before(value)
            if before is None or (not through_selection and value.producer and value.producer.target in SELECTING):
                return
            value = before

    def before(self, value: Value) -> Value | None:
        """The one signal from which a transparent operation made a value; None where it was not transparent."""
        operation = value.producer
        if operation is None:
            return None
        signals = [given for name, given in operation.inputs if carries(operation, name) and is_signal(given)]
        unique = {given.id: given for given in signals}
        return next(iter(unique.values())) if len(unique) == 1 else None

    def reaches(self, start: Value, end: Value, passed: Container[int] = ()) -> bool:
        """Whether a way leads from a value to a later one on which no weight contracts the signal.

        Args:
            start: where the way begins.
            end: where it ends.
            passed: contractions, by their index, that do not count.
        """
        last = end.producer.index if end.producer else -1
        waiting, seen = [start], {start.id}
        while waiting:
            value = waiting.pop()
            if value is end:
                return True
            for user in value.users:
                if user.index <= last and (user.index in passed or not contracts(user)):
                    fresh = [made for made in user.outputs if made.id not in seen and self.descends(end, made)]
                    seen.update(made.id for made in fresh)
                    waiting += fresh
        return False

    @cached_property
    def weight_depths(self) -> list[int]:
        """For each value, how many weights contract the signal on the longest way to it; one pass."""
        depths = [0] * len(self.run.values)
        for operation in self.run.operations:
            before = max(
                (depths[value.id] for _, value in operation.inputs if value.space == Space.ACTIVATION), default=0
            )
            for value in operation.outputs:
                depths[value.id] = before + contracts(operation)
        return depths

    def counts(self, operation: Operation) -> bool:
        """Whether what an operation makes goes into what the model returns; all do where that is not known."""
        return not self._live or any(value.id in self._live for value in operation.outputs)

    @cached_property
    def _live(self) -> set[int]:
        live = set(self.run.outputs)
        for operation in reversed(self.run.operations):
            if any(value.id in live for value in operation.outputs):
                live.update(value.id for _, value in operation.inputs)
        return live

    @cached_property
    def weight_operations(self) -> list[Operation]:
        """Contractions of a signal with a weight, in execution order."""
        return [operation for operation in self.run.operations if contracts(operation)]


def is_signal(value: Value) -> bool:
    """Whether a value carries what flows through the model."""
    return value.space >= Space.WEIGHT and value.is_float


def carries(operation: Operation, argument: str) -> bool:
    """Whether a transparent operation passes on the content of an argument: moves, pools, sums and scalings."""
    target = operation.target
    if target in MOVES:
        return argument in MOVES[target]
    if target in POOLS or target in LINEAR_MAPS:
        return argument in ("self", "input")
    if target in SUMS or target in PRODUCTS:
        return argument in ("self", "other")
    if target == "addcmul":
        return True
    return target in RULES and RULES[target][0] in ("move", "pool", "elementwise")


def is_activation(value: Value) -> bool:
    """Whether a value is a floating-point activation."""
    return value.space == Space.ACTIVATION and value.is_float


def activations_of(operation: Operation) -> list[Value]:
    """The distinct activations that an operation reads."""
    found = {value.id: value for _, value in operation.inputs if is_activation(value)}
    return list(found.values())


def users_behind_moves(value: Value) -> Iterator[Operation]:
    """What takes in a value, as it is or moved."""
    waiting, seen = [value], {value.id}
    while waiting:
        for user in waiting.pop().users:
            yield user
            if user.target in MOVES:
                waiting += [made for made in user.outputs if made.id not in seen]
                seen.update(made.id for made in user.outputs)


def is_nonlinear(operation: Operation) -> bool:
    """Whether the output is not linear in the activations that it was computed from."""
    target = operation.target
    if target in ACTIVATIONS or target in RECURRENCES or target == ATTENTION:
        return True
    if target in RULES:
        return RULES[target][0] == "activation"
    if target in PRODUCTS or target in PAIRS:
        return len(activations_of(operation)) > 1
    return target == "pow"


def contracts(operation: Operation) -> bool:
    """Whether a weight contracts an activation here."""
    target = operation.target
    if target in RECURRENCES:
        return True
    if target in CONTRACTIONS:
        weight = operation.of(CONTRACTIONS[target].weight)
        return weight is not None and weight.space == Space.WEIGHT
    if target in PAIRS:
        spaces = [value.space for name, value in operation.inputs if name in PAIRS[target][:2]]
        return Space.WEIGHT in spaces and operation.output.space == Space.ACTIVATION
    return False


def carries_weight(operation: Operation) -> bool:
    """Whether a weight, a norm or a learned scale acts here."""
    if contracts(operation) or operation.target in NORMS or operation.target in RECURRENCES:
        return True
    return operation.target in PRODUCTS and any(value.space == Space.WEIGHT for _, value in operation.inputs)


def _initial_space(value: Value) -> Space:
    if value.kind == "parameter":
        return Space.WEIGHT
    if value.kind == "input":
        return Space.ACTIVATION if value.is_float else Space.INDEX
    return Space.CONSTANT


def _space(operation: Operation) -> Space:
    given = operation.inputs
    if operation.target == "copy":
        given = tuple(pair for pair in given if pair[0] == "src")
    if routes(operation):
        return Space.WEIGHT
    spaces = {value.space for _, value in given}
    if not spaces:
        return Space.CONSTANT
    if Space.WEIGHT in spaces and (Space.INDEX in spaces or _starts(operation)):
        return Space.ACTIVATION
    return max(spaces)


def routes(operation: Operation) -> bool:
    """Whether a weight is picked by numbers that were computed from the signal, as experts are."""
    table = operation.of("self")
    if operation.target not in LOOKUPS or table is None or table.space != Space.WEIGHT:
        return False
    return any(value.space == Space.ACTIVATION and not value.is_float for _, value in operation.inputs)


def _starts(operation: Operation) -> bool:
    """A layer applied to a table: from here on the table is a signal."""
    target = operation.target
    if target in CONTRACTIONS:
        weight = operation.of(CONTRACTIONS[target].weight)
        return weight is not None and weight.space == Space.WEIGHT
    if target in _STARTING:
        weight, signal = operation.of("weight"), operation.of(NORMS[target])
        return weight is not None and weight.kind == "parameter" and signal is not weight
    return target in RECURRENCES
