"""How large the numbers are that a weight takes in, where constants, raw inputs or a unit length decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fanin.tracing.dataflow import Flow, activations_of, is_activation
from fanin.tracing.norms import HandNorm
from fanin.tracing.records import Operation, Space, Value
from fanin.tracing.vocabulary import MOVES, PRODUCTS, QUERIES

LARGE = 16
"""Factors of inputs below this bring them to unit size, as those by a standard deviation do; 255 does not."""
RAW = 4
"""The same for inputs of which the example shows that they are raw."""
OFF = 2
"""A size is worth making up for from this factor on."""

_LENGTHS = frozenset({"linalg_vector_norm", "norm", "sum"})
"""What a vector is divided by, behind a root at most, so that its length is 1; a mean would give its numbers size 1."""
_DEEPEST = 64


class Sizes:
    """The sizes of signals, each found once.

    Args:
        flow: the run.
        norms: its normalizations that are written by hand, unit lengths among them.
    """

    def __init__(self, flow: Flow, norms: Mapping[int, HandNorm]) -> None:
        self._flow = flow
        self._norms = norms
        self._found: dict[int, float] = {}

    def of(self, signal: Value) -> float:
        """The RMS of a signal that constants or a unit length decide; 1 where they do not, or hardly change it.

        A constant has its own; a vector of length 1 and n numbers 1/√n; an input the size of the example's numbers,
        where they are raw, and the large factor by which the model multiplies it, as pixels by 255. Products of such
        signals have the product of their sizes.
        """
        if signal.space == Space.CONSTANT:
            size = max(_rms(signal), 1.0)  # small numbers may be mostly zeros, as masks and one-hot rows are
        else:
            size = self._size(signal, 0)
        return size if max(size, 1 / size) >= OFF else 1.0

    def times(self, signal: Value) -> float:
        """The constant that a signal is multiplied by, before anything else but moves happens to it."""
        factor, value = 1.0, signal
        for _ in range(_DEEPEST):
            users = [user for user in value.users if user.target not in QUERIES]
            if len(users) != 1:
                break
            (user,) = users
            scales = user.target in PRODUCTS and all(
                given is value or given.space == Space.CONSTANT for _, given in user.inputs
            )
            if not (scales or user.target in MOVES or user.target == "dropout"):
                break
            factor *= _constant_factor(user) if scales else 1.0
            value = user.output
        return factor

    def behind(self, signal: Value) -> float:
        """The constant that a signal was multiplied by, since anything but moves happened to it."""
        factor = 1.0
        for value in self._flow.back_chain(signal):
            producer = value.producer
            scales = producer is not None and producer.target in PRODUCTS
            if producer is None or not (scales or producer.target in MOVES or producer.target == "dropout"):
                break
            factor *= _constant_factor(producer) if scales else 1.0
        return factor

    def _size(self, signal: Value, depth: int) -> float:
        if depth > _DEEPEST:
            return 1.0
        if signal.id not in self._found:
            self._found[signal.id] = self._decided(signal, depth + 1)
        return self._found[signal.id]

    def _decided(self, signal: Value, depth: int) -> float:
        factor, value = 1.0, signal
        for value in self._flow.back_chain(signal):
            producer = value.producer
            if producer is None:
                return self._of_input(value, factor)
            norm = self._norms.get(producer.index)
            if norm is not None:
                return factor * _left_by(norm, producer) if value is norm.exit else 1.0
            if producer.target == "sum" and (given := producer.of("self")) is not None:
                # Halfway between √n, for numbers that are independent, and n, for equal ones.
                factor *= (given.numel / max(value.numel, 1)) ** 0.75
            if producer.target in PRODUCTS:
                if any(value.space == Space.WEIGHT for _, value in producer.inputs):
                    return 1.0  # a learned scale may make up for it already
                factor *= _constant_factor(producer)
        producer = value.producer
        parts = activations_of(producer) if producer is not None else []
        if producer is None or len(parts) < 2:
            return 1.0
        sizes = [self._size(part, depth) for part in parts]
        if producer.target == "mul":
            return factor * math.prod(sizes) if any(size != 1 for size in sizes) else 1.0
        joined = producer.target in MOVES and min(sizes) != 1 and max(sizes) < OFF * min(sizes)
        return factor * max(sizes) if joined else 1.0

    def _of_input(self, value: Value, factor: float) -> float:
        """The size of an input behind constant factors: of raw numbers, or of those that a large factor makes."""
        given = self._flow.run.sizes.get(value.id, 1.0)
        large = given * factor >= (LARGE if given == 1 else RAW)
        return given * factor if value.kind == "input" and large else 1.0


def _left_by(norm: HandNorm, last: Operation) -> float:
    """What a division by the length over n numbers leaves of their size: 1/√n. Norms by a mean leave 1."""
    lengths = [op for op in _operations(norm, last) if op.target in _LENGTHS]
    if len(lengths) != 1 or lengths[0].arguments.get("ord", lengths[0].arguments.get("p", 2)) not in (2, None):
        return 1.0
    return math.sqrt(lengths[0].output.numel / max(norm.exit.numel, 1))


def _operations(norm: HandNorm, last: Operation) -> list[Operation]:
    """The operations of a norm, from its last one back."""
    found = {last.index: last}
    waiting = [last]
    while waiting:
        for _, given in waiting.pop().inputs:
            producer = given.producer if is_activation(given) else None
            if producer is not None and producer.index in norm.operations and producer.index not in found:
                found[producer.index] = producer
                waiting.append(producer)
    return list(found.values())


def _constant_factor(operation: Operation) -> float:
    """What an operation multiplies its signal by, where that is a constant."""
    for name in ("self", "other"):
        given = operation.arguments.get(name)
        if isinstance(given, Value) and (given.space != Space.CONSTANT or given.constant is None):
            continue
        size = _rms(given) if isinstance(given, Value) else abs(float(given)) if isinstance(given, int | float) else 1.0
        if not (size and math.isfinite(size)):
            return 1.0
        return 1 / size if operation.target == "div" and name == "other" else size
    return 1.0


def _rms(value: Value) -> float:
    """The size of a constant; 1 where its numbers are not known, and for what holds no real numbers."""
    numbers = value.constant
    if numbers is None or not numbers.numel() or numbers.dtype.is_complex:
        return 1.0
    size = float(numbers.double().square().mean().sqrt())
    return size if math.isfinite(size) else 1.0
