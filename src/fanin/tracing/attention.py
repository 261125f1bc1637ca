"""Attention that is written out: which products make scores, which weigh values, and who is the query in them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fanin.tracing.dataflow import Flow, activations_of, contracts, is_activation
from fanin.tracing.records import Operation, Space, Value
from fanin.tracing.vocabulary import ATTENTION, CONTRACTIONS, MOVES, PAIRS, POOLS, PRODUCTS, SOFTMAXES, SUMS

SLOTS = {"query": "softmax_q", "key": "softmax_k", "value": "attention_value"}
"""The arguments of torch's fused attention."""

_FARTHEST = 40
"""How many operations may lie between a score and its softmax."""

_CAPPING = frozenset({"tanh", "clamp", "clamp_min", "clamp_max", "masked_fill", "where"})


@dataclass(eq=False)
class Attention:
    """Which side of which product a value is on: (operation, argument or position) → part."""

    parts: dict[tuple[int, int], str] = field(default_factory=dict)
    scores: set[int] = field(default_factory=set)
    """Values on their way from a score to its softmax."""

    def part(self, operation: Operation, value: Value) -> str:
        """``softmax_q``, ``softmax_k``, ``attention_value`` or nothing."""
        return self.parts.get((operation.index, value.id), "")


def find_attention(flow: Flow) -> Attention:
    """Follow every softmax back to the product that makes its scores, and ahead to the one that spends them."""
    found = Attention()
    for operation in flow.run.operations:
        if operation.target == ATTENTION:
            for name, value in operation.inputs:
                if name in SLOTS:
                    found.parts.setdefault((operation.index, value.id), SLOTS[name])
        elif operation.target in SOFTMAXES and is_activation(operation.output):
            spent = _follow_weights(found, operation.output)
            _follow_scores(flow, found, operation, spent)
    return found


def _follow_scores(flow: Flow, found: Attention, softmax: Operation, spent: bool) -> None:
    source = softmax.of("self") or softmax.of("input")
    if source is None:
        return
    axis = softmax.arguments.get("dim", -1)
    waiting = deque([(source, axis % max(len(source.shape), 1), 0, 0)])
    seen: set[tuple[int, int, int]] = set()
    made: list[int] = []
    onward: dict[int, set[int]] = {}
    while waiting:
        value, axis, mixed, steps = waiting.popleft()
        operation = value.producer
        if operation is None or not is_activation(value) or steps > _FARTHEST or (value.id, axis, mixed) in seen:
            continue
        seen.add((value.id, axis, mixed))
        if operation.target in PAIRS and len(_factors(operation)) == 2 and not contracts(operation):
            # A softmax over classes behind a product with an adjacency matrix is no attention.
            if not spent and not all(flow.ancestors[factor.id] & flow.weighted for factor in _factors(operation)):
                continue
            _mark_score(found, operation, axis)
            made.append(value.id)
            continue
        if contracts(operation):
            if mixed or not _mixes_heads(operation):
                continue
            mixed += 1
        elif not _passes_scores(operation):
            continue
        for given in activations_of(operation):
            onward.setdefault(given.id, set()).add(value.id)
            waiting.append((given, _axis_before(operation, given, axis), mixed, steps + 1))
    found.scores.update(_reached(made, onward))


def _reached(start: list[int], onward: dict[int, set[int]]) -> set[int]:
    """All that lies on the ways from some values on."""
    reached, waiting = set[int](), list(start)
    while waiting:
        value = waiting.pop()
        if value not in reached:
            reached.add(value)
            waiting += onward.get(value, ())
    return reached


def _passes_scores(operation: Operation) -> bool:
    target = operation.target
    return target in MOVES or target in SUMS or target in PRODUCTS or target in _CAPPING or target == "dropout"


def _mixes_heads(operation: Operation) -> bool:
    """A small square matrix applied to four-dimensional scores: talking heads."""
    ndims: tuple[int, ...]
    if operation.target in CONTRACTIONS:
        weight, data, ndims = operation.of("weight"), operation.of("input"), (4,)
    else:
        ndims = (3, 4)
        values = [value for name, value in operation.inputs if name in PAIRS[operation.target][:2]]
        weight = next((value for value in values if value.space == Space.WEIGHT), None)
        data = next((value for value in values if is_activation(value)), None)
    return (
        weight is not None
        and data is not None
        and len(data.shape) in ndims
        and len(weight.shape) >= 2
        and weight.shape[0] == weight.shape[1]
        and weight.numel == weight.shape[0] ** 2
        and weight.shape[0] <= 256
    )


