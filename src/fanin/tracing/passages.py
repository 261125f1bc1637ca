"""The events of a walk: a step through something transparent, or an end, each with what was passed before."""

from __future__ import annotations

from dataclasses import dataclass

from fanin.tracing.records import Operation, Value
from fanin.tracing.residuals import Residual

LAST = 1 << 40
"""The index of the output: behind every operation."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What a signal went through so far.

    Args:
        normed: a norm came before any sum, product or non-linearity.
        broken: a sum with another signal or a product came.
        scales: names of the learned scales, in order.
        gated: a product with a signal that was not computed from this one.
        bent: a non-linearity came.
    """

    normed: bool = False
    broken: bool = False
    scales: tuple[str, ...] = ()
    gated: bool = False
    bent: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Terminal:
    """Where a walk ends.

    Args:
        kind: ``activation``, ``weight``, ``output``, ``residual``, ``skip``, or ``opaque``.
        name: of the activation, or of the operation.
        index: of the operation that ends it; a large number for the output.
        passage: what came before.
        exit: the result of the non-linearity, where there is one.
        residual: the sum, where it is one.
        entry: the value that entered the non-linearity.
    """

    kind: str
    name: str
    index: int
    passage: Passage
    exit: Value | None = None
    residual: Residual | None = None
    entry: Value | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One transparent operation on the way: from a value to its outputs."""

    operation: Operation
    outputs: tuple[Value, ...]
    passage: Passage
