"""Walks along the signal: ahead to what a value meets first, and back to what it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fanin.graph import Activation
from fanin.tracing.activations import ActivationFinder, registered_activation
from fanin.tracing.attention import find_attention
from fanin.tracing.dataflow import Flow, activations_of, carries, contracts, is_activation, is_signal
from fanin.tracing.gates import EXPONENT, FACTOR, feeds_exponent, feeds_gate, state_gates
from fanin.tracing.norms import find_norms
from fanin.tracing.passages import LAST, Passage, Step, Terminal
from fanin.tracing.records import Operation, Run, Space, Value
from fanin.tracing.residuals import Residuals, is_weight_slot
from fanin.tracing.sizes import Sizes
from fanin.tracing.vocabulary import (
    ATTENTION,
    CONTRACTIONS,
    LINEAR_MAPS,
    MOVES,
    NORMS,
    PAIRS,
    POOLS,
    PRODUCTS,
    QUERIES,
    RECURRENCES,
    RULES,
    SELECTING,
    SUMS,
)

_State = tuple[int, Passage, bool]
"""A value on a walk, how it was reached, and whether the walk goes through products."""


class Walker:
    """The laws of walking, over one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.flow = Flow(run)
        self.norms = find_norms(self.flow)
        self.attention = find_attention(self.flow)
        self.residuals = Residuals(self.flow, self.norms)
        self.sizes = Sizes(self.flow, self.norms)
        self.activations = ActivationFinder(self.norms)
        self._separating: set[int] = set()
        self._ahead: dict[_State, tuple[Value, Passage]] = {}
        """Where a way that does not fork leads: a long sum is not walked anew from each of its layers."""
        self._state_gates = state_gates(self.flow)

    def separated(self, start: Value) -> bool:
        """Whether a walk from here, already made, passed an operation that takes parts apart."""
        return start.id in self._separating

    def captured_at(self, terminal: Terminal) -> Activation | None:
        """The moments of the non-linearity that ends a walk, where its name does not tell them."""
        entry = terminal.entry
        found = self.activations.at(entry) if entry is not None else None
        return found.captured if found is not None and found.name == terminal.name else None

    def gate_at(self, terminal: Terminal) -> str:
        """What the non-linearity that ends a walk multiplies, as in ``ParameterNode.gate``; '' where it does not."""
        if terminal.kind != "activation" or terminal.exit is None:
            return ""
        held = self._state_gates.get(self.run.operations[terminal.index].output.id, "")
        if held:
            return held
        if feeds_gate(terminal.exit):
            return EXPONENT if terminal.name == "exp" else FACTOR
        return EXPONENT if feeds_exponent(terminal.exit) else ""

    def last_of(self, operation: Operation, data: Value) -> Terminal | None:
        """The residual sum in whose branch this layer is the last weight; None if another weight follows."""
        for end in self.ahead(operation.output, through_products=True):
            residual = end.residual
            if end.kind != "residual" or residual is None or not self.flow.descends(data, residual.root):
                continue
            if end.passage.gated and self._weight_between(operation.output, residual.branch):
                continue
            return end
        return None

    def _weight_between(self, made: Value, branch: Value) -> bool:
        contracted = [op for op in self.flow.weight_operations if op.output is not made]
        return any(self.flow.descends(op.output, made) and self.flow.descends(branch, op.output) for op in contracted)

    def ahead(self, start: Value, *, through_products: bool = False) -> list[Terminal]:
        """Every first thing that a value meets, in execution order."""
        terminals: list[Terminal] = []
        waiting = [(start, Passage())]
        seen: set[tuple[int, bool, bool, bool]] = set()
        straight: list[_State] = []
        while waiting:
            value, passage = waiting.pop()
            key = (value.id, passage.normed, passage.broken, passage.bent)
            if key in seen:
                straight.clear()
                continue
            seen.add(key)
            state = (value.id, passage, through_products)
            if state in self._ahead:
                straight.append(state)
                waiting.append(self._ahead[state])
                continue
            events = list(self.events(value, passage, through_products))
            if _goes_straight_on(events):
                straight.append(state)
            else:
                self._ahead.update(dict.fromkeys(straight, (value, passage)))
                straight.clear()
            for event in events:
                if isinstance(event, Terminal):
                    terminals.append(event)
                    if through_products and event.exit is not None and not event.passage.gated:
                        waiting.append((event.exit, replace(event.passage, bent=True, broken=True)))
                else:
                    if event.operation.target in SELECTING:
                        self._separating.add(start.id)
                    waiting += [(output, event.passage) for output in event.outputs]
        return sorted(terminals, key=lambda terminal: terminal.index)

    def events(self, value: Value, passage: Passage, through_products: bool = False) -> Iterator[Terminal | Step]:
        """What one value meets: ends, and transparent steps."""
        if value.id in self.run.outputs:
            yield Terminal("output", "output", LAST, passage)
        if not value.is_float:
            return
        taken: set[int] = set()
        found = self.activations.at(value) if value.id not in self.attention.scores else None
        if found is not None:
            taken |= found.operations
            yield Terminal("activation", found.name, min(found.operations), passage, found.exit, entry=value)
        for operation in {user.index: user for user in value.users}.values():
            if operation.index in taken or operation.target in QUERIES:
                continue
            norm = self.norms.get(operation.index)
            if norm is not None:
                taken |= norm.operations
                yield Step(operation, (norm.exit,), _normed(passage))
                continue
            yield from self._meet(operation, value, passage, through_products)

    def _meet(
        self, operation: Operation, value: Value, passage: Passage, through_products: bool
    ) -> Iterator[Terminal | Step]:
        target, index = operation.target, operation.index
        part = self.attention.part(operation, value)
        if part == "attention_value" and through_products:
            yield Step(operation, operation.outputs[:1], replace(passage, broken=True, gated=True))
        elif part and part != "attention_weights":
            yield Terminal("activation", part, index, passage)
        elif part or target == ATTENTION:
            yield Step(operation, operation.outputs[:1], replace(passage, broken=True))
        elif target == "glu":
            yield Terminal("activation", "glu", index, passage, operation.output)
        elif name := registered_activation(operation):
            yield Terminal("activation", name, index, passage, operation.output)
        elif target in NORMS:
            scaled = operation.of("weight")
            entered = operation.of(NORMS[target]) is value
            scales = (*passage.scales, scaled.name) if scaled is not None and scaled.name else passage.scales
            yield Step(operation, operation.outputs[:1], _normed(replace(passage, scales=scales), entered))
        elif target in RECURRENCES:
            yield Terminal("weight", target, index, passage)
        elif target in CONTRACTIONS or target in PAIRS:
            yield from self._contract(operation, value, passage)
        elif target in SUMS or target == "addcmul":
            yield from self._sum(operation, value, passage)
        elif target in PRODUCTS:
            yield from self._product(operation, value, passage, through_products)
        elif target in RULES or target in MOVES or target in POOLS or target in LINEAR_MAPS:
            yield from self._carry(operation, value, passage)
        elif target == "autograd_grad":  # a potential of which only the force is returned ends the model too
            if operation.of("inputs") is not value:
                yield Terminal("output", "output", LAST, passage)
        elif any(is_activation(output) for output in operation.outputs):
            yield Terminal("opaque", target, index, passage)

    def _carry(self, operation: Operation, value: Value, passage: Passage) -> Iterator[Terminal | Step]:
        if operation.target in RULES and RULES[operation.target][0] == "norm":
            yield Step(operation, operation.outputs[:1], _normed(passage))
        elif any(carries(operation, name) for name in operation.slots(value)):
            kept = tuple(output for output in operation.outputs if output.is_float)
            yield Step(operation, kept, passage)

    def _contract(self, operation: Operation, value: Value, passage: Passage) -> Iterator[Terminal | Step]:
        names = set(operation.slots(value))
        added = PAIRS[operation.target][2] if operation.target in PAIRS else "bias"
        if names == {added} and added:
            yield Step(operation, operation.outputs, replace(passage, broken=True))
        elif contracts(operation) and not any(is_weight_slot(operation, name) for name in names):
            yield Terminal("weight", operation.target, operation.index, passage)
        else:
            yield Step(operation, operation.outputs[:1], replace(passage, broken=True, gated=True))

    def _sum(self, operation: Operation, value: Value, passage: Passage) -> Iterator[Terminal | Step]:
        residual = self.residuals.by_operation.get(operation.index)
        if operation.target == "addcmul" and operation.of("self") is not value:
            scale = next((g.name for n, g in operation.inputs if g.space == Space.WEIGHT and n != "self"), "")
            if scale:
                passage = replace(passage, scales=(*passage.scales, scale))
        if residual is not None:
            kind = "skip" if value is residual.skip and value is not residual.branch else "residual"
            yield Terminal(kind, operation.target, operation.index, passage, residual=residual)
            return
        others = [given for _, given in operation.inputs if given is not value and is_signal(given)]
        shifts = any(is_activation(other) or _spreads(other) for other in others)
        yield Step(operation, operation.outputs, replace(passage, broken=passage.broken or shifts))

    def _product(
        self, operation: Operation, value: Value, passage: Passage, through_products: bool
    ) -> Iterator[Terminal | Step]:
        partners = [given for given in activations_of(operation) if given is not value]
        if not partners:
            scale = next((name_behind(g) for _, g in operation.inputs if g.space == Space.WEIGHT), "")
            scales = (*passage.scales, scale) if scale else passage.scales
            yield Step(operation, operation.outputs, replace(passage, scales=scales))
            return
        partner = partners[0]
        follows = replace(passage, broken=True)
        if operation.target == "div" and operation.of("other") is value:
            yield Terminal("opaque", "div", operation.index, passage)
        elif not partner.is_float or _is_broadcast(partner, value) or self.gates_itself(value, partner):
            yield Step(operation, operation.outputs, follows)
        elif through_products and not passage.bent:
            yield Step(operation, operation.outputs, replace(follows, gated=True))
        elif operation.target == "div":
            yield Step(operation, operation.outputs, follows)
        else:
            yield Terminal("activation", "gate_value", operation.index, passage)

    def gates_itself(self, value: Value, partner: Value) -> bool:
        """Squeeze and excitation: the factor was computed, through weights, from what it multiplies."""
        flow = self.flow
        for before in flow.back_chain(value, through_selection=False):
            if flow.descends(partner, before):
                return flow.between(before, partner, flow.weighted)
        return False

    def behind(self, value: Value) -> tuple[bool, list[str]]:
        """Whether a normalization made a value, through moves and pooling, and the steps back to it in words."""
        words: list[str] = []
        waiting, seen, normed = [value], set[int](), []
        while waiting:
            current = waiting.pop()
            operation = current.producer
            if current.id in seen:
                continue
            seen.add(current.id)
            if operation is None:
                normed.append(False)
                continue
            if operation.index in self.norms or self._is_norm(operation):
                normed.append(True)
                continue
            sources = self._sources(operation)
            words.append(operation.target)
            if not sources:
                normed.append(False)
            waiting += sources
        return bool(normed) and all(normed), words

    def _is_norm(self, operation: Operation) -> bool:
        target = operation.target
        return target in NORMS or (target in RULES and RULES[target][0] == "norm")

    def _sources(self, operation: Operation) -> list[Value]:
        """Where a transparent operation's signal comes from; nothing where it is not transparent."""
        target = operation.target
        given = [value for name, value in operation.inputs if is_activation(value) and carries(operation, name)]
        if target in MOVES or target in POOLS or target in RULES or target in LINEAR_MAPS:
            return given
        if target in SUMS or target in PRODUCTS or target == "addcmul":
            return given if len({value.id for value in given}) == 1 else []
        return []


