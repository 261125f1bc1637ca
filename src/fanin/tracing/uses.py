"""Where parameters are consumed: from each parameter through reparametrizations to the operation on the signal."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fanin.tracing.records import Operation, Run, Space, Value
from fanin.tracing.vocabulary import MOVES, QUERIES, SELECTING


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One operation between a parameter and its consumer: what it was given, through which argument, what it made."""

    operation: Operation
    given: Value
    slot: str
    made: Value


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One consumption of a parameter.

    Args:
        parameter: the parameter.
        operation: the consumer.
        slot: the argument that the parameter arrives through.
        value: what arrives there.
        chain: what was done to the parameter before.
    """

    parameter: Value
    operation: Operation
    slot: str
    value: Value
    chain: tuple[Link, ...] = ()

    @property
    def reparametrized(self) -> tuple[str, ...]:
        """The operations in the chain that are more than moves, in order."""
        passive = (*MOVES, "embedding")
        return tuple(link.operation.target for link in self.chain if link.operation.target not in passive)

    @property
    def part(self) -> str:
        """Which part of the parameter is consumed; another one of a stack is another layer."""
        return "".join(_selected(link) for link in self.chain if link.operation.target in SELECTING)


def _selected(link: Link) -> str:
    arguments = link.operation.arguments.items()
    constants = {name: _constant(given) for name, given in arguments if given is not link.given}
    return f"{link.operation.target}{constants}{link.operation.outputs.index(link.made)}"


def _constant(given: object) -> object:
    """A number as itself; of a value, only which one it is, for it knows all that made it."""
    if isinstance(given, Value):
        return f"value {given.id}"
    return [_constant(part) for part in given] if isinstance(given, list | tuple) else given


def find_uses(run: Run) -> dict[str, list[Use]]:
    """Every parameter's uses, in execution order."""
    return {name: _uses_of(value) for name, value in run.parameters.items()}


def _uses_of(parameter: Value) -> list[Use]:
    """Breadth first, so that each consumer is reached by its shortest chain."""
    uses: dict[tuple[int, str], Use] = {}
    waiting: deque[tuple[Value, tuple[Link, ...]]] = deque([(parameter, ())])
    seen = {parameter.id}
    while waiting:
        value, chain = waiting.popleft()
        for operation in {user.index: user for user in value.users}.values():
            if operation.target in QUERIES:
                continue
            slot = next(operation.slots(value))
            if any(output.space == Space.ACTIVATION for output in operation.outputs):
                uses.setdefault((operation.index, slot), Use(parameter, operation, slot, value, chain))
                continue
            for output in operation.outputs:
                if output.id not in seen and output.space == Space.WEIGHT:
                    seen.add(output.id)
                    waiting.append((output, (*chain, Link(operation, value, slot, output))))
    return sorted(uses.values(), key=lambda use: use.operation.index)
