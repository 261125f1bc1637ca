"""Values that contradict a parameter's role: parametrizations, padding, ties, norms, positions, biases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.depth import subtracts_channels
from fanin.findings.evidence import DRAWN, Evidence, Hidden, varying, weight_rms
from fanin.findings.registry import finding, register
from fanin.findings.scales import LARGE
from fanin.graph import ParameterNode, Role
from fanin.observations import Kind, LayerSignal, ParameterSignal
from fanin.schemes import Normal, Ones, Zeros

HIDDEN = 0.05
"""Of the weight that is used: more than any rounding of the norm's quotient."""


@register(
    "F202",
    "a parametrization that hides what was set",
    why="the layer computes its weight anew from other parameters, so that what was written has no effect",
    threshold=f"the weight that was set differs from the one in use by over {HIDDEN:.0%} of it",
    remedy="set the parameters that it is computed from, or initialize before the parametrization",
    source="jik876/hifi-gan#145",
)
def hidden_weight(evidence: Evidence) -> Iterator[Finding]:
    """A weight that was set in vain."""
    for hidden in evidence.hidden:
        if hidden.off > HIDDEN * hidden.used:
            seen = f"{hidden.name} was set to RMS {hidden.was_set:.3g}; the layer uses one of RMS {hidden.used:.3g}"
            yield finding("F202", Severity.ERROR, hidden.source, seen, edits=_written(evidence, hidden))


def _written(evidence: Evidence, hidden: Hidden) -> tuple[Edit, ...]:
    """An edit of the directions, with which a plan writes the norms, and the weight that both make, at once.

    It leaves the size that the layer has used all along: what was meant is known to the reader alone.
    """
    direction = f"{hidden.name}_v"
    return (Edit(direction, Normal(hidden.used)),) if direction in evidence.graph and hidden.used else ()


@register(
    "F203",
    "a padding row that is not zero",
    why="padding then changes the result, and its gradient is masked, so that it stays",
    threshold="any value but zero",
    remedy="zero the row, which every fanin plan does",
    source="torch.nn.Embedding",
)
def padding_row(evidence: Evidence) -> Iterator[Finding]:
    """A padding row with values."""
    for node, signal in evidence.parameters():
        if node.padding_row is not None and signal.padding_rms:
            seen = f"row {node.padding_row} has RMS {signal.padding_rms:.3g}"
            edit = Edit(node.name, Normal(signal.std) if math.isfinite(signal.std) else evidence.scheme(node.name))
            yield finding("F203", Severity.WARNING, node.name, seen, edits=(edit,))


@register(
    "F204",
    "one weight, two uses in conflict",
    why="an embedding may be of unit scale, the output layer that shares its matrix may not: its logits are √width "
    "times larger",
    threshold="logits of RMS over √(2 ln classes), at which they cost as much as knowing nothing",
    remedy="draw the shared matrix at 0.02, or 1/√width if that is less; an embedding may be scaled behind it",
    source="pytorch/pytorch#3121",
)
def tied_conflict(evidence: Evidence) -> Iterator[Finding]:
    """A matrix that is both embedding and output."""
    for node, signal in evidence.parameters():
        if node.name not in evidence.tied:
            continue
        heads = [layer for layer in evidence.signals.readers(node.name) if layer.kind == Kind.WEIGHT]
        limit = math.sqrt(2 * math.log(max(node.shape[0], 2)))
        if heads[-1].rms > limit:
            seen = f"std {signal.std:.3g} over width {node.shape[1]} makes logits of RMS {heads[-1].rms:.3g}"
            severity = Severity.ERROR if heads[-1].rms > 2 * limit else Severity.WARNING
            yield finding("F204", severity, node.name, seen, edits=evidence.redraw(node.name))


SPREAD = 0.5
"""Of the mean: RepVGG's scales are drawn from N(0.1, 0.1). A constant, or a draw close around one, tells of no plan."""


