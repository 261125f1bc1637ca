"""What a run leaves behind: values and the operations between them, in execution order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a model is called with: its positional and its keyword arguments."""


class Space(IntEnum):
    """What a value is made of. A larger one wins where an operation mixes them."""

    CONSTANT = 0
    """Of nothing but constants and buffers."""
    INDEX = 1
    """Of integer or boolean inputs: ids, masks, positions."""
    WEIGHT = 2
    """Of parameters: a weight on its way through reparametrizations."""
    ACTIVATION = 3
    """Of what flows through the model."""


@dataclass(slots=True, eq=False)
class Value:
    """One tensor at one moment: writing in place makes a new value."""

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str = "op"
    name: str = ""
    producer: Operation | None = None
    output_index: int = 0
    users: list[Operation] = field(default_factory=list)
    constant: torch.Tensor | None = None
    space: Space = Space.CONSTANT

    @property
    def is_float(self) -> bool:
        """Whether it can carry a signal."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def numel(self) -> int:
        """The number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(slots=True, eq=False)
class Operation:
    """One call of a torch operation; its arguments are named as in its schema and hold values in place of tensors."""

    index: int
    target: str
    function: Any
    arguments: dict[str, Any]
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[Value, ...]
    module: str = ""

    def of(self, argument: str) -> Value | None:
        """The value of an argument, where it is a single one."""
        value = self.arguments.get(argument)
        return value if isinstance(value, Value) else None

    def slots(self, value: Value) -> Iterator[str]:
        """The arguments that a value arrives through."""
        return (name for name, given in self.inputs if given is value)

    @property
    def output(self) -> Value:
        """Its first output."""
        return self.outputs[0]


@dataclass(eq=False)
class Run:
    """One traced forward.

    Args:
        source: ``fake``, ``optimistic`` or ``real``.
        parameters: canonical name → value.
        reads: parameter name → its value; a parameter written in place keeps its first.
        outputs: what the model returned.
        sizes: id of an input → how large its numbers are, rounded, where they are not of unit size.
        equal: the number that all of a parameter's values are, for short ones of which all are equal.
        made: the tensors that operations put out, as long as something holds them.
    """

    source: str
    operations: list[Operation] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    sizes: dict[int, float] = field(default_factory=dict)
    equal: dict[str, float] = field(default_factory=dict)
    made: list[weakref.ref[torch.Tensor]] = field(default_factory=list)

    def new_value(self, tensor: torch.Tensor, kind: str, name: str = "") -> Value:
        """A value for a tensor that this run meets for the first time."""
        value = Value(len(self.values), tuple(tensor.shape), tensor.dtype, kind, name)
        self.values.append(value)
        return value
