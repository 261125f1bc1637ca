"""What mean-field theory says of a measured net, where the net is plain enough for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fanin.errors import FaninError
from fanin.findings.evidence import Evidence, weight_rms
from fanin.gains import Activation, resolve_activation
from fanin.graph import ParameterNode, Role
from fanin.meanfield.maps import layer_moments
from fanin.observations import Kind, LayerSignal, ParameterSignal
from fanin.signals import Signals

SHORTEST = 3
"""Fewer layers have no profile."""
SLACK = math.log(2.0)
"""How far the logarithm of a measured second moment may be off what the layer's own input makes of it …"""
SIGMAS = 4.0
"""… beside so many standard deviations of what finite width does: √(2/width) a layer."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The profile that wide layers with these variances would have.

    It starts from what was measured at the first layer (forward) and at the last one (backward).

    Args:
        activation: between the layers; empty for a linear net.
        rms: of each weight layer's output, by the layer's index.
        gradients: RMS of the gradient there; empty where no gradient came or theory does not hold for it.
        borders: there are convolutions, whose borders' zeros theory leaves out.
    """

    activation: str
    rms: dict[int, float]
    gradients: dict[int, float]
    borders: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """A weight layer of a chain, and the activation after it."""

    layer: LayerSignal
    after: LayerSignal | None
    node: ParameterNode
    weight: ParameterSignal
    bias: float

    @property
    def variance(self) -> float:
        """σ_w², of the weight that the layer computed with."""
        return weight_rms(self.weight) ** 2 * self.node.fans.fan_in

    @property
    def result(self) -> LayerSignal:
        return self.after or self.layer

    def width(self, fan: float) -> float:
        """The channels on one side: its fan without the receptive field."""
        return fan / math.prod(self.node.shape[2:])

    @property
    def elements(self) -> int:
        return math.prod(self.layer.shape)


def predict(signals: Signals) -> Prediction | None:
    """The predicted profile of a chain of linear or convolution layers with one activation; None for other nets.

    Forward ``q_{l+1} = σ_w²·E φ(√q_l·z)² + σ_b²``, backward ``g_l² = g_{l+1}²·σ_w²·(n_{l+1}/n_l)·E φ'(√q_l·z)²`` with n
    the number of elements, each with the layer's own measured σ_w² and σ_b². Nothing is predicted where there is a
    norm, a stream, pooling or another operation; where weights were not drawn around zero, each for itself; or where
    a layer's output is not what its input and weights make of it, so that something unseen lies between.

    Source: Poole et al. 2016, eq. 3; Schoenholz et al. 2017, eq. 5. Measured profiles of width n wander from it by
    about √(depth/n).
    """
    steps = _chain(signals)
    if steps is None or not _consistent_forward(steps):
        return None
    try:
        activation = resolve_activation(steps[0].node.activation or "linear")
        lengths = _forward(activation, steps)
        gradients = _backward(activation, steps, lengths) if _consistent_backward(steps) else {}
    except FaninError:
        return None
    rms = {step.layer.index: math.sqrt(length) for step, length in zip(steps, lengths, strict=True)}
    name = "" if steps[0].after is None else str(activation)
    return Prediction(name, rms, gradients, any(step.node.role == Role.CONV for step in steps))


def _forward(activation: Activation, steps: Sequence[_Step]) -> list[float]:
    lengths = [steps[0].layer.rms ** 2]
    for before, step in pairwise(steps):
        moment = _moments(activation, before.node, lengths[-1])[0]
        lengths.append(step.variance * moment + step.bias**2)
    return lengths


def _backward(activation: Activation, steps: Sequence[_Step], lengths: Sequence[float]) -> dict[int, float]:
    gradient = (steps[-1].layer.grad_rms or 0.0) ** 2
    found = {steps[-1].layer.index: math.sqrt(gradient)}
    for place in range(len(steps) - 2, -1, -1):
        step, further = steps[place], steps[place + 1]
        slope = _moments(activation, step.node, lengths[place])[1]
        gradient *= further.variance * further.elements / step.elements * slope
        found[step.layer.index] = math.sqrt(gradient)
    return found


def _moments(activation: Activation, node: ParameterNode, length: float) -> tuple[float, float]:
    """E φ² and E φ'²; with the slopes that the trace saw, where they are not the name's own."""
    if node.captured is not None:
        return length * node.captured.second_moment, node.captured.derivative_second_moment
    found = layer_moments(activation, length)
    return found.second_moment, found.derivative_second_moment


