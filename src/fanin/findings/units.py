"""Units that do nothing: dead, saturated."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import Evidence
from fanin.findings.gates import recurrent_biases
from fanin.findings.registry import finding, register
from fanin.graph import Role
from fanin.observations import Kind, LayerSignal
from fanin.schemes import Zeros

FEW = 8
"""With fewer values seen of each unit, chance alone makes one in 2⁸ look dead, and more with correlated samples; with
fewer units, all of them at once."""
HELD = 0.5
"""torch's default biases are within ±1/√fan_in, which is less from 4 inputs on."""
MOSTLY_DEAD = 0.9
SATURATED = 0.5
"""Half of the slopes under a twentieth of the largest: a centred tanh needs inputs of std 3.2 for that."""
BOUNDED = ("tanh", "sigmoid", "softsign", "hardtanh", "erf", "atan", "arctan")
"""Activations that are flat on both sides; a ReLU is flat on one by design."""
FLAT = 4.36
"""From here on the slope of a sigmoid is under a twentieth of its largest."""
RARE = -2.0
"""Of a sigmoid: one in nine; a prior for classes that are rarer is meant (Lin et al. 2017: one in a hundred)."""
FULL = 0.9
"""A state of RMS 0.9 in (-1, 1): tanh has slope 0.19 there, and less for most units."""


@register(
    "F303",
    "dead units",
    why="a unit that is zero for every input passes no gradient and does not come back",
    threshold="over half of the units and three standard errors more: a symmetric law leaves at most half of them "
    f"dead, however alike the inputs are; an error over {MOSTLY_DEAD:.0%}",
    remedy="zero the biases and draw the weights around zero",
    source="classic: dying ReLU (Lu et al. 2020, arXiv:1903.06733)",
)
def dead_units(evidence: Evidence) -> Iterator[Finding]:
    """Activations most of whose units are zero for everything."""
    for layer in evidence.signals.of_kind(Kind.ACTIVATION):
        if layer.dead is None or layer.seen < FEW or not evidence.finite or _starved(evidence, layer):
            continue
        units = max(layer.shape[1] if len(layer.shape) > 3 else layer.shape[-1], 1)
        # Two units of a squeeze are dead once in four times, where the inputs are alike, unless a bias holds them down.
        certain = units >= FEW or _held_down(evidence, layer)
        if layer.dead > 0.5 + 1.5 / math.sqrt(units) or (layer.dead > MOSTLY_DEAD and certain):
            severity = Severity.ERROR if layer.dead > MOSTLY_DEAD else Severity.WARNING
            seen = f"{layer.dead:.0%} of the units are zero for all {layer.seen} values seen"
            yield finding("F303", severity, layer.name, seen, edits=_before(evidence, layer))


@register(
    "F304",
    "saturated units",
    why="where an activation is flat, no gradient passes",
    threshold=f"over {SATURATED:.0%} of the slopes under a twentieth of the largest (inputs of std 3 before a tanh); "
    f"an error over {MOSTLY_DEAD:.0%}; for a recurrent state an RMS over {FULL:g} of its range; for biases of "
    f"torch's LSTM under {-FLAT:g} at the output gate, or at an input gate that no slow forget gate makes up for",
    remedy="lower the gain of the weight before it, and zero its bias",
    source="Glorot and Bengio 2010, section 3",
)
def saturated_units(evidence: Evidence) -> Iterator[Finding]:
    """Activations that are mostly flat where they are used."""
    groups: dict[tuple[object, ...], list[LayerSignal]] = {}
    for layer in evidence.signals.of_kind(Kind.ACTIVATION):
        share = layer.saturated
        if share is None or ("sigmoid" in layer.target and _prior(evidence, layer)):
            continue
        if any(name in layer.target for name in BOUNDED) and share > SATURATED:
            groups.setdefault((layer.target, layer.module, layer.behind) if layer.behind else (layer,), []).append(
                layer
            )
    yield from (_saturated(evidence, group) for group in groups.values())
    yield from _shut_recurrences(evidence)
    for layer in evidence.signals.of_kind(Kind.RECURRENT):
        if "relu" not in layer.target and FULL < layer.rms <= 1:
            seen = f"the state has RMS {layer.rms:.3g} in a range of ±1"
            yield finding("F304", Severity.WARNING, layer.name, seen, edits=evidence.redraw(*layer.weights))


