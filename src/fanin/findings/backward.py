"""The way back: gradients that vanish, explode, or fit no common step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.depth import LINE, redrawn_chain
from fanin.findings.evidence import DRAWN, FAR, Evidence, sensitivity, weight_rms
from fanin.findings.registry import finding, register
from fanin.graph import BESIDE, ParameterNode, Role
from fanin.observations import Kind, LayerSignal, ParameterSignal

UNBALANCED = 1e4
"""When one step changes the median weight by a thousandth, it changes this one tenfold, or by less than float32 can
hold (10⁻⁷)."""


MATTERS = 0.1
"""Of what the loss changes with a relative change of the weight with which it changes most."""
TINY = 100.0
"""√10⁴: of a gain so much under one, with a gradient as much over the others', a weight is out of step by 10⁴."""
SHUT = 0.1
"""The largest factor that layer scales are published with, for networks of few layers (Touvron et al. 2021)."""
SCORES = ("softmax_q", "softmax_k")
"""A softmax near uniform passes little to its scores, by design."""


@register(
    "F402",
    "gradients that vanish",
    why="the first layers learn exponentially slower than the last",
    threshold="the loss's sensitivity to a relative change (‖gradient‖·RMS, which norms and rescaling do not change) "
    "falls by six e-foldings from the last layer to the first; twelve are an error. A weight that is used again and "
    "again, as at every step of a recurrence, is judged by all of its uses together. Layer scales, which shut branches "
    "on purpose, are left out",
    remedy="give every weight the gain of the activation behind it",
    source="Glorot and Bengio 2010; Schoenholz et al. 2017 (arXiv:1611.01232)",
)
def vanishing(evidence: Evidence) -> Iterator[Finding]:
    """Sensitivity at the first layer against that at the last."""
    together = ((layer, _of_all_calls(evidence, layer), last) for layer, _, last in _ends(evidence))
    ends = min(together, key=lambda found: found[1] / found[2], default=None)
    if ends is not None and ends[1] * FAR < ends[2] and not _small_branches(evidence):
        layer, first, last = ends
        severity = Severity.ERROR if first * FAR**2 < last else Severity.WARNING
        seen = f"the loss is {last / max(first, 1e-300):.3g} times less sensitive here than at the last layer"
        yield finding("F402", severity, layer.name, seen, edits=_edits(evidence))


@register(
    "F403",
    "gradients that explode",
    why="one step throws the first layers far off while the last hardly move",
    threshold="the loss's sensitivity to a relative change grows twentyfold, by six e-foldings of its square, from the "
    "last layer, or from the outputs where more passes by them, to the first of a plain net; four-hundredfold more is "
    "an error; for a recurrence, whose depth is its time, a state of RMS 20 and 400. Batch norms alone grow gradients "
    "by 1.2 a layer (Yang et al. 2019): with norms and one way only, six e-foldings are a warning, which are 33 such "
    "layers; where streams or joined ways help, twelve",
    remedy="lower the gains towards criticality, or use orthogonal weights",
    source="Philipp et al. 2018 (arXiv:1712.05577); Schoenholz et al. 2017 (arXiv:1611.01232)",
)
def exploding(evidence: Evidence) -> Iterator[Finding]:
    """The same, the other way round; and a recurrence, whose time is its depth."""
    ends = max(_carried_ends(evidence), key=lambda found: found[1] / found[2], default=None)
    line = LINE if evidence.plain else FAR if evidence.alone else FAR**2
    if ends is not None and ends[1] > line * ends[2] and not _small_branches(evidence):
        layer, first, last = ends
        severity = Severity.ERROR if first > FAR * line * last else Severity.WARNING
        seen = f"the loss is {first / max(last, 1e-300):.3g} times more sensitive here than at the last layer"
        yield finding("F403", severity, layer.name, seen, edits=_edits(evidence))
    for layer in evidence.signals.of_kind(Kind.RECURRENT):
        if layer.rms > LINE:
            severity = Severity.ERROR if layer.rms > FAR else Severity.WARNING
            seen = f"the state grows to RMS {layer.rms:.3g}, and the gradient with it"
            yield finding("F403", severity, layer.name, seen, edits=evidence.redraw(*layer.weights))


def _small_branches(evidence: Evidence) -> bool:
    """Whether learned factors shut branches, or what is joined to a stream by concatenation."""
    small = (node for node, signal in evidence.parameters() if signal.constant and 0 < signal.rms <= SHUT)
    return any(node.role == Role.LAYER_SCALE for node in evidence.graph) or any(
        node.role == Role.OTHER and not node.is_weight for node in small
    )


def _ends(evidence: Evidence) -> Iterator[tuple[LayerSignal, float, float]]:
    """Of each way through the model: the first trained layer with its sensitivity, and that of the last hidden one."""
    if not evidence.signals.has_gradients or not evidence.finite or evidence.zero_head:
        return
    layers = [layer for layer in evidence.signals.of_kind(Kind.WEIGHT, Kind.SUM) if layer.grad_rms and layer.rms]
    # A policy and a value, which share nothing but the input, are of two losses, and of two sensitivities.
    towers: dict[int | None, list[LayerSignal]] = {}
    for layer in layers:
        if _carries(evidence, layer):
            towers.setdefault(layer.tower, []).append(layer)
    for hidden in towers.values():
        # What is as deep as the first lies beside it, not behind it.
        behind = [layer for layer in hidden[1:] if layer.tower is None or layer.weight_depth > hidden[0].weight_depth]
        first, last = sensitivity(hidden[0]), sensitivity(behind[-1]) if behind else None
        if first is not None and last:
            yield hidden[0], first, last


