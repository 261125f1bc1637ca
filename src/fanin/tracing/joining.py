"""Nodes of two runs in one graph: what counts anew in each run goes on behind what the other has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fanin.graph import Graph, ParameterNode


@dataclass(frozen=True, slots=True)
class Joint:
    """Where the numbers of another run begin in a graph: its streams, its weights and its operations."""

    stream: int
    depth: int
    operation: int

    @classmethod
    def behind(cls, graph: Graph) -> Joint:
        """Behind all that a graph has."""
        return cls(
            _next(node.stream for node in graph),
            _next(node.depth for node in graph),
            _next(op.index for node in graph for op in node.ops),
        )

    def moved(self, node: ParameterNode, prefix: str = "") -> ParameterNode:
        """A node of the other run, in the graph's numbers; the names that it tells are under a prefix there."""
        outer = f"{prefix}." if prefix else ""
        return replace(
            node,
            stream=None if node.stream is None else node.stream + self.stream,
            depth=None if node.depth is None else node.depth + self.depth,
            ops=tuple(replace(op, index=op.index + self.operation) for op in node.ops),
            tamed_by=node.tamed_by and outer + node.tamed_by,
            scaled_by=node.scaled_by and outer + node.scaled_by,
            table_before=node.table_before and outer + node.table_before,
        )


def _next(numbers: Iterable[int | None]) -> int:
    return 1 + max((number for number in numbers if number is not None), default=-1)
