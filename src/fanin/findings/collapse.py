"""Correlations through depth: inputs that become one, or are torn apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from fanin import meanfield
from fanin.diagnoses import Finding, Severity
from fanin.errors import FaninError
from fanin.findings.depth import hidden_chain, redrawn_chain
from fanin.findings.evidence import DEPTH_SCALES, FAR, Evidence, weight_rms
from fanin.findings.registry import finding, register
from fanin.gains import moments
from fanin.meanfield.roots import find_root
from fanin.observations import Kind, LayerSignal

ENDLESS = 1e4
"""Layers: a depth scale beyond any depth that is built."""
GATES = ("sigmoid", "hardsigmoid")
SATURATING = 100.0
"""Inputs of this standard deviation make a state of RMS 0.996 of tanh."""
CARRIERS = (Kind.WEIGHT, Kind.ACTIVATION, Kind.NORM, Kind.SUM)


@register(
    "F305",
    "inputs that become alike",
    why="the output hardly depends on the input: the net can learn the mean answer and little else",
    threshold="what differs between samples (or positions), 1 - cosine, falls by six e-foldings from the first layer "
    "to the last, the depth beyond which nets do not train; twelve are an error",
    remedy="zero the biases, and give every weight the gain of the activation behind it; keep skips and norms",
    source="Schoenholz et al. 2017 (arXiv:1611.01232); Dong et al. 2021 (arXiv:2103.03404) for attention",
)
def collapse(evidence: Evidence) -> Iterator[Finding]:
    """The mean cosine between samples and between positions, first layer against last."""
    if not evidence.finite:
        return
    last = _last(evidence)
    for what, measured in (("samples", "sample_cosine"), ("positions", "position_cosine")):
        layers = [layer for layer in _carriers(evidence) if getattr(layer, measured) is not None]
        layers = [layer for layer in layers if layer.index <= last and layer.rms and _width(layer) > 1]
        if len(layers) < 3:
            continue
        first, end = 1 - getattr(layers[0], measured), 1 - getattr(layers[-1], measured)
        # Means of many are alike by themselves; a first layer of another way may be one of more.
        end *= max(evidence.averaged(layers[-1]) / evidence.averaged(layers[0]), 1.0)
        if first < 1e-3 or end * FAR >= first:
            continue
        severity = Severity.ERROR if end * FAR**2 < first else Severity.WARNING
        seen = f"1 - cosine between {what} falls from {first:.3g} to {max(end, 0):.2g}{_theory(evidence)}"
        edits = redrawn_chain(evidence) if evidence.plain else ()
        yield finding("F305", severity, layers[-1].name, seen, edits=edits)
        return


def _carriers(evidence: Evidence) -> tuple[LayerSignal, ...]:
    """What carries all of the signal: the sums of the deepest residual stream where there is one, else every layer.

    Streams are not compared with each other: one that starts from a class token is the same for all samples at first.
    """
    streams = evidence.signals.streams.values()
    if streams:
        return max(streams, key=len)
    carriers = evidence.signals.of_kind(*CARRIERS)
    gated = any(node.gate and node.activation in GATES for node in evidence.graph)
    if evidence.plain and not gated:
        return carriers
    return tuple(layer for layer in carriers if not _gates(evidence, layer))


def _width(layer: LayerSignal) -> int:
    """How many numbers an angle is between: a single one is always parallel to another."""
    return layer.shape[1] if len(layer.shape) > 3 else layer.shape[-1] if layer.shape else 1


def _gates(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether it computes factors between zero and one, which may well be the same for all samples at first."""
    squashed = any(evidence.graph[name].activation in GATES for name in layer.weights)
    return squashed or (layer.kind is Kind.ACTIVATION and any(name in layer.target for name in GATES))


def _last(evidence: Evidence) -> int:
    """The last operation before the output layer: a head that starts at zero or with a bias says nothing of depth.

    Where no weight is known for one, the last that is no mere sum: sums over all answers, as behind the last weight of
    a random field, are a loss's and no signal's.
    """
    nodes = evidence.graph
    outputs = [
        layer.index
        for layer in evidence.signals.layers
        if any(nodes[name].output and not nodes[name].norm_after for name in layer.weights)
    ]
    if outputs:
        return min(outputs) - 1
    carriers = evidence.signals.of_kind(*CARRIERS)
    return max((layer.index for layer in carriers if layer.kind is not Kind.SUM or layer.stream is not None), default=0)