def _of_all_calls(evidence: Evidence, layer: LayerSignal) -> float:
    """The sensitivity to a weight wherever it is used: its gradient is the sum over all uses, of any step."""
    calls = [other for name in layer.weights[:1] for other in evidence.signals.readers(name)] or [layer]
    return math.hypot(*(sensitivity(call) or 0.0 for call in calls))


def _carried_ends(evidence: Evidence) -> Iterator[tuple[LayerSignal, float, float]]:
    """The same, with at least the sensitivity at the outputs: a layer of less lies in a gate, or beside the way."""
    for layer, first, last in _ends(evidence):
        outputs = [
            sensitivity(other) or 0.0
            for other in evidence.signals.of_kind(Kind.WEIGHT)
            if other.tower == layer.tower and any(evidence.graph[name].output for name in other.weights)
        ]
        yield layer, first, max([last, *outputs])


def _carries(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether all of the signal passes: not a branch, which a stream passes by, nor the output."""
    if layer.kind == Kind.SUM and layer.stream is None:
        return False
    nodes = [evidence.graph[name] for name in layer.weights]
    ends = any(node.name in evidence.last for node in nodes)
    return not ends and not any(node.activation in SCORES or node.stream is not None for node in nodes)


def _edits(evidence: Evidence) -> tuple[Edit, ...]:
    return redrawn_chain(evidence) if evidence.plain else ()


@register(
    "F404",
    "gradients that fit no common step",
    why="one learning rate cannot serve weights whose relative gradients differ this much",
    threshold=f"gradient over weight {UNBALANCED:.0e} times the median's: a step that moves the median weight by a "
    "thousandth moves this one tenfold, or by less than float32 holds; not where all weights of a way of their own, "
    "as a policy beside its critic, are alike. Of a factor that is no weight, and of "
    f"a weight of a gain under 1/{TINY:g}, where the loss depends on it as on "
    f"any weight: a relative change of it changes the loss by over {MATTERS:g} of what that of any weight does",
    remedy="draw each weight by its own fans; hold a factor in a unit in which it is near one",
    source="classic: balanced layers (Du et al. 2018, arXiv:1806.00900)",
)
def unbalanced(evidence: Evidence) -> Iterator[Finding]:
    """Relative gradients far from the median."""
    if not evidence.signals.has_gradients or not evidence.finite:
        return
    tiny = list(_tiny_weights(evidence))
    yield from tiny
    if not evidence.plain:
        return
    yield from _tiny_units(evidence)
    # An output layer may start as small as it likes: its first steps are large, and there is nothing behind it.
    carrying = [
        (node, signal)
        for node, signal in evidence.drawn()
        if node.activation not in SCORES and node.name not in evidence.last
    ]
    ratios = {node.name: signal.grad_ratio for node, signal in carrying if signal.grad_ratio}
    if len(ratios) < 3 or tiny:
        return
    middle = median(ratio for ratio in ratios.values() if ratio)
    towers = {name: {layer.tower for layer in evidence.signals.readers(name)} for name in ratios}
    for name, ratio in ratios.items():
        beside = [other for mate, other in ratios.items() if mate != name and towers[mate] == towers[name] and other]
        # All weights of one way: a part of the loss that is near its least, or counts little, is what they share.
        if not ratio or (0 < len(beside) < len(ratios) - 1 and not any(_far(ratio, other) for other in beside)):
            continue
        if _far(ratio, middle):
            seen = f"its relative gradient is {ratio / middle:.2g} times the median's"
            yield finding("F404", Severity.WARNING, name, seen, edits=evidence.redraw(name))


def _tiny_units(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that are no weights and next to zero, and on which the loss depends as on any weight.

    A layer scale of 1e-6 has as large a relative gradient; but the loss hardly depends on it.
    """
    for node, signal in evidence.parameters():
        if node.role not in DRAWN and node.role not in BESIDE:
            yield from _in_its_unit(evidence, node, signal)


def _tiny_weights(evidence: Evidence) -> Iterator[Finding]:
    """Weights whose gain is next to nothing, and on which the loss depends as on any weight.

    So in any net, streams and norms included: a step that moves the others moves these a hundred times their size.
    """
    for node, signal in evidence.drawn():
        gain = weight_rms(signal) * math.sqrt(max(node.fans.fan_in, 1.0))
        if node.is_weight and node.name not in evidence.last and gain * TINY < 1:
            yield from _in_its_unit(evidence, node, signal)


def _in_its_unit(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> Iterator[Finding]:
    """The finding that a parameter's relative gradient is far over the weights', and counts as much as any of them.

    Weights that count for little, as those behind a layer scale of next to nothing, are no measure.
    """
    weights = [other for _, other in evidence.drawn() if other.grad_ratio]
    if not weights:
        return
    most = max(_relative(other) for other in weights)
    middle = median(other.grad_ratio or 0.0 for other in weights if _relative(other) > MATTERS * most)
    ratio = signal.grad_ratio or 0.0
    if _relative(signal) > MATTERS * most and ratio > UNBALANCED * middle:
        seen = f"RMS {signal.rms:.2g}, and a relative gradient {ratio / middle:.2g} times the median's: what comes "
        seen += "behind it makes up for its size, and no optimizer's step does"
        edits = evidence.redraw(node.name) if node.norm_after else ()
        yield finding("F404", Severity.WARNING, node.name, seen, edits=edits)


def _relative(signal: ParameterSignal) -> float:
    """How much the loss changes with a relative change of the values."""
    return (signal.grad_rms or 0.0) * signal.rms * math.sqrt(signal.elements)


def _far(ratio: float, other: float) -> bool:
    return not other / UNBALANCED <= ratio <= other * UNBALANCED
