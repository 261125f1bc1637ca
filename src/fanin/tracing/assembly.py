"""From a walked run to the graph: each parameter's node, on top of what its module's type says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from fanin.fans import ELEMENTWISE, EMBEDDING, Axes, Block, even_blocks
from fanin.graph import NEARLY_ONE, WEIGHTS, Graph, Op, ParameterNode, Role
from fanin.tracing.dataflow import activations_of, users_behind_moves
from fanin.tracing.layouts import axes_of
from fanin.tracing.modules import GRU_GATES, LSTM_GATES
from fanin.tracing.packing import Packing
from fanin.tracing.padding import covered
from fanin.tracing.passages import LAST, Terminal
from fanin.tracing.records import Operation, Space, Value
from fanin.tracing.residuals import Residual
from fanin.tracing.roles import role_of
from fanin.tracing.sums import averaged, in_dot_product, summed, table_behind, table_beside
from fanin.tracing.uses import Use, find_uses
from fanin.tracing.vocabulary import CONTRACTIONS, LINKS, PAIRS, PRODUCTS, RECURRENCES, SUMS, VIEWS
from fanin.tracing.walks import Walker

_LAYERS = frozenset({Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE, Role.EMBEDDING})
_SHAPED = frozenset({*_LAYERS, Role.BIAS})
_SIGNAL_WEIGHTS = WEIGHTS - {Role.RECURRENT}
"""Weights of which the record tells whether they feed back; of recurrent layers their names do."""
_STATES = {"mul": "lstm", "add": "gru", "lerp": "gru", "addcmul": "gru", "tanh": "rnn_tanh", "relu": "rnn_relu"}
"""What the last operation of a step says of a recurrence that is written by hand: a gated output, a gated sum, none."""
_LAYER_STATES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_CONFIDENCE = {"fake": 1.0, "optimistic": 0.8, "real": 1.0}

Fields = dict[str, Any]


class Assembler:
    """Fills in nodes from one run.

    Args:
        walker: the walked run.
        base: the graph from module types, which has names, ties, defaults and all parameters.
    """

    def __init__(self, walker: Walker, base: Graph) -> None:
        self._walker = walker
        self._base = base
        self._uses = find_uses(walker.run)
        self._packing = Packing(walker)
        self._ends: dict[int, list[Terminal]] = {}

    def graph(self) -> Graph:
        """The graph of all parameters; those that the run did not use keep what their module's type says."""
        nodes = [self._safe_node(node) for node in self._base]
        order = sorted(
            (self._uses[node.name][0].operation.index, position)
            for position, node in enumerate(nodes)
            if node.ops and node.role in WEIGHTS
        )
        for depth, (_, position) in enumerate(order):
            nodes[position] = replace(nodes[position], depth=depth)
        return Graph(tuple(nodes), self._walker.run.source, notes=tuple(self._walker.run.notes))

    def _safe_node(self, base: ParameterNode) -> ParameterNode:
        """One strange operation must not cost the answers for all other parameters."""
        try:
            return self._node(base)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            note = f"{base.name} is described by its module's type: {type(error).__name__}: {error}"
            self._walker.run.notes.append(note)
            return replace(base, confidence=min(base.confidence, 0.5), evidence=note)

    def _node(self, base: ParameterNode) -> ParameterNode:
        uses = self._uses.get(base.name, [])
        if not uses:
            return replace(base, exercised=False, confidence=min(base.confidence, 0.5), evidence=_unseen(base))
        roles = [_as_scale(role_of(self._walker, use), base) for use in uses]
        role, use = self._primary(roles, uses)
        same = [other for other, played in zip(uses, roles, strict=True) if played == role]
        fields: Fields = {"role": role, "ops": tuple(_op(other.operation) for other in uses), "exercised": True}
        fields["reparametrized"] = use.reparametrized
        fields["offset"] = _offset(use)
        fields["axes"] = self._axes(base, role, use)
        if role in WEIGHTS:
            fields["covered"] = covered(use.operation)
            fields["weight_depth"] = self._walker.flow.weight_depths[use.operation.output.id]
        fields.update(self._after(role, use))
        if role == Role.EMBEDDING:
            fields["times"] = self._walker.sizes.times(use.operation.output)
            heads = [signal for other in uses if (signal := _data(other)) is not None]
            fields["input_rms"] = min(map(self._walker.sizes.behind, heads), default=1.0)
            fields["dot_product"] = in_dot_product(use.operation.output)
            fields["padding_row"] = base.padding_row if base.padding_row is not None else _padding_row(use)
        if role in _SHAPED:
            fields["gate"] = self._gate(same)
        if role in _SIGNAL_WEIGHTS:
            fields["feedback"] = any(other.operation.index in self._fed_back for other in same)
            fields["feeds_state"] = not fields["feedback"] and any(self._feeds_state(other) for other in same)
        reads = base.feeds_state if role == Role.RECURRENT else role in WEIGHTS and not fields["feedback"]
        if reads and not base.state_before:
            fields["state_before"] = self._state_before(use)
        self._pack(base, role, same, fields)
        fields["confidence"] = self._confidence(base, fields)
        fields["evidence"] = self._evidence(use, fields)
        return replace(base, **fields)

    def _primary(self, roles: list[Role], uses: list[Use]) -> tuple[Role, Use]:
        """The first use in execution order; a table that is also read as a matrix stays a table.

        What is added at first and a factor of signals later is a factor: a decay, times a state that starts at zero;
        or the matrix of a recurrence, times such a state.
        """
        if Role.EMBEDDING in roles:
            return Role.EMBEDDING, uses[roles.index(Role.EMBEDDING)]
        if roles[0] == Role.POSITION:
            multiplied = any(link.operation.target in PAIRS for link in uses[0].chain)
            for role, use in zip(roles, uses, strict=True):
                if (role == Role.OTHER and use.operation.target in PRODUCTS) or (multiplied and role in WEIGHTS):
                    return role, use
        return roles[0], uses[0]

    def _axes(self, base: ParameterNode, role: Role, use: Use) -> Axes:
        if role == Role.RECURRENT:
            return base.axes if base.role == role else Axes(blocks=_gates(use, base.shape[0]))
        if role == Role.EMBEDDING or any(link.operation.target == "embedding" for link in use.chain):
            return EMBEDDING if len(base.shape) == 2 else base.axes
        if role in _LAYERS:
            found = axes_of(use)
            if found is not None:
                return found
            return base.axes if base.role == role else _by_position(len(base.shape))
        if role == Role.BIAS and use.operation.target in RECURRENCES:
            return base.axes if base.role == role else Axes((), (0,), blocks=_gates(use, base.shape[0]))
        return ELEMENTWISE

    def _terminals(self, value: Value) -> list[Terminal]:
        if value.id not in self._ends:
            self._ends[value.id] = self._walker.ahead(value)
        return self._ends[value.id]

    def _after(self, role: Role, use: Use) -> Fields:
        """Activation, norms around, residual stream, output."""
        operation = use.operation
        if operation.target in RECURRENCES:
            return self._after_recurrence(role, use)
        ends = self._terminals(operation.output)
        fields: Fields = {}
        fields["activation"], fields["captured"] = self._activation(role, use, ends)
        counted = [end for end in ends if end.kind != "opaque"]
        if role in _LAYERS or role == Role.BIAS:
            inner = [end for end in counted if end.kind != "output"]
            normed = any(end.passage.normed for end in counted)
            fields["norm_after"] = normed and all(end.passage.normed for end in inner)
            fields["output"] = self._ends_model(ends)
        data = _data(use) if role in WEIGHTS else None
        if data is not None:
            fields["norm_before"] = self._walker.behind(data)[0]
            fields["summed"], fields["averaged"] = summed(data), averaged(data)
            fields["table_before"] = table_behind(data)
            fields["input_rms"] = self._walker.sizes.of(data)
        elif role == Role.NORM_SCALE and operation.target in PRODUCTS:
            fields["input_rms"] = min(map(self._walker.sizes.of, activations_of(operation)), default=1.0)
        elif role == Role.POSITION:
            fields["table_before"] = table_beside(use.value, operation)
        fields.update(self._stream(role, use, data))
        return fields

    def _ends_model(self, ends: Sequence[Terminal]) -> bool:
        """Whether nothing but the output comes, perhaps behind a function that gives it the range of its target."""
        return bool(ends) and all(
            end.index == LAST
            if end.kind == "output"
            else end.name in LINKS and end.exit is not None and self._is_output(end.exit)
            for end in ends
        )

    def _is_output(self, value: Value) -> bool:
        return bool(ends := self._terminals(value)) and all(end.index == LAST and end.kind == "output" for end in ends)

    def _gate(self, uses: list[Use]) -> str:
        """What the result is a factor of; a state, which is not there at the first step, before anything else."""
        ends = (end for use in uses for end in self._terminals(use.operation.output))
        found = [gate for gate in map(self._walker.gate_at, ends) if gate]
        return next((gate for gate in found if gate != "factor"), found[0] if found else "")

    def _after_recurrence(self, role: Role, use: Use) -> Fields:
        """A recurrent layer has its non-linearities inside; what feeds it is its first argument."""
        data = _data(use)
        fields: Fields = {}
        if data is not None and role == Role.RECURRENT:
            fields["norm_before"] = self._walker.behind(data)[0]
            fields.update(self._stream(role, use, data))
        return fields

    def _activation(self, role: Role, use: Use, ends: list[Terminal]) -> tuple[str | None, Any]:
        if role == Role.OTHER:
            return None, None
        # A token that a layer takes as its signal meets that layer's weight first.
        meets_weight = role == Role.TOKEN and use.operation.target in (*CONTRACTIONS, *PAIRS)
        return ("none", None) if meets_weight else self._first(ends)

    def _first(self, ends: list[Terminal]) -> tuple[str | None, Any]:
        real = [end for end in ends if end.kind != "skip"]
        if not real:
            return "none", None
        first = real[0]
        if first.kind == "activation":
            found = self._walker.captured_at(first)
            return first.name, found
        return (None, None) if first.kind == "opaque" else ("none", None)

    def _stream(self, role: Role, use: Use, data: Value | None) -> Fields:
        walker, made = self._walker, use.operation.output
        if role in WEIGHTS and data is not None:
            last = walker.last_of(use.operation, data)
            if last is not None and last.residual is not None:
                scale = last.passage.scales[-1] if last.passage.scales else ""
                follows = "tamed_by" if self._tames(scale) else "scaled_by"
                fields = {
                    "residual_last": True,
                    follows: scale,
                    "skip_scaled": walker.residuals.is_scaled(last.residual),
                }
                return {**fields, **self._stream_of(last.residual)}
        given = data or next(iter(activations_of(use.operation)), made)
        enclosing = walker.residuals.enclosing(given, made)
        if enclosing is None or (role == Role.LAYER_SCALE and enclosing.skip.space != Space.ACTIVATION):
            return {}  # around the scale goes a learned token at most, so that all of the input passes it
        return self._stream_of(enclosing)

    def _tames(self, scale: str) -> bool:
        """Whether a norm's scale, or a learned one that is small as constructed, as far as its value is known."""
        if self._walker.run.equal.get(scale, 0.0) < NEARLY_ONE:
            return True
        return any(role_of(self._walker, use) == Role.NORM_SCALE for use in self._uses.get(scale, []))

    def _stream_of(self, residual: Residual) -> Fields:
        residuals, stream = self._walker.residuals, residual.stream
        depth, post_norm = residuals.depths[stream], stream in residuals.post_normed
        return {"stream": stream, "stream_depth": depth, "post_norm": post_norm}

    @cached_property
    def _fed_back(self) -> frozenset[int]:
        """Where weights take in what they put out at the step before, with no weight in between but such.

        A layer that a residual stream passes again and again, as a shared position encoding, is none of them.
        """
        contracting = [part for uses in self._uses.values() for part in _by_part(uses)]
        found: set[int] = set()
        before = -1
        while len(found) > before:
            before = len(found)
            for uses in contracting:
                loops = any(self._loops(use, later, found) for use, later in pairwise(uses))
                if loops and not self._ends_branches(uses):
                    found.update(use.operation.index for use in uses)
        return frozenset(found)

    def _ends_branches(self, uses: Sequence[Use]) -> bool:
        """Whether the last two uses add to a stream that goes on, and not to one input that comes in at every step."""
        sums = [self._sum_behind(use) for use in uses[-2:]]
        return sums[-1] is not None and (sums[0] is None or sums[0].skip is not sums[-1].skip)

    def _sum_behind(self, use: Use) -> Residual | None:
        data = _data(use)
        last = self._walker.last_of(use.operation, data) if data is not None else None
        return last.residual if last is not None else None

    def _loops(self, use: Use, later: Use, passed: set[int]) -> bool:
        data, made = _data(later), use.operation.output
        return (
            data is not None
            and axes_of(use) == axes_of(later)  # not the other way round, as in a tied decoder
            and self._walker.flow.descends(data, made)
            and self._walker.flow.reaches(made, data, passed)
        )

    def _feeds_state(self, use: Use) -> bool:
        """Whether what a weight puts out is added, through moves, to what a weight with feedback puts out."""
        if not self._fed_back:
            return False
        sums = (user for user in users_behind_moves(use.operation.output) if user.target in SUMS)
        return any(self._from_state(value) for user in sums for value in activations_of(user))

    def _state_before(self, use: Use) -> str:
        """The recurrence whose state a weight takes in."""
        value = _data(use)
        while value is not None:
            *_, value = self._walker.flow.back_chain(value)
            producer = value.producer
            if producer is None:
                return ""
            if producer.target in RECURRENCES:
                return next((kind for kind in _LAYER_STATES if kind in producer.target), "")
            if producer.target not in ("cat", "stack"):
                return _STATES.get(producer.target, "") if self._is_state(value) else ""
            value = next(reversed(activations_of(producer)), None)  # none, where constants are joined
        return ""

    def _is_state(self, value: Value) -> bool:
        """Whether no weight lies between a weight with feedback and a value."""
        operations = self._walker.run.operations
        return any(self._walker.flow.reaches(operations[index].output, value) for index in self._fed_back)

    def _from_state(self, value: Value) -> bool:
        chain = self._walker.flow.back_chain(value)
        return any(before.producer is not None and before.producer.index in self._fed_back for before in chain)

    def _pack(self, base: ParameterNode, role: Role, uses: list[Use], fields: Fields) -> None:
        axes: Axes = fields["axes"]
        if role not in _SHAPED or axes.blocks or uses[0].operation.target in RECURRENCES:
            return
        axis = 0 if role == Role.BIAS else axes.out_axis[0] if len(axes.out_axis) == 1 else None
        if role == Role.BIAS and len(base.shape) != 1:
            axis = None
        if axis is None or not self._worth_packing(uses, base.shape[axis]):
            return
        blocks: tuple[Block, ...] = self._packing.blocks_of(uses, axis, base.shape[axis], apart=self._steps(uses))
        if len(blocks) == 1:
            fields["activation"] = blocks[0].activation
        elif blocks:
            fields["axes"] = Axes((), (0,), blocks=blocks) if role == Role.BIAS else axes.with_blocks(blocks)
            fields["activation"], fields["gate"] = None, ""

    def _steps(self, uses: list[Use]) -> bool:
        """Whether a parameter works at every step of a recurrence."""
        return len(uses) > 1 and any(
            use.operation.index in self._fed_back or self._feeds_state(use) for use in uses[:2]
        )

    def _worth_packing(self, uses: list[Use], length: int) -> bool:
        kinds: set[tuple[str, str]] = set()
        selected = any(link.operation.target not in VIEWS for use in uses for link in use.chain)
        for use in uses:
            for end in self._terminals(use.operation.output):
                if end.kind not in ("skip", "output"):
                    kinds.add((end.kind, end.name if end.kind == "activation" else ""))
            selected = selected or self._walker.separated(use.operation.output)
        if ("activation", "glu") in kinds:
            return length > 1
        return selected and length > 1 and (len(kinds) > 1 or self._steps(uses))

    def _confidence(self, base: ParameterNode, fields: Fields) -> float:
        confidence = _CONFIDENCE[self._walker.run.source]
        if base.role not in (fields["role"], Role.OTHER):
            confidence *= 0.6
        if fields.get("activation") is None and not fields["axes"].blocks and fields["role"] in _LAYERS:
            confidence *= 0.7
        return round(confidence, 3)

    def _evidence(self, use: Use, fields: Fields) -> str:
        """The path of operations, in words."""
        operation = use.operation
        parts = []
        if use.chain:
            parts.append("through " + ", ".join(link.operation.target for link in use.chain))
        where = f" in {operation.module}" if operation.module else ""
        parts.append(f"consumed by {operation.target} ({use.slot}){where}")
        if operation.target not in RECURRENCES:
            ends = self._terminals(operation.output)
            met = dict.fromkeys(_end_text(self._walker, end) for end in ends)
            if met:
                parts.append("then " + "; ".join(list(met)[:6]))
        return ", ".join(parts)


