"""Residual branches without norms: which of their weights bear the 1/√L that keeps the stream in bounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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

    @classmethod
    def of(cls, nodes: Sequence[ParameterNode]) -> Branches:
        """Find them in a net; none where there are norms, which make up for what weights do."""
        streams: dict[int, list[ParameterNode]] = defaultdict(list)
        for node in nodes:
            if node.stream is not None and node.is_weight:
                streams[node.stream].append(node)
        counted = {stream: _weights(inside) for stream, inside in streams.items()}
        normed = any(is_normed(node) for node in nodes)
        return cls({} if normed else {stream: count for stream, count in counted.items() if count > 1})

    def share(self, node: ParameterNode, activation: str | None) -> tuple[float, str] | None:
        """The factor of a weight with its reason, or None where it bears nothing."""
        count = self.weights.get(node.stream, 0) if node.stream is not None else 0
        if not count or not (node.residual_last or hands_on(node, activation)):
            return None
        depth = node.stream_depth
        place = "last weight of a residual branch" if node.residual_last else "in a residual branch"
        root = f"∜{depth}" if count == 2 else f"{depth}^(1/{2 * count})"
        words = f"{place}, {depth} in the stream, without norms: ÷ {root}, for its {count} weights share 1/√{depth}"
        return depth ** (-1 / (2 * count)), words


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
            counts.add(0 if node.tamed_by or node.post_norm or node.stream_depth < 2 else inner + 1)
        inner = 0 if node.residual_last else inner + hands
    return counts.pop() if len(counts) == 1 else 0