def _goes_straight_on(events: list[Terminal | Step]) -> bool:
    """Whether a value meets one transparent step to one other value, which takes no parts apart."""
    if len(events) != 1 or isinstance(events[0], Terminal):
        return False
    return len(events[0].outputs) == 1 and events[0].operation.target not in SELECTING


def _normed(passage: Passage, entered: bool = True) -> Passage:
    return replace(passage, normed=passage.normed or (entered and not passage.broken))


def name_behind(value: Value) -> str:
    """The parameter that a weight on its way was made from; the first of several."""
    steps = 0
    current: Value | None = value
    while current is not None and steps < 32:
        steps += 1
        if current.kind == "parameter":
            return current.name
        producer = current.producer
        current = (
            next((given for _, given in producer.inputs if given.space == Space.WEIGHT), None) if producer else None
        )
    return ""


def _spreads(value: Value) -> bool:
    """Whether a learned summand differs from place to place, as a position does and a bias does not."""
    return sum(size > 1 for size in value.shape) > 1


def _is_broadcast(partner: Value, value: Value) -> bool:
    """Whether a factor is one number a position (a routing weight), not one a feature."""
    if len(value.shape) < 2 or partner.numel >= value.numel:
        return False
    shape = (1,) * (len(value.shape) - len(partner.shape)) + partner.shape
    if len(value.shape) <= 3:
        return shape[-1] == 1 and value.shape[-1] > 1
    return shape[1] == 1 and value.shape[1] > 1 and shape[-1] == 1
