"""What a weight takes in: sums over positions or by index, means, rows of tables; and dot products of signals."""

from __future__ import annotations

from functools import lru_cache

from fanin import gains
from fanin.errors import FaninError
from fanin.tracing.dataflow import activations_of, carries, contracts, is_activation
from fanin.tracing.records import Operation, Value
from fanin.tracing.vocabulary import ACTIVATIONS, AVERAGES, BY_INDEX, MOVES, NORMS, PAIRS, PRODUCTS, SUMS

_SUMMING, _AVERAGING = 0, 1
"""The modes of embedding bags, by torch's numbers."""


def in_dot_product(signal: Value) -> bool:
    """Whether the last axis of a signal is contracted with another one, by a matrix product or by a product and a sum.

    Moves, dropout and constant factors on the way are passed.
    """
    waiting, seen, width = [signal], {signal.id}, signal.shape[-1]
    while waiting:
        value = waiting.pop()
        for user in value.users:
            if _contracts(user, value, width):
                return True
            scaled = user.target in PRODUCTS and len(activations_of(user)) == 1
            if user.target in MOVES or user.target == "dropout" or scaled:
                waiting += [made for made in user.outputs if made.id not in seen]
                seen.update(made.id for made in user.outputs)
    return False


def _contracts(operation: Operation, value: Value, width: int) -> bool:
    """Whether an operation multiplies a signal with another and sums over an axis of this size."""
    if len(activations_of(operation)) < 2:
        return False
    if operation.target == "einsum":
        return width not in operation.output.shape
    if operation.target in PAIRS:
        first = operation.of(PAIRS[operation.target][0]) is value
        return (value.shape[-1:] if first else value.shape[-2:-1]) == (width,)
    return operation.target == "mul" and _is_summed(operation.output)


def _is_summed(value: Value) -> bool:
    """Whether a value is summed over its last axis, perhaps behind other factors."""
    for user in value.users:
        if user.target == "mul" and _is_summed(user.output):
            return True
        if user.target in ("sum", "mean") and user.output.shape[-1:] != value.shape[-1:]:
            return True
    return False


def summed(signal: Value) -> int:
    """How many numbers were summed up into each of a signal's, where nothing but moves came since; 1 for any other.

    Counted are sums over positions, and sums over the neighbours in a graph: by index, of E edges into N nodes, E/N on
    average; by a constant matrix, what its rows add up to on average; and one more where the node itself is added. The
    sum of a product of signals is none: attention weights that pool add up to one, and masks leave some out.
    """
    return max(round(_terms(signal, beside=True)), 1)


def _terms(signal: Value, *, beside: bool) -> float:
    """The same before rounding; ``beside`` where it may itself be a sum of one such signal and another."""
    value: Value | None = signal
    while value is not None and (producer := value.producer) is not None:
        target, given = producer.target, producer.of("self")
        if target == "sum":
            return 1.0 if given is None or _is_product(given) else given.numel / max(value.numel, 1)
        if target in BY_INDEX:
            return _terms_by_index(producer)
        if target in PAIRS:
            return _row_sum(producer.of(PAIRS[target][0]))
        if target == "embedding_bag":
            return _in_bags(producer, _SUMMING)
        if beside and target == "add" and len(sides := activations_of(producer)) == 2:
            terms = [_terms(side, beside=False) for side in sides]
            return sum(terms) if max(terms) > 1 else 1.0
        value = given if target in MOVES else None
    return 1.0


def _terms_by_index(operation: Operation) -> float:
    """What a sum by index makes of each place on average, itself included where it held a signal."""
    given, made = operation.of("self"), operation.output
    added = next((value for name in BY_INDEX[operation.target] if (value := operation.of(name)) is not None), None)
    if added is None or _is_product(added) or operation.arguments.get("reduce", "sum") not in ("sum", "add"):
        return 1.0
    if operation.target == "index_put" and not operation.arguments.get("accumulate"):
        return 1.0
    return added.numel / max(made.numel, 1) + (given is not None and is_activation(given))