@register(
    "F205",
    "a norm's scale that is not one",
    why="the scale multiplies every normalized value: drawn like a weight it shuts units off and flips them",
    threshold="a mean outside of ½ … 2, more than an activation's gain asks for, or values on both sides of zero (an "
    "error where they are drawn around it, within a sampling error of three or half a standard deviation); zero "
    "is right for a scale within a residual branch that receives a gradient, and where the model adds one to it, which "
    "is at fault where that leaves under ½; of a "
    "frozen one, which was trained, only values around zero; small "
    f"ones that spread by over {SPREAD:g} of their mean, of norms that are added to each other, are a note",
    remedy="set it to one",
    source="Goyal et al. 2017 (arXiv:1706.02677) for the intended zero",
)
def norm_scale(evidence: Evidence) -> Iterator[Finding]:
    """Scales that were drawn, or are far from one."""
    for node, signal in chain(evidence.parameters(), evidence.held()):
        if node.role != Role.NORM_SCALE or node.name in evidence.norms or signal.non_finite:
            continue
        if 0.5 <= signal.mean <= 2 and signal.min > 0:
            continue
        if "add" in node.reparametrized and not node.frozen:
            yield from _beside_one(node, signal)
            continue
        if _one_is_added(evidence, node, signal) or _opens(evidence, node, signal):
            continue
        crossing = signal.min < 0 < signal.max and abs(signal.mean) < signal.std * max(
            0.5, 3 / math.sqrt(signal.elements)
        )
        if node.frozen and not crossing:
            continue  # training moves scales far from one, but not to around zero
        seen = f"mean {signal.mean:.3g}, std {signal.std:.3g}"
        if not crossing and _is_drawn_for_a_sum(evidence, node, signal):
            yield finding("F205", Severity.NOTE, node.name, f"{seen}: drawn, of a branch that is added to others")
            continue
        severity = Severity.ERROR if crossing or not signal.rms else Severity.WARNING
        yield finding("F205", severity, node.name, seen, edits=(Edit(node.name, Ones()),))


def _beside_one(node: ParameterNode, signal: ParameterSignal) -> Iterator[Finding]:
    """A scale to which the model adds one, of which that leaves next to nothing; training may make it large."""
    if 1 + signal.mean < 0.5:
        severity = Severity.ERROR if 1 + signal.max <= 0 else Severity.WARNING
        seen = f"mean {signal.mean:.3g}, to which the model adds 1"
        yield finding("F205", severity, node.name, seen, edits=(Edit(node.name, Zeros()),))