def _end_text(walker: Walker, end: Terminal) -> str:
    after = " after a norm" if end.passage.normed else ""
    if end.kind == "output":
        return f"the output{after}"
    place = walker.run.operations[end.index].module
    where = f" at {place}" if place else ""
    if end.kind == "weight":
        return f"the next weight ({end.name}{where}){after}"
    if end.kind in ("residual", "skip"):
        return f"{'a residual sum' if end.kind == 'residual' else 'the skip of a residual sum'}{where}{after}"
    if end.kind == "opaque":
        return f"{end.name}, which the walk does not know{where}"
    return f"{end.name}{where}{after}"


def _by_part(uses: Sequence[Use]) -> list[list[Use]]:
    """The uses that contract a signal, those of each part of the parameter by themselves."""
    parts: dict[str, list[Use]] = {}
    for use in uses:
        if _data(use) is not None:
            parts.setdefault(use.part, []).append(use)
    return list(parts.values())


def _as_scale(role: Role, base: ParameterNode) -> Role:
    """A layer scale by its module's type is one also where no skip goes around it."""
    return Role.LAYER_SCALE if role == Role.OTHER and base.role == Role.LAYER_SCALE else role


def _unseen(base: ParameterNode) -> str:
    return f"not exercised by the traced run; its module's type ({base.module_type or 'unknown'}) describes it"


