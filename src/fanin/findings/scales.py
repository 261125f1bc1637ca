"""Weights whose scale contradicts what they contract."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.depth import redrawn_chain
from fanin.findings.evidence import Evidence, weight_rms
from fanin.findings.registry import finding, register
from fanin.graph import ParameterNode, Role
from fanin.observations import BlockSignal, Kind, ParameterSignal
from fanin.schemes import Scheme

LARGE = 5.0
"""Over the recommended scale. The gains that activations ask for lie between 1 and 2.4 (softsign; 4.8 for a centred
sigmoid): a weight five times over its own is scaled for no activation."""
LARGE_FEEDBACK = 3.0
"""For what a state is multiplied by at every step: a state within ±1 then saturates the gates that hold it there."""
VERY_LARGE = 25.0
"""`LARGE` squared: as two layers, each at the line."""
SMALL = 1 / 32
"""Under the recommended scale: a weight that hands on a thousandth of the power, in a place where nothing makes up
for it. Small starts are common (0.02 at any width, small heads), so the line is far out."""
SMALL_FED = SMALL / 32
"""For what feeds a state, which sums it up over its steps: identity recurrences are published with a std of 0.001 (Le
et al. 2015), 1/350 of the scale."""
CONFUSED = 1.9
"""With a known wrong fan that the scale agrees with, a factor of two is no accident."""
SCALES = (1 / 3, 1.0, 2.0)
"""Of variances: torch's default for its layers, LeCun's and Xavier's, He's."""
MANY = 256
"""Values: of fewer, standard deviations agree by chance."""
WRITTEN = 0.5
"""Of the units that equal another."""
FARTHEST = 0.1
"""How far a std may be from a candidate that it agrees with, of however few values."""
AGREES = 0.03
"""How near a std must be to a candidate; the sampling error of 2,000 normal values is 1.6 %."""


@register(
    "F201",
    "a weight whose scale contradicts its true fans",
    why="every unit's input is the sum over its true fan_in: with another number the signal shrinks or grows here",
    threshold=f"{LARGE:g} times over what the auto recipe gives ({LARGE_FEEDBACK:g} times in a recurrence, or as "
    f"much under it in one without gates), or under 1/{1 / SMALL:g} of it (1/{1 / SMALL_FED:g} of what feeds a state), "
    f"in a net without norms and streams; a factor of {CONFUSED:g} when the std is exactly that "
    "of a known misreading of the fans, and not one that other weights share. A note where a norm comes before any "
    "non-linearity, and for an output layer whose first loss is near that of knowing nothing",
    remedy="draw it by its true fans",
    source="pytorch/pytorch#23854",
)
def wrong_scale(evidence: Evidence) -> Iterator[Finding]:
    """Standard deviations far from the recommended one."""
    for node, signal in evidence.parameters():
        if not (_judged(node, signal) or (evidence.plain and node.role == Role.EMBEDDING and signal.rms)):
            continue
        for words, ratio in _ratios(evidence, node, signal):
            found = _judge(evidence, node, ratio, signal)
            if found is not None:
                severity, cause = found
                edits = redrawn_chain(evidence) if evidence.plain else ()
                if all(edit.pattern != node.name for edit in edits):
                    edits = (*edits, *evidence.redraw(node.name))
                yield finding("F201", severity, node.name, f"{words}{cause}", edits=edits)
                break


def _judged(node: ParameterNode, signal: ParameterSignal) -> bool:
    weight = node.is_weight and signal.elements >= 16 and not signal.non_finite
    parametrized = bool(node.reparametrized) and (signal.effective_std is None or node.standardized)
    return weight and not parametrized and weight_rms(signal) > 0


def _ratios(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> Iterator[tuple[str, float]]:
    """For the weight, or each of its blocks: words, measured over recommended RMS."""
    row = evidence.recommended[node.name]
    if row.kept:
        return
    if not node.axes.blocks:
        want = _target(evidence, node, row.expected.std)
        have = weight_rms(signal)
        yield f"RMS {have:.3g} where its fans ask for {want:.3g}", have / want if want else 1.0
        return
    for block in signal.blocks:
        want, have = row.block_std.get(block.name, 0.0), _rms(block)
        if want and have:
            words = f"block {block.name}: RMS {have:.3g} where its fans ask for {want:.3g}"
            yield words, have / want


def _target(evidence: Evidence, node: ParameterNode, std: float) -> float:
    """An output layer may be anything up to gain 1; what a branch ends in or a gate lets pass, without its depth.

    Before a function of the model's own that makes its input larger, a gain under 1 is advice, and no fan's.
    """
    one = 1 / math.sqrt(max(node.fans.fan_in, 1.0))
    if node.name in evidence.last or node.residual_last or node.gate == "factor":
        return one
    return max(std, one) if node.captured is not None and evidence.plain else std


def _rms(block: BlockSignal) -> float:
    return math.hypot(block.mean, block.std)


def _judge(
    evidence: Evidence, node: ParameterNode, ratio: float, signal: ParameterSignal
) -> tuple[Severity, str] | None:
    table = node.role == Role.EMBEDDING
    suspicious = max(ratio, 1 / ratio) >= CONFUSED and not (table or _chosen(evidence, node, signal))
    cause = misread(node, signal) if suspicious else ""
    if node.feedback:
        again = "; it acts anew at every step"
        forgets = ratio * LARGE_FEEDBACK < 1 and not node.axes.blocks  # gates remember by themselves
        return (Severity.WARNING, again) if ratio > LARGE_FEEDBACK or forgets else None
    plain, normed = evidence.plain, node.norm_after or _normed_behind(evidence, node)
    if ratio > LARGE:
        if ratio * _unit_length(evidence, node) <= LARGE:
            return None
        if node.output and evidence.fair_loss and ratio <= VERY_LARGE:
            return Severity.NOTE, f"{cause}; the first loss knows about as much as nothing, and bears it"
        severity = Severity.ERROR if ratio > VERY_LARGE else Severity.WARNING
        if not plain and _is_by_outputs(node, signal):
            severity = Severity.WARNING if ratio > VERY_LARGE else Severity.NOTE
        return Severity.NOTE if normed else severity, cause
    # What lies in a branch, or at the end, may be small: the stream carries the signal past it.
    free = node.stream is not None or node.name in evidence.last or node.aliases or node.tamed_by or normed
    if ratio < (SMALL_FED if node.feeds_state else SMALL) and plain and not free:
        return (Severity.NOTE if table else Severity.WARNING), cause
    if cause:
        drawn = node.default is not None and _is_default(node, signal)
        # What a stream passes by may be small, most of all a branch's end; but a stack is off by a factor that grows
        # with its matrices, and by accident: no convention divides by them.
        harmless = drawn or (free and (node.residual_last or not _is_stack(node)))
        return (Severity.NOTE if harmless else Severity.WARNING), cause
    return None


def _unit_length(evidence: Evidence, node: ParameterNode) -> float:
    """The RMS of what a weight takes in, where that is vectors of unit length, which a larger weight makes up for.

    What the recommended weight makes up for already counts once.
    """
    if node.input_rms != 1:
        return 1.0
    for reader in evidence.signals.readers(node.name)[:1]:
        for layer in reversed(evidence.signals.layers[: reader.index]):
            if layer.tower == reader.tower and layer.weight_depth < reader.weight_depth:
                return min(layer.rms, 1.0) if layer.target == "normalize" else 1.0
    return 1.0


def _normed_behind(evidence: Evidence, node: ParameterNode) -> bool:
    """Whether a norm follows with nothing but other weights between, as behind separable convolutions."""
    readers = evidence.signals.readers(node.name)
    if not readers:
        return False
    depth = readers[-1].weight_depth
    for layer in evidence.signals.layers[readers[-1].index + 1 :]:
        if layer.kind is not Kind.WEIGHT:
            return layer.kind is Kind.NORM and depth > readers[-1].weight_depth
        # Beside a bias its scale counts again; what is no deeper lies beside it.
        biased = any(evidence.graph[name].role is Role.BIAS for name in layer.weights)
        depth += 1
        if biased or layer.weight_depth != depth:
            return False
    return False


def _chosen(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether weights of other fans share this standard deviation: then it is a chosen number, such as 0.02.

    The two stacks of a layer of experts, d × h and h × d, share it when both are misread, as d · h; so those whose own
    std agrees with a misreading do not count.
    """
    if not signal.std:
        return False
    alike = (
        (other, measured)
        for other, measured in evidence.drawn_between((1 - FARTHEST) * signal.std, (1 + FARTHEST) * signal.std)
        if measured.elements >= MANY and _near(measured.std, signal.std, measured)
    )
    others = (one for one in alike if one[0].name != node.name and one[0].fans != node.fans)
    return len(list(islice((one for one in others if not misread(*one)), 2))) == 2