def _is_drawn_for_a_sum(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether small scales were drawn around a number over zero for norms whose outputs are added to each other."""
    if not 0 < signal.mean < 0.5 or signal.std < SPREAD * signal.mean:
        return False
    for reader in evidence.signals.readers(node.name):
        behind = (layer for layer in evidence.signals.layers[reader.index + 1 :] if layer.kind not in BRANCHED)
        following = next(behind, None)
        if following is not None and following.kind is Kind.SUM:
            return True
    return False


def _one_is_added(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether the norm's output is of unit size although the scale is not: the model computes ``1 + scale``."""
    if "add" in " ".join(node.reparametrized):
        return True
    readers = evidence.signals.readers(node.name)
    return bool(readers) and signal.rms < 0.5 and all(layer.rms > 0.5 for layer in readers)


def _opens(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether a scale of zeros is meant: a stream passes it by, and its gradient opens it at the first step.

    Of one that the run did not use, nobody can say whether the model adds one to it.
    """
    if not signal.constant or signal.rms:
        return False
    unseen = evidence.signals.has_run and not node.exercised
    return unseen or (node.stream is not None and node.name in evidence.intended_zeros)


BRANCHED = (Kind.WEIGHT, Kind.NORM)
"""What the other branches of a sum consist of, up to it."""
RATIO = 10.0
"""A part ten times smaller has a hundredth of the variance of the sum."""
SAME = 1e-3
"""Of an RMS: two that are of one tensor differ by rounding alone."""
LOST = 200.0
"""A part this much smaller is near bfloat16's relative step (2⁻⁸ = 1/256): adding it changes next to nothing."""


@register(
    "F207",
    "embeddings at odds with what they are added to",
    why="the smaller part of the sum is lost beside the larger: tokens, or where they stand, cannot be seen",
    threshold=f"a position over {RATIO:g} times as large as what it is added to (a hundredth of the variance is left), "
    f"or under 1/{LOST:g} of it (bfloat16 rounds it away), whether it is a parameter, a buffer or computed on the way; "
    "zero positions are a choice",
    remedy="give both the same standard deviation; where the positions are fixed, scale the tokens, or the positions "
    "in the model's code if they are far over unit size",
    source="classic: position and token embeddings of one scale (Radford et al. 2018)",
    last=True,
)
def odd_sum(evidence: Evidence) -> Iterator[Finding]:
    """A position embedding that drowns, or drowns in, what it is added to."""
    yield from _odd_constants(evidence)
    for signal in evidence.signals.parameters:
        node = evidence.graph[signal.name]
        if node.role != Role.POSITION or len(node.shape) < 2 or not signal.rms or signal.non_finite:
            continue
        if node.rescaled:  # what is added has another size than the parameter
            continue
        for layer in evidence.signals.readers(node.name):
            # A frozen table may be read by its rows; what it is added to is then known of a sum alone.
            other = _other(evidence, layer, signal) if layer.kind == Kind.SUM or not node.frozen else 0.0
            if other and (signal.rms > RATIO * other or signal.rms * LOST < other):
                seen = f"RMS {signal.rms:.3g} is added to RMS {other:.3g}"
                raised = _raised(evidence, layer, signal.rms / other) if node.frozen else ()
                edits = raised if node.frozen else _matched(evidence, node, layer, other)
                yield finding("F207", Severity.WARNING, node.name, seen, edits=edits)
                break


MASKED = 1e3
"""RMS of a constant: no table of places has such values; what masks places does."""


def _odd_constants(evidence: Evidence) -> Iterator[Finding]:
    """The same of what is no parameter: a buffer of sinusoids, or sinusoids that are computed on the way."""
    layers = evidence.signals.layers
    for layer in layers:
        constant, signal = layer.constant_rms, layer.signal_rms
        if not constant or not signal or layer.non_finite or constant > MASKED:
            continue
        if constant > RATIO * signal or constant * LOST < signal:
            seen = f"RMS {constant:.3g} is added to RMS {signal:.3g}"
            yield finding(
                "F207",
                Severity.WARNING,
                layer.constant or layer.name,
                seen,
                edits=_raised(evidence, layer, constant / signal),
            )


FAINT, WILD = 3e-3, 1e3
"""RMS of tokens that are no measure for positions: under the first a norm's ε outweighs them, over the second the
first step of any common size changes nothing."""


def _matched(evidence: Evidence, node: ParameterNode, layer: LayerSignal, other: float) -> tuple[Edit, ...]:
    """Edits that give a position the size which the sum's other part will have once it is mended itself."""
    tokens = _tokens(evidence, layer) if layer.kind is Kind.EMBEDDING else None
    source = tokens.weights[0] if tokens is not None else _source(evidence, layer, apart_from=node.name)
    if source is None:
        return (Edit(node.name, Normal(other)),)
    edits: tuple[Edit, ...] = ()
    if source not in evidence.planned and not FAINT < other < WILD and not evidence.graph[source].frozen:
        edits = evidence.redraw(source)
        evidence.planned.update({edit.pattern: edit.scheme for edit in edits if edit.scheme is not None})
    size = other * evidence.becomes(source)
    fits = size <= RATIO * evidence.signals.parameter(node.name).rms <= RATIO**2 * size
    return edits if fits or not size else (*edits, Edit(node.name, Normal(size)))


def _raised(evidence: Evidence, layer: LayerSignal, factor: float) -> tuple[Edit, ...]:
    """An edit of what gave the tokens: their table, or the layer that made them of patches or of a signal.

    None where it gives the logits too, which would grow with it, or where it would be far over its own scale: then
    the positions are at fault, and they are the model's code's.
    """
    source = _source(evidence, layer)
    if source is None:
        return ()
    node, signal = evidence.graph[source], evidence.signals.parameter(source)
    if node.frozen or source in evidence.tied or source in evidence.planned or not signal.rms:
        return ()
    scheme = Normal(weight_rms(signal) * factor)
    usual = evidence.scheme(source).expected(node.fans, node.shape, node.axes).std
    return (Edit(source, scheme),) if scheme.std <= LARGE * usual else ()


def _source(evidence: Evidence, layer: LayerSignal, apart_from: str = "") -> str | None:
    """The table or the weight that made what a sum's other part is."""
    before = evidence.signals.layers[: layer.index]
    if layer.signal_rms:  # the last operation that put out just this much; what it was made of lies before it
        near = (one.index for one in before if abs(one.rms - layer.signal_rms) <= SAME * layer.signal_rms)
        before = before[: max(near, default=layer.index) + 1]
    for one in reversed(before):
        names = [name for name in one.weights if _is_drawn(evidence, name) and name != apart_from]
        if names:
            return names[0]
    return None


def _is_drawn(evidence: Evidence, name: str) -> bool:
    return evidence.graph[name].role in DRAWN


def _other(evidence: Evidence, layer: LayerSignal, signal: ParameterSignal) -> float:
    """The RMS of what a position is added to: the sum's other part, or the tokens of the same model."""
    if layer.kind == Kind.SUM:
        source = _source(evidence, layer, apart_from=signal.name)
        made = evidence.signals.readers(source)[:1] if source else ()
        left = math.prod(map(evidence.without_biases, made))  # a bias that drowns the tokens is another rule's
        return left * math.sqrt(max(layer.rms**2 - signal.rms**2, 1e-4 * layer.rms**2))
    tokens = _tokens(evidence, layer)
    return tokens.rms if layer.kind is Kind.EMBEDDING and tokens is not None else 0.0


def _tokens(evidence: Evidence, layer: LayerSignal) -> LayerSignal | None:
    """The first other look-up of rows as wide as these.

    What is as wide as the heads are many is added to scores, and not to tokens.
    """
    others = (other for other in evidence.signals.of_kind(Kind.EMBEDDING) if other.index != layer.index)
    return next((other for other in others if other.weights and other.shape[-1:] == layer.shape[-1:]), None)


DROWNED = 5.0
"""Then what differs between inputs has under 4 % of the variance."""
ROUNDED = 1e4
"""Then float32 has 10 bits left for what differs between inputs, which is as much as half precision has."""
DROWNING = (Kind.WEIGHT, Kind.SUM, Kind.NORM)
"""The operations that a bias or a shift is added in."""
SHIFTED = frozenset({"softplus", "sigmoid", "hardsigmoid", "exp", "logsigmoid", "softmax"})
"""Activations before which a large bias is a choice: rates, gates, priors. Scores that it makes one-hot are F308's."""


@register(
    "F208",
    "a bias that drowns the signal",
    why="the layer puts out its bias whatever it is given",
    threshold=f"over {DROWNED:g} times what differs between inputs, of a norm's shift too; gates, rates and output "
    "layers are left out; a note where a batch norm follows at once, which takes any constant away, up to "
    f"{ROUNDED:g} times",
    remedy="start biases at zero",
    source="He et al. 2015, section 2.2",
)
def large_bias(evidence: Evidence) -> Iterator[Finding]:
    """Biases, and norms' shifts, far larger than the signal that they are added to."""
    for node, signal in evidence.parameters():
        # A bias of exactly one opens a gate: in spatial gating units and highways.
        opened = signal.constant and signal.mean == 1
        gates = _has_gates(node) or opened or SHIFTED.intersection((node.activation, *node.reparametrized))
        if node.role not in (Role.BIAS, Role.NORM_SHIFT) or gates or node.output or signal.rms < 0.5:
            continue
        for layer in evidence.signals.readers(node.name):
            moving = varying(layer)
            if _of_one_number(evidence, layer) and -1 <= signal.min <= signal.max <= 1:
                continue
            if any(evidence.signals.parameter(name).rms == 0 for name in layer.weights):
                continue  # beside a zero weight it is a start of its own, as the grid of deformable attention
            if layer.kind in DROWNING and moving and signal.rms > DROWNED * moving:
                seen = f"RMS {signal.rms:.3g}; what differs between inputs has RMS {moving:.3g}"
                severity = Severity.WARNING
                if _is_taken_away(evidence, layer) and signal.rms < ROUNDED * moving:
                    severity, seen = Severity.NOTE, f"{seen}; the norm behind it takes it away"
                yield finding("F208", severity, node.name, seen, edits=(Edit(node.name, Zeros()),))
                break


def _has_gates(node: ParameterNode) -> bool:
    """Whether a packed bias is of more than queries, keys and values: of gates, which a bias opens or shuts."""
    return not {block.name for block in node.axes.blocks} <= {"q", "k", "v"}


def _is_taken_away(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether a norm of each channel over the batch or its places follows at once, which subtracts its mean."""
    behind = evidence.signals.layers[layer.index + 1 : layer.index + 2]
    return any(one.kind is Kind.NORM and subtracts_channels(evidence, one) for one in behind)


def _of_one_number(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether a layer reads a single number, such as a time: its default bias, within ±1, spreads units over it."""
    nodes = (evidence.graph[name] for name in layer.weights)
    return any(node.is_weight and node.fans.fan_in == 1 for node in nodes)