def _row_sum(matrix: Value | None) -> float:
    """What the rows of a constant matrix add up to on average, as of one that says who is whose neighbour."""
    numbers = matrix.constant if matrix is not None else None
    if numbers is None or numbers.dim() < 2:
        return 1.0
    return float(numbers.double().sum(-1).mean())


def _in_bags(operation: Operation, mode: int) -> float:
    """How many rows of a table an embedding bag joins on average, where it does so in this mode."""
    given = operation.of("indices")
    if given is None or operation.arguments.get("mode", _SUMMING) != mode:
        return 1.0
    return given.numel / max(operation.output.shape[0], 1)


def averaged(signal: Value) -> int:
    """How many numbers were averaged into each of a signal's, where they have no mean of their own; 1 for any other.

    Such an average is smaller than they are: by √n where they are independent. What is rectified has a mean, which
    stays.
    """
    value: Value | None = signal
    while value is not None and (producer := value.producer) is not None:
        given = producer.of("self")
        if producer.target == "embedding_bag":
            return max(round(_in_bags(producer, _AVERAGING)), 1)
        if producer.target in AVERAGES:
            centred = given is not None and _is_centred(given)
            return max(given.numel // max(value.numel, 1), 1) if given is not None and centred else 1
        value = given if producer.target in MOVES or producer.target == "dropout" else None
    return 1


def _is_centred(value: Value) -> bool:
    """Whether what a signal holds has no mean: it comes from weights, norms, tables and odd activations alone."""
    waiting, seen = [value], {value.id}
    while waiting:
        producer = waiting.pop().producer
        if producer is None:
            return False
        target = producer.target
        if target in NORMS or target == "embedding" or contracts(producer):
            continue
        if target in ACTIVATIONS:
            if not _is_odd(ACTIVATIONS[target]):
                return False
            continue
        given = activations_of(producer)
        if target not in SUMS and (len(given) != 1 or not carries(producer, next(producer.slots(given[0])))):
            return False
        waiting += [side for side in given if side.id not in seen]
        seen.update(side.id for side in given)
    return True


@lru_cache(maxsize=256)
def _is_odd(activation: str) -> bool:
    """Whether an activation leaves less than a twentieth of its power in its mean."""
    try:
        moments = gains.moments(activation)
    except FaninError:
        return False
    return moments.mean**2 < moments.second_moment / 20


def table_behind(signal: Value) -> str:
    """The table whose rows a signal holds, moved and joined at most; empty for any other, and for several tables."""
    waiting, seen, names = [signal], {signal.id}, set()
    while waiting:
        producer = waiting.pop().producer
        if producer is None:
            return ""
        if producer.target == "embedding":
            table = producer.of("weight")
            names.add(table.name if table is not None else "")
        elif producer.target in MOVES or producer.target == "dropout":
            given = activations_of(producer)
            waiting += [value for value in given if value.id not in seen]
            seen.update(value.id for value in given)
        else:
            return ""
    return names.pop() if len(names) == 1 else ""


def table_beside(position: Value, total: Operation) -> str:
    """The largest table among what a position is added to: rows may have been scaled, and other tables added before."""
    waiting = [value for value in activations_of(total) if value is not position]
    seen, found = {value.id for value in waiting}, dict[str, int]()
    while waiting:
        producer = waiting.pop().producer
        if producer is None:
            continue
        table = producer.of("weight") if producer.target == "embedding" else None
        if table is not None:
            found[table.name] = table.numel
        elif producer.target in (*MOVES, *SUMS, *PRODUCTS, "dropout"):
            given = [value for value in activations_of(producer) if value.id not in seen]
            waiting += given
            seen.update(value.id for value in given)
    return max(found, key=lambda name: found[name], default="")


def _is_product(value: Value | None) -> bool:
    """Whether two signals were multiplied to make a value, up to moves."""
    while value is not None and (producer := value.producer) is not None:
        if producer.target in PRODUCTS or producer.target in PAIRS:
            return len(activations_of(producer)) > 1
        value = producer.of("self") if producer.target in MOVES else None
    return False