def _is_default(node: ParameterNode, signal: ParameterSignal) -> bool:
    assert node.default is not None
    return _near(signal.std, node.default.expected(node.fans, node.shape, node.axes).std, signal)


def misread(node: ParameterNode, signal: ParameterSignal) -> str:
    """The known misreading of the fans that a std agrees with, in words; empty when it agrees with a right one.

    Candidates are He's, Xavier's and LeCun's variances, with fans read as ``torch.nn.init`` reads them from the shape,
    with in and out exchanged, or with the kernel's area left out.
    """
    shape = node.shape
    # What repeats one kernel was written, and what is written has a std that agrees with a rule by chance alone.
    if len(shape) < 2 or max(signal.duplicate_rows, signal.duplicate_columns) > WRITTEN:
        return ""
    area = math.prod(shape[2:])
    fans = node.fans
    if any(_near(signal.std, std, signal) for std in _conventions(node)):
        return ""
    readings = {
        "the fans that torch.nn.init reads from its shape": (shape[1] * area, shape[0] * area),
        "in and out exchanged": (fans.fan_out, fans.fan_in),
        "fans without the kernel's area": (shape[1], shape[0]),
    }
    for words, (first, second) in readings.items():
        if (first, second) != (fans.fan_in, fans.fan_out) and any(
            _near(signal.std, std, signal) for std in _variances(first, second)
        ):
            return f"; it agrees with {words}, {first:g} and {second:g}, where the true ones are {_pair(fans)}"
    return ""