def _saturated(evidence: Evidence, steps: list[LayerSignal]) -> Finding:
    """One finding for all steps at which the same weights saturate the same function."""
    first, share = steps[0], max(layer.saturated or 0.0 for layer in steps)
    severity = Severity.ERROR if share > MOSTLY_DEAD else Severity.WARNING
    seen = f"{share:.0%} of the values lie where the activation is flat"
    seen += f", at {len(steps)} steps" if len(steps) > 1 else ""
    place = first.name
    if first.name != first.module:  # a function between the layers: what saturates it has a name of its own
        shift = next((name for name in first.behind if _shifts(evidence, name)), "")
        weights = [name for name in first.behind if evidence.graph[name].is_weight]
        place = shift or (weights[0] if weights and len(steps) > 1 else place)
        seen += f", in {first.name}" if place != first.name else ""
    return finding("F304", severity, place, seen, edits=_before(evidence, first))


def _shifts(evidence: Evidence, name: str) -> bool:
    """Whether a bias, or a gate's part of it, alone takes a sigmoid to where it is flat."""
    signal = evidence.signals.parameter(name)
    means = (signal.mean, *(block.mean for block in signal.blocks))
    return evidence.graph[name].role in (Role.BIAS, Role.NORM_SHIFT) and max(map(abs, means)) > FLAT


def _shut_recurrences(evidence: Evidence) -> Iterator[Finding]:
    """LSTMs of torch's own whose biases let nothing in or out; nothing is seen of their gates but these."""
    for gates in recurrent_biases(evidence):
        if not gates.is_lstm or "LSTM" not in gates.node.module_type or not gates.node.exercised:
            continue
        out, enters, keeps = (gates.means[name] for name in "oif")
        # A state that keeps the share f and takes in the share i settles at i/(1 - f) of what is written: under slow
        # input gates with slow forget gates (Tallec and Ollivier 2018) that is 1.
        settles = _sigmoid(enters) / _sigmoid(-keeps)
        if out < -FLAT or settles < 2 * _sigmoid(-FLAT):
            word, mean = ("output", out) if out < -FLAT else ("input", enters)
            seen = f"the {word} gate's biases sum to {mean:.3g}: it is shut, and flat"
            yield finding("F304", Severity.ERROR, gates.node.name, seen, edits=gates.opened(evidence))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(min(value, 500.0), -500.0)))


def _held_down(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether a bias or a norm's shift before an activation is negative throughout, and no small draw around zero."""
    names = (name for name in _parameters_before(evidence, layer))
    shifts = (name for name in names if evidence.graph[name].role in (Role.BIAS, Role.NORM_SHIFT))
    return any(evidence.signals.parameter(name).max <= -HELD for name in shifts)


def _prior(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether it ends the model, and a bias, one number for all classes, says how rare they are: for a focal loss."""
    if any(later.kind == Kind.WEIGHT for later in evidence.signals.layers[layer.index + 1 :]):
        return False
    facts = (fact for node, fact in evidence.parameters() if node.role == Role.BIAS)
    return any(fact.constant and fact.mean <= RARE for fact in facts)


def _starved(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether what comes in is zero for another reason: the fault, if it is one, lies there."""
    carriers = (Kind.WEIGHT, Kind.NORM, Kind.EMBEDDING)
    before = (earlier for earlier in reversed(evidence.signals.layers[: layer.index]) if earlier.kind in carriers)
    return not next((earlier.rms for earlier in before), 1.0)


def _before(evidence: Evidence, layer: LayerSignal) -> tuple[Edit, ...]:
    """Edits of the last weight before an activation and of its bias, and of the norms between."""
    before = _parameters_before(evidence, layer)
    drawn = [name for name in before if evidence.graph[name].is_weight or evidence.graph[name].role == Role.NORM_SCALE]
    shifts = [name for name in before if evidence.graph[name].role in (Role.BIAS, Role.NORM_SHIFT)]
    return (*evidence.redraw(*drawn), *(Edit(name, Zeros()) for name in shifts))


def _parameters_before(evidence: Evidence, layer: LayerSignal) -> tuple[str, ...]:
    """The parameters of the last weight's operation before this one, and of the norms behind it."""
    if layer.behind:
        return layer.behind
    names: list[str] = []
    for earlier in reversed(evidence.signals.layers[: layer.index]):
        if earlier.kind in (Kind.WEIGHT, Kind.NORM):
            names += earlier.weights
        if earlier.kind == Kind.WEIGHT and earlier.weights:
            return tuple(names)
    return ()
