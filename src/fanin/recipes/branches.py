"""Residual branches without norms: which of their weights bear the 1/√L that keeps the stream in bounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fanin.graph import ParameterNode
from fanin.recipes.questions import bounded, hands_on, is_gate, is_normed


@dataclass(frozen=True)
class Branches:
    """Streams whose branches run through the same number of weights, two at least, with no norm and no gate.

    Borne by the last weight alone, 1/√L would hold back what comes before it, for the gradient passes through the
    last. Shared, the branch is as large, and all of its weights learn alike.
    """

    weights: dict[int, int]
    """Of each such stream, how many weights a branch runs through."""
    in_a_row: int
    """How many branches follow one another in all streams, where one stream leads on to the next; else 0."""

    @classmethod
    def of(cls, nodes: Sequence[ParameterNode], linear: bool = False) -> Branches:
        """Find them in a net.

        Args:
            nodes: its parameters; where there are norms, they make up for what weights do.
            linear: the layers between the streams start as one linear map, which branches disturb.
        """
        streams: dict[int, list[ParameterNode]] = defaultdict(list)
        for node in nodes:
            if node.stream is not None and node.is_weight:
                streams[node.stream].append(node)
        counted = {stream: _weights(inside) for stream, inside in streams.items()}
        normed = any(map(is_normed, nodes))
        shared = {} if normed else {stream: count for stream, count in counted.items() if count > 1}
        last = [node for node in nodes if node.residual_last and not (node.tamed_by or node.post_norm)]
        return cls(shared, 0 if normed and not linear else in_a_row(last))

    def depth(self, node: ParameterNode) -> int:
        """How many branches share the growth of the signal: those of the stream, or of all streams in a row.

        Without norms what one stream has grown to goes into the next.
        """
        return max(node.stream_depth, self.in_a_row)

    def counted(self, node: ParameterNode) -> str:
        """Their number in words."""
        depth = self.depth(node)
        return f"{depth} in the stream" if depth == node.stream_depth else f"{depth} in streams one after the other"

    def share(self, node: ParameterNode, activation: str | None) -> tuple[float, str] | None:
        """The factor of a weight with its reason, or None where it bears nothing."""
        count = self.weights.get(node.stream, 0) if node.stream is not None else 0
        depth = self.depth(node)
        if not count or depth < 2 or not (node.residual_last or hands_on(node, activation)):
            return None
        place = "last weight of a residual branch" if node.residual_last else "in a residual branch"
        root = f"∜{depth}" if count == 2 else f"{depth}^(1/{2 * count})"
        words = f"{place}, {self.counted(node)}, without norms: ÷ {root}, for its {count} weights share 1/√{depth}"
        return depth ** (-1 / (2 * count)), words


def in_a_row(last: Iterable[ParameterNode]) -> int:
    """How many branches follow one another, told by their last weights: branches side by side end at one depth."""
    return len({node.weight_depth for node in last})


def _weights(inside: Sequence[ParameterNode]) -> int:
    """Of a stream's weights, how many a branch runs through; 0 where branches differ, multiply or are held small.

    What an activation bounds should fill it: a share of the division would leave it linear.
    """
    counts, inner = set[int](), 0
    for node in sorted(inside, key=lambda node: node.ops[0].index if node.ops else 0):
        hands = hands_on(node, node.activation)
        if is_gate(node) or ((hands or node.residual_last) and bounded(node.activation)):
            return 0
        if node.residual_last:
            counts.add(0 if node.tamed_by or node.post_norm else inner + 1)
        inner = 0 if node.residual_last else inner + hands
    return counts.pop() if len(counts) == 1 else 0