def _axis_before(operation: Operation, given: Value, axis: int) -> int:
    """Where the softmax's axis was before a move."""
    ndim = len(given.shape)
    if operation.target == "einsum":
        *terms, out = einsum_labels(operation)
        own = terms[einsum_place(operation, given)]
        return own.index(out[axis]) if axis < len(out) and out[axis] in own else ndim - 1
    if operation.target == "permute":
        return int(operation.arguments["dims"][axis]) % ndim
    if operation.target in ("transpose", "t", "mT"):
        first = operation.arguments.get("dim0", -2) % ndim
        second = operation.arguments.get("dim1", -1) % ndim
        return int({first: second, second: first}.get(axis, axis))
    if axis == len(operation.output.shape) - 1:
        return ndim - 1
    return min(axis + ndim - len(operation.output.shape), ndim - 1) if ndim else 0


def _factors(operation: Operation) -> list[Value]:
    """The two factors of a product, where both carry signal."""
    names = PAIRS[operation.target][:2]
    values = [value for name, value in operation.inputs if name in names]
    return values if len(values) == 2 and all(v.space >= Space.WEIGHT and v.is_float for v in values) else []


def _mark_score(found: Attention, operation: Operation, axis: int) -> None:
    first, second = _factors(operation)
    key_is_second = axis == len(operation.output.shape) - 1
    if operation.target == "einsum":
        *_, right, out = einsum_labels(operation)
        if axis < len(out):
            key_is_second = out[axis] in right
    query, key = (first, second) if key_is_second else (second, first)
    found.parts[operation.index, query.id] = "softmax_q"
    found.parts[operation.index, key.id] = "softmax_k"


def _follow_weights(found: Attention, weights: Value) -> bool:
    """Mark what the softmax's result is multiplied with; say whether there was anything."""
    waiting, seen, spent = [weights], {weights.id}, False
    while waiting:
        value = waiting.pop()
        for operation in value.users:
            spent |= operation.target in PRODUCTS and len(activations_of(operation)) > 1
            if operation.target in PAIRS and not contracts(operation):
                spent = True
                for other in _factors(operation):
                    if other is not value and (operation.index, other.id) not in found.parts:
                        found.parts[operation.index, other.id] = "attention_value"
                        found.parts.setdefault((operation.index, value.id), "attention_weights")
            elif _keeps_weights(operation):
                fresh = [out for out in operation.outputs if out.id not in seen]
                seen.update(out.id for out in fresh)
                waiting += fresh
    return spent


def _keeps_weights(operation: Operation) -> bool:
    target = operation.target
    if contracts(operation):
        return _mixes_heads(operation)
    single = len(activations_of(operation)) == 1
    return (
        target in MOVES
        or (target in POOLS and target == "dropout")
        or ((target in PRODUCTS or target in SUMS) and single)
    )


def einsum_labels(operation: Operation) -> tuple[str, ...]:
    """The letters of an einsum: those of every factor, then the result's; an ellipsis as as many capital letters."""
    equation = str(operation.arguments["equation"]).replace(" ", "")
    given, arrow, out = equation.partition("->")
    terms = given.split(",")
    values = [value for name, value in operation.inputs if name == "tensors"]
    if not arrow:
        letters = [letter for letter in given if letter not in ".,"]
        out = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    dots = "".join(chr(ord("A") + i) for i in range(8))
    spread = max(
        (len(v.shape) - len(s.replace("...", "")) for v, s in zip(values, terms, strict=False) if "..." in s), default=0
    )
    return tuple(part.replace("...", dots[:spread]) for part in (*terms, out))


def einsum_place(operation: Operation, value: Value) -> int:
    """Which factor of an einsum a value is."""
    values = [given for name, given in operation.inputs if name == "tensors"]
    return next(place for place, given in enumerate(values) if given is value)
