"""The automatic recipe: the field's rules of thumb, made precise by what the graph knows of each parameter.

Rules were chosen by small races; `docs/decisions.md` keeps the record, and says how small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from fanin import gains, meanfield
from fanin.errors import FaninError
from fanin.graph import WEIGHTS, Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.recipes.classic import beside_weights, for_each_block
from fanin.recipes.following import LINEAR, following, frequency
from fanin.recipes.kinks import Kinks
from fanin.recipes.lengths import Running, stable_length
from fanin.recipes.rectifiers import common_slope, slope_behind
from fanin.recipes.registry import register
from fanin.recipes.state_gates import StateGates
from fanin.recipes.states import state_power
from fanin.schemes import (
    Keep,
    LooksLinear,
    Normal,
    Orthogonal,
    ScaledOrthogonal,
    Scheme,
    VarianceScaling,
    Zeros,
    xavier_normal,
)

DEEP = 8
"""Plain layers from which on Gaussian matrices lose to orthogonal ones: their fluctuations add up over the depth."""
MIRRORED = 4
"""Plain layers from which on rectifiers start best as linear maps. With three the races are even."""
GROWTH = 4.0
"""How much the square of a gradient may grow through a plain net before its gain is lowered towards criticality."""
HEAD = 1.0
"""Gain of an output layer: logits of unit variance cost half a nat at first; smaller ones lost most races."""
LONE_HEAD = 0.3
"""The same where it is the only weight: there is no layer below that needs its gradient."""


@register("auto", sources=("he2015", "saxe2014", "balduzzi2017"))
def auto(graph: Graph) -> Plan:
    """For every parameter by its role: what follows, true fans, residual depth, recurrence, plain depth."""
    nodes = list(graph)
    normed = any(_is_normed(node) for node in nodes)
    tied = any(node.role == Role.EMBEDDING and node.aliases for node in nodes)
    head = HEAD if sum(node.is_weight for node in nodes) > 1 else LONE_HEAD
    gated_state = any(map(_squashes, {name for node in nodes if node.feedback for name in _activations(node)}))
    driven = any(node.feeds_state for node in nodes)
    depth = plain_depth(graph)
    slope = common_slope(nodes) if depth >= MIRRORED else None
    running = _running(nodes, depth) if slope is None else None
    bare = not normed and _multiplies(nodes)
    chooser = _Chooser(
        depth=depth,
        slope=slope,
        running=running,
        head=head,
        bare_gates=bare,
        factors=_factors(nodes),
        tied=tied,
        driven=driven,
        gated_state=gated_state,
        state_gates=StateGates.of(nodes),
        kinks=Kinks.of(nodes),
        exponents=sum(map(_makes_exponent, nodes)),
    )
    return Plan.of(graph, "auto", chooser.choose)


def plain_depth(graph: Graph) -> int:
    """How many weights follow one another without a norm, a stream, a product, a highway or a recurrence; else 0.

    The longest way counts: towers side by side and ensembles are as deep as one of them. Where nothing was traced, all
    weights are taken for one chain.

    >>> plain_depth(Graph(()))
    0
    """
    if any(_is_normed(node) or node.stream is not None or node.feedback or _is_gate(node) for node in graph):
        return 0
    weights = [node for node in graph if node.role in (Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE)]
    if any({"softmax_q", "attention_value", "gate_value"}.intersection(_activations(node)) for node in weights):
        return 0
    if graph.source == "modules":
        return len(weights)
    return max((node.weight_depth for node in weights), default=0)


def _running(nodes: list[ParameterNode], depth: int) -> Running | None:
    """The length at which a deep plain net of one activation has to run; None where unit variance will do."""
    inner = [node for node in nodes if node.is_weight and not node.output]
    followers = {activation for node in inner for activation in _activations(node)}
    if depth < DEEP or len(followers) != 1 or any(node.captured for node in inner):
        return None
    (activation,) = followers
    return None if activation in LINEAR or _bounded(activation) else stable_length(activation, depth)


def _is_normed(node: ParameterNode) -> bool:
    return node.role == Role.NORM_SCALE or node.norm_after


def _is_gate(node: ParameterNode) -> bool:
    """Whether a weight, or a block of it, makes a factor of something else."""
    return bool(node.gate) or not {"gate", "exponent", "keep", "write"}.isdisjoint(node.blocks)


def _activations(node: ParameterNode) -> tuple[str, ...]:
    """The activations that follow a weight or its blocks, where they are known."""
    found = (node.activation, *(block.activation for block in node.axes.blocks))
    return tuple(activation for activation in found if activation)


def _multiplies(nodes: list[ParameterNode]) -> bool:
    """Whether branches of residual streams multiply what they take in by itself: gates that know no bound."""
    gates = _gates(nodes)
    return bool(gates) and not all(_bounded(gate) for gate in gates)


def _factors(nodes: list[ParameterNode]) -> frozenset[str]:
    """The activations whose results are factors."""
    return frozenset(node.activation for node in nodes if node.gate == "factor" and node.activation)


def _makes_exponent(node: ParameterNode) -> bool:
    """Whether a weight, or a block of it, makes the exponent of a factor, as the couplings of a flow do."""
    return node.is_weight and (node.gate == "exponent" or "exponent" in node.blocks)


def _hands_on(node: ParameterNode, activation: str | None) -> bool:
    """Whether a branch is as large as what a weight puts out: an inner layer or a value, no gate and no score."""
    if activation in ("attention_value", "gate_value"):
        return True
    return activation is not None and activation not in LINEAR and not _is_gate(node)


def _gates(nodes: list[ParameterNode]) -> set[str]:
    """What follows the weights in residual branches that multiply; empty where none does."""
    branches = {activation for node in nodes if node.stream is not None for activation in _activations(node)}
    return branches.difference(LINEAR) if "gate_value" in branches else set()


@dataclass(frozen=True)
class _Chooser:
    """The rules, for what is known of the graph as a whole."""

    depth: int
    """Plain layers, see `plain_depth`."""
    slope: float | None
    """Of the odd part of their activations, where that is linear: see `common_slope`."""
    running: Running | None
    """The length at which these run, where unit variance is not stable."""
    head: float
    """The gain of an output layer."""
    bare_gates: bool
    """Products with unbounded gates in the branches of a net without norms."""
    factors: frozenset[str]
    """The activations whose results are factors of something else, where no packed weight says which."""
    tied: bool
    """An embedding that is the output layer as well."""
    driven: bool
    """A recurrence that takes in something at its steps beside its state."""
    gated_state: bool
    """Gates in a recurrence, of a layer or written by hand."""
    state_gates: StateGates
    """Gates that hold a state or a stream."""
    kinks: Kinks
    """Narrow layers, whose biases spread."""
    exponents: int
    """The weights that make exponents of factors."""

    def choose(self, node: ParameterNode) -> tuple[Scheme, str]:
        gated, rectified = node.axes.blocks or self.gated_state, slope_behind(node) is not None
        if node.feeds_state and not (gated or rectified):
            return xavier_normal(), "input of a recurrence without gates: Xavier, so that it leaves the state room"
        if node.role in WEIGHTS:
            return self.kinks.share(node, _of_sum(node, for_each_block(node, self._weight)))
        if node.role == Role.BIAS and node.activation == "softplus" and node.stream is not None:
            return Keep(), "the bias of a rate, as in state-space models: kept as constructed"
        if node.role == Role.BIAS:
            return self.state_gates.bias(node) or self._bias(node)
        if node.role == Role.EMBEDDING:
            return _embedding(node)
        if node.role == Role.POSITION and node.default is not None and self.tied:
            width = node.shape[-1]
            return Normal(
                1 / math.sqrt(width)
            ), f"positions as wide as the tied embedding they are added to: 1/√{width}"
        return beside_weights(node)

    def _bias(self, node: ParameterNode) -> tuple[Scheme, str]:
        weight = self.kinks.weights.get(node.name)
        return (Zeros(), "biases start at zero") if weight is None else self.kinks.bias(node, self.choose(weight)[0])

    def _weight(self, node: ParameterNode, activation: str | None) -> tuple[Scheme, str]:
        fan_in = f"fan_in {node.fans.fan_in:g}"
        if self._is_tied_depth(node) and (slope := slope_behind(node)):
            words = (
                f"one layer again and again, followed by {activation}: mirrored, so that its steps start as one linear"
            )
            return LooksLinear(1 / slope), f"{words} map that keeps lengths, gain {1 / slope:.4f}"
        if node.feedback or (node.role == Role.RECURRENT and not node.feeds_state):
            return Orthogonal(), "recurrent: an orthogonal matrix keeps the state's length over time"
        if node.feeds_state:
            kind = "a recurrence of rectifiers" if slope_behind(node) else "recurrent gates"
            words = f"input of {kind}: gain 1, as much as the state brings{_of_state(node)}, {fan_in}"
            return _of_gain(state_power(node.state_before) ** -0.5), words
        if node.output and not node.norm_after:
            gain = self.head * state_power(node.state_before) ** -0.5
            words = f"output layer: gain {self.head:g}{_of_state(node)}"
            if self.running is not None:
                gain /= math.sqrt(self.running.power)
                words += f" ÷ {math.sqrt(self.running.power):.4f}, the RMS of what it takes in"
            return _of_gain(gain), f"{words}, {fan_in}"
        if node.norm_after:
            return VarianceScaling(1.0), f"a norm follows, so that only the direction counts: gain 1, {fan_in}"
        if self.depth >= DEEP or self.slope is not None:
            return self._plain(node, activation)
        if self.exponents > 1 and _makes_exponent(node):
            gain = 1 / self.exponents
            words = f"makes the exponent of a factor, one of {self.exponents} that add up: gain {gain:.4f}, {fan_in}"
            return _of_gain(gain), words
        gain, words = self._gain(node, activation)
        gain, words = gain * state_power(node.state_before) ** -0.5, words + _of_state(node)
        if self.bare_gates and node.stream is not None:
            gain = node.stream_depth ** (-1 / 3)
            words = f"in a gated branch without norms, {node.stream_depth} in the stream: the product of its three"
            return _of_gain(gain), f"{words} weights is 1/{node.stream_depth}, gain {gain:.4f}, {fan_in}"
        if node.post_norm and not node.residual_last and _hands_on(node, activation):
            words += f"; in a branch with a norm after each sum, {node.stream_depth} in the stream"
            gain, words = gain / node.stream_depth**0.25, f"{words}: ÷ ∜{node.stream_depth}"
        if node.residual_last and node.stream_depth > 1 and not node.tamed_by:
            words += f"; last weight of a residual branch, {node.stream_depth} in the stream"
            if _bounded(activation) or node.post_norm:
                gain /= node.stream_depth**0.25
                why = "with a norm after each sum" if node.post_norm else "bounded by its activation"
                words += f", {why}: ÷ ∜{node.stream_depth}"
            else:
                gain /= math.sqrt(node.stream_depth)
                words += f": ÷ √{node.stream_depth}"
        return _of_gain(gain), f"{words}, {fan_in}"

    def _is_tied_depth(self, node: ParameterNode) -> bool:
        """Whether a weight takes in what it put out before and nothing else: no recurrence, but depth of one layer."""
        fans = node.fans
        return node.feedback and node.role != Role.RECURRENT and not self.driven and fans.fan_in == fans.fan_out

    def _gain(self, node: ParameterNode, activation: str | None) -> tuple[float, str]:
        after = following(node, activation)
        if activation == "gate_value" and (gate := self._gate_beside(node)) and _squashes(gate):
            power = gains.moments(gate).second_moment
            words = f"value of a product whose {gate} gate lets {power:.4f} of the power pass"
            return power**-0.5, f"{words}: gain {power**-0.5:.4f}"
        if frequency(node, activation) is not None and node.depth == 0:
            gain = 1 / math.sqrt(3 * node.fans.fan_in)
            return gain, f"first of layers of waves: gain 1/√(3 · fan_in) = {gain:.4g}, SIREN's, for many frequencies"
        if activation and after.known and node.captured is None and _squashes(activation):
            centred = gains.gain(activation, "centred")
            if self.depth > 2:
                return centred, f"followed by {activation}, whose mean carries nothing: centred gain {centred:.4f}"
            where = "a shallow net" if self.depth else "a net that is not plain"
            return 1.0, f"followed by {activation} in {where}: gain 1"
        return after.gain, after.words

    def _gate_beside(self, node: ParameterNode) -> str | None:
        """The activation of the gate that a value meets, where it is known."""
        packed = {block.activation for block in node.axes.blocks if block.name == "gate"}
        found = packed or self.factors
        return next(iter(found)) if len(found) == 1 else None

    def _plain(self, node: ParameterNode, activation: str | None) -> tuple[Scheme, str]:
        if self.running is not None:
            return self._long(node, activation, self.running)
        gain, words = self._gain(node, activation)
        if self.slope is not None and node.weight_depth > 1:
            halves = "φ(z) − φ(−z) = " + ("z" if math.isclose(self.slope, 1) else f"{self.slope:.4g} z")
            words = f"{self.depth} plain layers of rectifiers: mirrored, {halves}, so that they start as one linear map"
            return LooksLinear(1 / self.slope), f"{words}: gain {1 / self.slope:.4f}"
        if self.slope is not None:
            words = f"{words}; first of {self.depth} plain layers of rectifiers: its rows mirrored, so that they start"
            return LooksLinear(gain, mirrored=False), f"{words} as one linear map"
        if activation and activation not in LINEAR and node.captured is None and not _squashes(activation):
            lowered = tamed_gain(activation, gain, self.depth)
            if lowered < gain:
                words = f"followed by {activation}: gain {lowered:.4f}, lowered from {gain:.4f} so that gradients grow"
                words += f" at most √{GROWTH:g} through {self.depth} plain layers"
                gain = lowered
        return ScaledOrthogonal(gain), f"{words}; {self.depth} plain layers: orthogonal"

    def _long(self, node: ParameterNode, activation: str | None, running: Running) -> tuple[Scheme, str]:
        if node.depth == 0:
            gain, words = running.std, f"first of {self.depth} plain layers of {activation}: gain {running.std:.4f}"
            words += ", for it is stable over such a depth only where it works as a rectifier"
        else:
            gain = running.gain
            words = f"followed by {activation}, at inputs of std {running.std:.4f}: gain {gain:.4f}"
        return ScaledOrthogonal(gain), f"{words}; {self.depth} plain layers: orthogonal"


def _of_state(node: ParameterNode) -> str:
    """What the size of a state adds to a reason."""
    power = state_power(node.state_before)
    return f" ÷ {math.sqrt(power):.4f}, the RMS of the {node.state_before} state that it takes in" if power != 1 else ""


def _of_sum(node: ParameterNode, decision: tuple[Scheme, str]) -> tuple[Scheme, str]:
    """What a weight gets, divided by how many numbers were summed up into each that it takes in, as for their mean."""
    if node.summed == 1 or node.norm_after:
        return decision
    scheme, words = decision
    return scheme.scaled(1 / node.summed), f"{words}; it takes in sums over {node.summed}: ÷ {node.summed}"


def _of_gain(gain: float) -> VarianceScaling:
    """A normal law of this gain; to twelve digits, since a root and its square differ in the last."""
    return VarianceScaling(float(f"{gain**2:.12g}"))


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


@lru_cache(maxsize=256)
def _bounded(activation: str | None) -> bool:
    """Whether an activation is known to stay small however large its input is, as tanh and sigmoid do."""
    if activation is None or activation in LINEAR:
        return False
    try:
        return gains.moments(activation, std=100.0).second_moment < 2
    except FaninError:
        return False


@lru_cache(maxsize=256)
def _squashes(activation: str) -> bool:
    """Whether an activation is bounded around a mean that is larger than its spread, as the sigmoid is."""
    if not _bounded(activation):
        return False
    near = gains.moments(activation)
    return near.mean**2 > near.variance


def _embedding(node: ParameterNode) -> tuple[Scheme, str]:
    width = node.fans.fan_out
    if node.aliases or node.output:
        return Normal(1 / math.sqrt(width)), f"embedding tied to the output: 1/√{width:g} keeps the first logits near 1"
    if node.dot_product:
        return Normal(1 / math.sqrt(width)), f"embedding in a dot product: rows of unit length, 1/√{width:g}"
    return Normal(1.0), "embedding: one-hot input, std 1 gives the stream unit variance"