def _chain(signals: Signals) -> list[_Step] | None:
    """The weight layers of a chain with one activation; None where the net is anything else."""
    layers = signals.layers
    weights = [layer for layer in layers if layer.kind == Kind.WEIGHT]
    if len(weights) < SHORTEST or not Evidence(signals.graph, signals).plain:
        return None
    if any(layer.kind not in (Kind.WEIGHT, Kind.ACTIVATION) or layer.non_finite or not layer.rms for layer in layers):
        return None
    # Either a weight and an activation in turn, or weights alone; an activation at the end or none.
    gap = 2 if layers[1].kind == Kind.ACTIVATION else 1
    if layers[0].kind != Kind.WEIGHT or any(
        (layer.kind == Kind.WEIGHT) != (place % gap == 0) for place, layer in enumerate(layers)
    ):
        return None
    twins = {name for group in signals.twins for name in group}
    steps = []
    for place, layer in enumerate(weights):
        after = layers[layer.index + 1] if gap == 2 and layer.index + 1 < len(layers) else None
        step = _step(signals, layer, after, twins)
        if step is None or layer.weight_depth != place + 1:
            return None
        steps.append(step)
    return steps if _one_activation(steps[:-1]) else None


def _step(signals: Signals, layer: LayerSignal, after: LayerSignal | None, twins: set[str]) -> _Step | None:
    nodes = [signals.graph[name] for name in layer.weights]
    weights = [node for node in nodes if node.is_weight]
    biases = [node for node in nodes if node.role == Role.BIAS]
    if len(weights) != 1 or len(biases) != len(nodes) - 1 or len(biases) > 1 or (after and after.weights):
        return None
    node, weight = weights[0], signals.parameter(weights[0].name)
    if node.role not in (Role.LINEAR, Role.CONV) or len(signals.readers(node.name)) != 1 or node.name in twins:
        return None
    bias = signals.parameter(biases[0].name).rms if biases else 0.0
    return _Step(layer, after, node, weight, bias) if _drawn(weight, node) else None


def _drawn(weight: ParameterSignal, node: ParameterNode) -> bool:
    """Whether the values look drawn around zero, each for itself."""
    if weight.constant or weight.meta or weight.non_finite or weight.duplicate_rows or weight.duplicate_columns:
        return False
    by_chance = abs(weight.mean) <= 5 * weight.std / math.sqrt(weight.elements)
    return by_chance or weight.mean**2 * node.fans.fan_in < 0.05 * weight.std**2


def _one_activation(steps: Sequence[_Step]) -> bool:
    """Whether the same activation follows every step, with moments that hold at any size of the signal."""
    if any((step.after is None) != (steps[0].after is None) for step in steps):
        return False
    if steps[0].after is None:
        return True
    first = steps[0].node
    if first.activation in (None, "none") or any(
        (step.node.activation, step.node.captured) != (first.activation, first.captured) for step in steps
    ):
        return False
    try:
        activation = resolve_activation(first.activation or "")
    except FaninError:
        return False
    return not activation.gated and (first.captured is None or activation.homogeneous)


def _consistent_forward(steps: Sequence[_Step]) -> bool:
    """Whether each layer's output is what its own input and weights make of it, but for finite width."""
    errors = [
        (
            further.layer.rms**2 / (further.variance * step.result.rms**2 + further.bias**2),
            further.width(further.node.fans.fan_out),
        )
        for step, further in pairwise(steps)
    ]
    return _within(errors)


def _consistent_backward(steps: Sequence[_Step]) -> bool:
    """The same for the gradient of each layer's input."""
    errors = []
    for step, further in pairwise(steps):
        here, there = step.result.grad_rms, further.layer.grad_rms
        if not here or not there:
            return False
        expected = there**2 * further.variance * further.elements / math.prod(step.result.shape)
        errors.append((here**2 / expected, further.width(further.node.fans.fan_in)))
    return _within(errors)


def _within(errors: Sequence[tuple[float, float]]) -> bool:
    """Whether ratios of measured to expected multiply up to no more than widths explain, at any depth."""
    total, variance = 0.0, 0.0
    for ratio, width in errors:
        total += math.log(max(ratio, 1e-300))
        variance += 2 / max(width, 1.0)
        if abs(total) > SLACK + SIGMAS * math.sqrt(variance):
            return False
    return True