def _conventions(node: ParameterNode) -> Iterator[float]:
    """The standard deviations that known rules give by the true fans."""
    fans, shape = node.fans, node.shape
    # A third is torch's default, of its own layers, whose fans torch.nn.init reads right; those of a stack it cannot.
    scales = SCALES[1:] if _is_stack(node) else SCALES
    if node.axes.transposed:
        # What torch.nn.init takes for the fan_in of these is their fan_out: so no rule for the way back is meant, nor
        # Xavier's, which a far larger fan_out makes nearly the same; torch's own default is as it is.
        yield from _variances(fans.fan_in, fans.fan_in, scales)
        yield from _variances(fans.fan_out, fans.fan_out, SCALES[:1])
        return
    # A fan_out that counts every output of a strided convolution is a convention, if not ours.
    every = float(shape[0] * math.prod(shape[2:]))
    for fan in {fans.fan_out, every} if node.axes.groups == 1 else {fans.fan_in, fans.fan_out}:
        yield from _variances(fans.fan_in, fan, scales)


def _pair(fans: tuple[float, float]) -> str:
    return f"{fans[0]:g} and {fans[1]:g}"


def _is_by_outputs(node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether a weight is drawn by He's rule for the way back, as published residual nets are, squeezes included.

    A funnel of many inputs to few outputs is then large; norms and streams around it, and the gate behind, bear that.
    """
    return _near(signal.std, math.sqrt(2 / max(node.fans.fan_out, 1.0)), signal)


def _is_stack(node: ParameterNode) -> bool:
    """Whether a tensor of three axes or more holds matrices side by side along its first, as those of experts."""
    axes = node.axes
    several = next((part for part in (axes.in_axis, axes.out_axis) if 0 in part and len(part) > 1), ())
    return node.role is Role.LINEAR and len(node.shape) > 2 and (0 in axes.batch_axis or bool(several))


def _variances(fan_in: float, fan_out: float, scales: tuple[float, ...] = SCALES) -> Iterator[float]:
    for scale in scales:
        for fan in (fan_in, fan_out, (fan_in + fan_out) / 2):
            yield math.sqrt(scale / max(fan, 1.0))


def _near(std: float, candidate: float, signal: ParameterSignal) -> bool:
    error = max(AGREES, 4 / math.sqrt(2 * signal.elements))
    return abs(std / candidate - 1) < min(error, FARTHEST)


@register(
    "F209",
    "packed matrices drawn as one",
    why="Xavier's rule on a packed tensor counts the rows of all blocks as one fan_out, so that each block gets less "
    "than its share: √2 for packed queries, keys and values, up to √2.5 for the gates of an LSTM",
    threshold="a std that agrees, within sampling, with Xavier for the whole tensor and not for its blocks; a note "
    "only, for models are published so and train",
    remedy="draw each block by its own fans",
    source="pytorch/pytorch#166378",
)
def packed_as_one(evidence: Evidence) -> Iterator[Finding]:
    """Xavier over a packed tensor."""
    for node, signal in evidence.parameters():
        if node.role not in (Role.LINEAR, Role.RECURRENT) or len(node.axes.blocks) < 2 or len(node.shape) != 2:
            continue
        # Of an LSTM with twice as many inputs as units, torch's default is the same number.
        if node.role is Role.RECURRENT and node.default is not None and _is_default(node, signal):
            continue
        together = math.sqrt(2 / (node.shape[0] + node.shape[1]))
        if (
            _near(signal.std, together, signal)
            and len({round(block.std / together, 1) for block in signal.blocks}) == 1
        ):
            seen = f"std {signal.std:.3g} is Xavier's for {node.shape[0]}×{node.shape[1]} as one matrix"
            scheme: Scheme = evidence.scheme(node.name)
            yield finding("F209", Severity.NOTE, node.name, seen, edits=(Edit(node.name, scheme),))