def _theory(evidence: Evidence) -> str:
    fixed = _fixed_point(evidence)
    if fixed is None or not math.isfinite(fixed.correlation_depth) or fixed.correlation_depth <= 0:
        return ""
    if fixed.correlation_depth > ENDLESS:
        return "; theory expects no such loss at these gains without biases"
    return f"; theory's depth scale is {fixed.correlation_depth:.1f} layers"


def _fixed_point(evidence: Evidence) -> meanfield.FixedPoint | None:
    """What mean-field theory says of a plain net of one activation, at its measured gain."""
    hidden = hidden_chain(evidence)
    names = {evidence.graph[layer.weights[0]].activation for layer in hidden}
    gains = [gain for gain in map(evidence.gain, hidden) if gain]
    if not evidence.plain or len(names) != 1 or not gains:
        return None
    name = names.pop()
    try:
        return meanfield.fixed_point(name, weight_variance=median(gains) ** 2) if name else None
    except FaninError:
        return None


@register(
    "F306",
    "chaos",
    why="neighbouring inputs are torn apart, and gradients grow exponentially towards the input",
    threshold="theory: the squared gradient grows by twelve e-foldings (six in size) through the plain layers of one "
    "activation at their measured gain; or through the steps of torch's tanh recurrence, at the size of its state",
    remedy="lower the gain towards criticality, or use orthogonal weights",
    source="Poole et al. 2016 (arXiv:1606.05340); Schoenholz et al. 2017 (arXiv:1611.01232)",
)
def chaos(evidence: Evidence) -> Iterator[Finding]:
    """Plain nets deep in the chaotic phase, and recurrences, whose depth is their time."""
    yield from _chaotic_recurrences(evidence)
    fixed = _fixed_point(evidence)
    hidden: list[LayerSignal] = hidden_chain(evidence)
    if fixed is None or fixed.phase != "chaotic" or len(hidden) < 3:
        return
    growth = math.log(max(fixed.gradient_growth(len(hidden)), 1e-300))
    if growth > 2 * DEPTH_SCALES:
        seen = f"{len(hidden)} layers in the chaotic phase: theory's gradient grows e^{growth / 2:.1f} times"
        yield finding("F306", Severity.WARNING, hidden[0].name, seen, edits=redrawn_chain(evidence))


def _chaotic_recurrences(evidence: Evidence) -> Iterator[Finding]:
    """Of stacked layers the last, whose state is seen."""
    for layer in evidence.signals.of_kind(Kind.RECURRENT):
        states = [name for name in layer.weights if evidence.graph[name].feedback]
        if layer.target != "rnn_tanh" or not layer.steps or not states or evidence.graph[states[-1]].frozen:
            continue
        gain = weight_rms(evidence.signals.parameter(states[-1])) * math.sqrt(evidence.graph[states[-1]].fans.fan_in)
        growth = layer.steps * math.log(max(gain**2 * _squared_slope(layer.rms), 1e-300))
        if growth > 2 * DEPTH_SCALES:
            seen = f"{layer.steps} steps with a gain of {gain:.3g} on a state of RMS {layer.rms:.2g}: "
            seen += f"theory's gradient grows e^{growth / 2:.1f} times"
            yield finding("F306", Severity.WARNING, layer.name, seen, edits=evidence.redraw(*layer.weights))


def _squared_slope(rms: float) -> float:
    """The mean squared slope of tanh at normal inputs of which it makes so large a state.

    >>> round(_squared_slope(0.01), 3), round(_squared_slope(0.8), 2)
    (1.0, 0.25)
    """

    def excess(std: float) -> float:
        return moments("tanh", std).second_moment - rms**2

    return moments("tanh", find_root(excess, rms, SATURATING)).derivative_second_moment if 0 < rms < 0.99 else 0.0