def _op(operation: Operation) -> Op:
    return Op(operation.index, operation.target, operation.module)


def _padding_row(use: Use) -> int | None:
    """The row that a look-up by a function of torch's keeps for padding; a bag takes it from the end too."""
    row, rows = use.operation.arguments.get("padding_idx"), use.value.shape[0]
    if not isinstance(row, int) or use.chain or (row < 0 and use.operation.target == "embedding"):
        return None
    return row % rows


def _offset(use: Use) -> float:
    """The constants that were added to a parameter before its use."""
    added = 0.0
    for operation in (link.operation for link in use.chain if link.operation.target == "add"):
        given = next((item for name in ("other", "self") if (item := _number(operation.arguments.get(name)))), 0.0)
        added += given * float(operation.arguments.get("alpha", 1))
    return added


def _number(given: Any) -> float:
    """An argument that is one constant number; 0 for any other."""
    if isinstance(given, Value) and given.constant is not None and given.numel == 1:
        return float(given.constant)
    return float(given) if isinstance(given, int | float) else 0.0


def _data(use: Use) -> Value | None:
    """The signal that a weight contracts."""
    operation = use.operation
    if operation.target in RECURRENCES:
        return operation.of("input") or operation.of("data")
    if operation.target in CONTRACTIONS:
        return operation.of(CONTRACTIONS[operation.target].data[0])
    if operation.target in PAIRS:
        names = PAIRS[operation.target][:2]
        return next((value for name, value in operation.inputs if name in names and value is not use.value), None)
    return None


def _by_position(ndim: int) -> Axes:
    """What the axes of an unknown matrix most likely are: torch's layout, experts in front of a stack."""
    return Axes() if ndim == 2 else Axes(in_axis=(ndim - 1,), out_axis=(ndim - 2,), batch_axis=tuple(range(ndim - 2)))


def _gates(use: Use, rows: int) -> tuple[Block, ...]:
    target = use.operation.target
    gates = LSTM_GATES if "lstm" in target else GRU_GATES if "gru" in target else ()
    if not gates or rows % len(gates):
        return ()
    return even_blocks([name for name, _ in gates], rows, [after for _, after in gates])
