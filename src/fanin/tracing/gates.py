"""Gates: activated values that multiply signals; those that multiply a state hold it.

The gates of a state are sigmoids that multiply what goes on from step to step, or from layer to layer in highway
networks. Where the sigmoid itself multiplies the state, it keeps it: the forget gate of an LSTM, the update gate of
torch's GRU. Where one minus the sigmoid does, it writes over it: the update gate of many papers, the transform gate of
a highway.
"""

from __future__ import annotations

from fanin.tracing.dataflow import Flow, activations_of, carries, is_activation, users_behind_moves
from fanin.tracing.records import Operation, Value
from fanin.tracing.vocabulary import LINEAR_MAPS, MOVES, PRODUCTS, SELECTING, SUMS

KEEP, WRITE, FACTOR, EXPONENT = "keep", "write", "factor", "exponent"

_SIGMOIDS = frozenset({"sigmoid", "hardsigmoid"})
_FACTORS = {"mul": ("self", "other"), "addcmul": ("tensor1", "tensor2")}
_SIGNS = {("sub", "other"): -1, ("rsub", "self"): -1, ("neg", "self"): -1, ("negative", "self"): -1}


def state_gates(flow: Flow) -> dict[int, str]:
    """What the sigmoids of a run do to the state that they multiply, by the values that they put out.

    A product of a sigmoid and a signal starts a state; the state is what is reached from there through sums, moves and
    signs alone. A sigmoid that multiplies a state behind such a sum, and whose product is added to something again, is
    its gate; and so is one that shares out between a signal and what was computed from that signal. The gates that
    multiply candidates, what a weight made of the state, or an output are none. Parts of a sigmoid are not told apart.
    """
    search = _Search(flow)
    return {gate: KEEP if signs == {1} else WRITE for gate, signs in search.met.items() if len(signs) == 1}


class _Search:
    """One pass over the operations in execution order."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._gates: dict[int, tuple[int, int]] = {}
        """Values that are a sigmoid or one minus it: the sigmoid, and the sign that it has in there."""
        self._products: dict[int, tuple[int, int, Value]] = {}
        """Results of gated products: the sigmoid, its sign, and the signal that it multiplies."""
        self._states: dict[int, tuple[int, bool]] = {}
        """Values that a gated product reaches: the sign it has in there, and whether a sum lies between."""
        self.met: dict[int, set[int]] = {}
        """For each sigmoid that multiplies a state, the signs that it has there."""
        for operation in flow.run.operations:
            if operation.outputs and is_activation(operation.output):
                self._visit(operation)

    def _visit(self, operation: Operation) -> None:
        target, made = operation.target, operation.output
        names = _FACTORS.get(target, ())
        factors = [value for name, value in operation.inputs if is_activation(value) and name in names]
        if target in _SIGMOIDS:
            self._gates[made.id] = made.id, 1
        elif target == "lerp":
            self._interpolate(operation)
        elif len({value.id for value in factors}) == 2:
            self._multiply(operation, factors)
        else:
            self._carry(operation)

    def _multiply(self, operation: Operation, factors: list[Value]) -> None:
        added = operation.target == "addcmul"
        for gate, signal in (factors, factors[::-1]):
            if gate.id in self._gates:
                self._states[operation.output.id] = 1, added
                self._products[operation.output.id] = (*self._gates[gate.id], signal)
                if added or self._is_added(operation.output):
                    self._meet(gate, signal, 1)

    def _interpolate(self, operation: Operation) -> None:
        """``lerp(start, end, gate)`` is ``(1 − gate) · start + gate · end``."""
        gate, start, end = (operation.of(name) for name in ("weight", "self", "end"))
        if gate is None or gate.id not in self._gates or start is None or end is None:
            return
        self._states[operation.output.id] = 1, True
        self._meet(gate, start, -1)
        self._meet(gate, end, 1)
        self._share(*self._gates[gate.id], end, start)

    def _meet(self, gate: Value, signal: Value, side: int) -> None:
        """Note a gate that multiplies a state."""
        sigmoid, sign = self._gates[gate.id]
        state, summed = self._states.get(signal.id, (0, False))
        if summed:
            self.met.setdefault(sigmoid, set()).add(side * sign * state)

    def _share(self, sigmoid: int, sign: int, first: Value, second: Value) -> None:
        """Note a gate that multiplies one signal while one minus it multiplies the other, made of the one."""
        for side, signal, other in ((1, first, second), (-1, second, first)):
            if self._flow.descends(other, signal) and other is not signal:
                self.met.setdefault(sigmoid, set()).add(side * sign)

    def _carry(self, operation: Operation) -> None:
        """Hand on gates and states through what leaves their content alone."""
        target = operation.target
        given = [(name, value) for name, value in operation.inputs if is_activation(value)]
        summed = target in SUMS and len({value.id for _, value in given}) > 1
        parts = [self._products.get(value.id) for _, value in given]
        if summed and (first := parts[0]) and (second := parts[1]) and first[:2] == (second[0], -second[1]):
            self._share(*first, second[2])
        for argument, value in given:
            if carries(operation, argument):
                sign = _SIGNS.get((target, argument), 1)
                for output in operation.outputs:
                    self._hand_on(value, output, sign, summed, target in SELECTING)

    def _hand_on(self, value: Value, output: Value, sign: int, summed: bool, separated: bool) -> None:
        if value.id in self._gates and not summed and not separated:
            sigmoid, before = self._gates[value.id]
            self._gates[output.id] = sigmoid, before * sign
        if value.id in self._states:
            before, behind = self._states[value.id]
            found = self._states.setdefault(output.id, (before * sign, behind or summed))
            if found[0] != before * sign:
                self._states[output.id] = 0, False

    def _is_added(self, value: Value) -> bool:
        """Whether a value meets a sum with another signal before anything but moves."""
        sums = (user for user in users_behind_moves(value) if user.target in (*SUMS, "addcmul"))
        return any(len(activations_of(user)) > 1 for user in sums)


def feeds_gate(found: Value) -> bool:
    """Whether an activated value multiplies another signal."""
    waiting, steps = [found], 0
    while waiting and steps < 16:
        steps += 1
        for user in waiting.pop().users:
            if user.target in ("mul",) and len(activations_of(user)) > 1:
                return True
            if user.target in ("to", "float", "transpose", "view", "reshape", "dropout", "contiguous", "slice"):
                waiting += user.outputs
    return False


def feeds_exponent(found: Value) -> bool:
    """Whether a value is an exponent, up to moves, signs and constants, and the exponential multiplies a signal."""
    waiting, steps = [found], 0
    while waiting and steps < 16:
        steps += 1
        value = waiting.pop()
        for user in value.users:
            if user.target == "exp" and feeds_gate(user.output):
                return True
            alone = len(activations_of(user)) == 1
            if user.target in MOVES or user.target in LINEAR_MAPS or (alone and user.target in (*SUMS, *PRODUCTS)):
                waiting += user.outputs
    return False
