"""Where the kinks of narrow layers lie: a bias is the weight of one more input, which is always 1.

With zero biases the kinks of a layer of rectifiers all pass through the origin. Where it takes in many numbers, they
still cut the data in as many ways as there are units; where it takes in one, all of them cut it at zero, and the whole
net knows nothing of its input but the sign until training has moved them apart. A net of tanh is odd in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fanin.graph import ParameterNode, Role
from fanin.recipes.following import LINEAR, frequency
from fanin.recipes.rules import Decision
from fanin.schemes import Normal, Scheme

NARROW = 4
"""Inputs up to which a bias counts as one of them; from there on it would be a small part of what a unit takes in."""


@dataclass(frozen=True)
class Kinks:
    """The narrow layers of a model, by the names of their biases."""

    weights: dict[str, ParameterNode]
    """The weight that each of these biases is added to."""

    @classmethod
    def of(cls, nodes: Iterable[ParameterNode]) -> Kinks:
        """Look at every parameter once."""
        nodes = list(nodes)
        places = {op.index: node for node in nodes if _is_narrow(node) for op in node.ops}
        biases = [node for node in nodes if node.role == Role.BIAS and node.ops and not node.axes.blocks]
        return cls({node.name: places[node.ops[0].index] for node in biases if node.ops[0].index in places})

    @cached_property
    def _narrow(self) -> frozenset[str]:
        """The names of the weights that have such a bias."""
        return frozenset(weight.name for weight in self.weights.values())

    def share(self, node: ParameterNode, decision: Decision) -> Decision:
        """What a weight gets, less the share of its bias: ``n / (n + 1)`` of the variance where it has ``n`` inputs."""
        if node.name not in self._narrow:
            return decision
        scheme, words = decision
        inputs = node.fans.fan_in
        return scheme.scaled(math.sqrt(inputs / (inputs + 1))), f"{words} and a bias that counts as one more"

    def bias(self, node: ParameterNode, scheme: Scheme) -> Decision:
        """A bias as large as the weights beside it."""
        weight = self.weights[node.name]
        std = scheme.expected(weight.fans, weight.shape, weight.axes).std
        inputs = f"{weight.fans.fan_in:g} input" + ("s" if weight.fans.fan_in != 1 else "")
        words = f"bias of a layer of {inputs}: one more input, which is always 1, so that kinks do not all meet at 0"
        return Normal(float(f"{std:.12g}")), words


def _is_narrow(node: ParameterNode) -> bool:
    """Whether a linear layer takes in few numbers as they come, for something behind it to bend, not to gate or score.

    Convolutions have kinks of their own in every window, and gained nothing in races. What lies deeper takes in what
    other units made, as the mixing of attention heads does: a bias there would be added to every weight of a softmax.
    """
    if node.role != Role.LINEAR or not 0 < node.fans.fan_in <= NARROW or node.axes.blocks or node.gate or node.output:
        return False
    if node.weight_depth != 1 or node.feedback or node.feeds_state or node.residual_last:
        return False
    bends = node.activation == "none" or (node.activation is not None and node.activation not in LINEAR)
    return bends and frequency(node, node.activation) is None
