"""Deep plain nets: weights one after the other without streams, products, highways or recurrences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fanin import gains, meanfield
from fanin.errors import FaninError
from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.following import LINEAR
from fanin.recipes.lengths import Running, stable_length
from fanin.recipes.questions import activations_after, bounded, is_gate, is_normed, squashes
from fanin.recipes.rectifiers import common_slope, is_linear_stem
from fanin.recipes.rules import Decision
from fanin.schemes import CentredOrthogonal, LooksLinear, ScaledOrthogonal
from fanin.schemes.base import matrix_of

DEEP = 8
"""Plain layers from which on Gaussian matrices lose to orthogonal ones: their fluctuations add up over the depth."""
MIRRORED = 4
"""Plain layers from which on rectifiers start best as linear maps, with norms or without. With three races are even."""
GROWTH = 4.0
"""How much the square of a gradient may grow through a plain net before its gain is lowered towards criticality."""


@dataclass(frozen=True)
class Plain:
    """A plain net, and how it starts; of depth 0 where the net is none or has norms."""

    depth: int
    """See `plain_depth`."""
    chain: int
    """See `chain_depth`."""
    trunk: int
    """The same, where residual streams may lie between the weights: see `trunk_depth`."""
    last: int | None
    """The `ParameterNode.weight_depth` behind which no weight lies, in any net that was traced."""
    slope: float | None = None
    """Of the odd part of the activations, where that is linear and the chain is deep: see `common_slope`."""
    stem: bool = False
    """The first layer is linear."""
    running: Running | None = None
    """The length at which the net runs, where unit variance is not stable."""
    halved: float | None = None
    """The gain of the net of tanh that a net of sigmoids is, for σ(z) − ½ = tanh(z/2)/2."""

    @classmethod
    def of(cls, graph: Graph) -> Plain:
        """Look at every parameter."""
        nodes, depth, chain = list(graph), plain_depth(graph), chain_depth(graph)
        trunk = chain or trunk_depth(nodes)
        between = [node for node in nodes if node.stream is None]
        slope = common_slope(between, stem=chain > 0) if trunk >= MIRRORED else None
        last = max((node.weight_depth for node in nodes if node.is_weight), default=0) or None
        running = _running(nodes, depth) if slope is None else None
        halved = tamed_gain("tanh", gains.gain("tanh"), depth) if depth > 2 and _of_sigmoids(nodes) else None
        return cls(depth, chain, trunk, last, slope, chain > 0 and any(map(is_linear_stem, nodes)), running, halved)

    @property
    def is_deep(self) -> bool:
        """Whether its weights have rules of their own."""
        return self.depth >= DEEP or self.slope is not None or self.halved is not None

    def weight(self, node: ParameterNode, activation: str | None, gain: float, words: str) -> Decision:
        """What a weight of the chain gets.

        Args:
            node: the weight.
            activation: what follows it.
            gain: its gain in a shallow net.
            words: why.
        """
        if self.running is not None:
            return self._long(node, activation, self.running)
        if self.halved is not None:
            return self._centred(node, 2 * self.halved if node.weight_depth == 1 else 4 * self.halved)
        if self.slope is not None:
            return self._mirrored(node, gain, words, self.slope)
        if activation and activation not in LINEAR and node.captured is None and not squashes(activation):
            lowered = tamed_gain(activation, gain, self.depth)
            if lowered < gain:
                words = f"followed by {activation}: gain {lowered:.4f}, lowered from {gain:.4f} so that gradients grow"
                words += f" at most √{GROWTH:g} through {self.depth} plain layers"
                gain = lowered
        return ScaledOrthogonal(gain), f"{words}; {self.depth} plain layers: orthogonal"

    def _centred(self, node: ParameterNode, gain: float) -> Decision:
        """What a weight of a net of sigmoids gets, by what it is for z/2: a net of tanh, but for its means of ½."""
        words = f"{self.depth} plain layers of sigmoids, σ(z) = ½ + tanh(z/2)/2: as of tanh with gain {self.halved:.4f}"
        if node.weight_depth == 1:
            return ScaledOrthogonal(gain), f"{words}: the first, times 2 for z/2, gain {gain:.4f}, orthogonal"
        return self.behind_sigmoids(gain, f"{words}: times 4")

    @staticmethod
    def behind_sigmoids(gain: float, words: str) -> Decision:
        """A weight that takes in the means of sigmoids as well: its rows sum to zero, so that they go no further."""
        return CentredOrthogonal(
            gain
        ), f"{words}, rows that sum to zero, so that the means of ½ go no further: gain {gain:.4f}"

    def _mirrored(self, node: ParameterNode, gain: float, words: str, slope: float) -> Decision:
        layers = f"{self.trunk} plain layers of rectifiers"
        if not self.chain:
            layers = f"{self.trunk} layers of rectifiers between residual branches"
        elif not self.depth:
            layers += " with norms"
        if self.stem and is_linear_stem(node):
            return ScaledOrthogonal(gain), f"{words}; before {layers}: orthogonal"
        if node.weight_depth == 1 or (self.stem and node.weight_depth == 2):
            words = f"{words}; first of {layers}: its rows mirrored, so that they start as one linear map"
            return LooksLinear(gain, mirrored=False), words
        halves = "φ(z) − φ(−z) = " + ("z" if math.isclose(slope, 1) else f"{slope:.4g} z")
        words = f"{layers}: mirrored, {halves}, so that they start as one linear map"
        return LooksLinear(1 / slope), f"{words}: gain {1 / slope:.4f}"

    def _long(self, node: ParameterNode, activation: str | None, running: Running) -> Decision:
        if node.depth == 0:
            gain, words = running.std, f"first of {self.depth} plain layers of {activation}: gain {running.std:.4f}"
            words += ", for it is stable over such a depth only where it works as a rectifier"
        else:
            gain = running.gain
            words = f"followed by {activation}, at inputs of std {running.std:.4f}: gain {gain:.4f}"
        return ScaledOrthogonal(gain), f"{words}; {self.depth} plain layers: orthogonal"


def plain_depth(graph: Graph) -> int:
    """How many weights follow one another as in `chain_depth`, in a net without norms; else 0.

    >>> plain_depth(Graph(()))
    0
    """
    return 0 if any(map(is_normed, graph)) else chain_depth(graph)


def chain_depth(graph: Graph) -> int:
    """How many weights follow one another without a stream, a product, a highway or a recurrence; else 0.

    The longest way counts: towers side by side and ensembles are as deep as one of them. Where nothing was traced, all
    weights are taken for one chain.
    """
    if any(node.stream is not None or node.feedback or is_gate(node) for node in graph):
        return 0
    weights = _layers(graph)
    if any(map(_multiplied, weights)):
        return 0
    if graph.source == "modules":  # streams are not known, and nets with norms mostly have some
        return 0 if any(map(is_normed, graph)) else len(weights)
    return max((node.weight_depth for node in weights), default=0)


def trunk_depth(nodes: Iterable[ParameterNode]) -> int:
    """How many weights outside of residual branches follow one another without a product or a recurrence; else 0.

    As in ConvMixer, whose blocks are a residual branch and a layer that no skip goes around.
    """
    outside = [node for node in nodes if node.stream is None]
    if any(node.feedback or is_gate(node) or _multiplied(node) for node in outside):
        return 0
    return len({node.weight_depth for node in _layers(outside)})


def _layers(nodes: Iterable[ParameterNode]) -> list[ParameterNode]:
    return [node for node in nodes if node.role in (Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE)]


def _multiplied(node: ParameterNode) -> bool:
    """Whether what a weight puts out is a factor, or goes into an attention."""
    return not {"softmax_q", "attention_value", "gate_value"}.isdisjoint(activations_after(node))


def _of_sigmoids(nodes: Sequence[ParameterNode]) -> bool:
    """Whether a sigmoid follows every weight but the output, and none has a single input behind it."""
    weights = [node for node in nodes if node.is_weight]
    inner = all(node.output or (node.activation == "sigmoid" and node.captured is None) for node in weights)
    return inner and all(
        node.weight_depth and matrix_of(node.fans, node.shape, node.axes).flat[1] > 1 for node in weights
    )


def _running(nodes: Sequence[ParameterNode], depth: int) -> Running | None:
    """The length at which a deep plain net of one activation has to run; None where unit variance will do."""
    inner = [node for node in nodes if node.is_weight and not node.output]
    followers = {activation for node in inner for activation in activations_after(node)}
    if depth < DEEP or len(followers) != 1 or any(node.captured for node in inner):
        return None
    (activation,) = followers
    return None if activation in LINEAR or bounded(activation) else stable_length(activation, depth)


@lru_cache(maxsize=256)
def tamed_gain(activation: str, gain: float, depth: int) -> float:
    """The largest gain up to ``gain`` at which the squared gradient grows at most `GROWTH` through ``depth`` layers.

    Gains below the activation's stable range are not considered: there the signal itself would vanish, and an
    activation without a stable fixed point keeps its gain.

    >>> 1 < tamed_gain("tanh", 1.5925, 30) < 1.5925
    True
    >>> tamed_gain("relu", 1.4142, 30)
    1.4142
    """
    try:
        critical = meanfield.critical_point_at_bias(activation).gain
    except FaninError:
        return gain
    if critical >= gain or _growth(activation, gain, depth) <= GROWTH:
        return gain
    low, high = critical, gain
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _growth(activation, middle, depth) <= GROWTH else (low, middle)
    return low


def _growth(activation: str, gain: float, depth: int) -> float:
    return meanfield.fixed_point(activation, gain**2).gradient_growth(depth)
