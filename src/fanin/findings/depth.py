"""The size of the signal through depth: vanishing, exploding, streams that grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, takewhile

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import DRAWN, FAR, SHRUNK, Evidence, varying, weight_rms
from fanin.findings.registry import finding, register
from fanin.graph import NEARLY_ONE, ParameterNode, Role
from fanin.observations import Kind, LayerSignal
from fanin.recipes.branches import Branches
from fanin.schemes import Constant

LINE = math.sqrt(FAR)
"""e³ ≈ 20 in RMS, which is six e-foldings of the variance."""


SHALLOW, DEEP, DEFAULT = 5, 10, 0.36
"""So many layers train although each multiplies RMS by 1/√6 = 0.41, as PyTorch's default does before rectifiers, which
finite widths make 0.36 to 0.46; under so many do late, as AlexNet's eight; and more do not."""
STARVED = 1 / math.sqrt(LINE)
"""Half of the way to an error. A norm's output of less than its scale lowers the gain of what is behind it, as torch's
default does by √6 in every layer; published nets come to a third with an ε of 10⁻³ (torchvision's EfficientNet)."""
ABOVE_EPSILON = 0.1
"""A norm's ε is 10⁻³ at most, the power of a signal of RMS 0.03: one of three times that is not its ε's."""


@register(
    "F301",
    "activations that vanish",
    why="what differs between inputs shrinks from layer to layer, until biases and rounding outweigh it",
    threshold="its variance falls by six e-foldings (RMS to 1/20) through a net without norms or streams, the depth "
    "beyond which nets do not train; twelve are an error; the mean of n positions counts √n times. A note where at "
    f"most {SHALLOW} layers do so by PyTorch's own default, with which they train, and no error under {DEEP}. For a "
    "norm: an output of under 1/4.5 of its scale, where its ε outweighs the signal's variance twenty times; under 1/20 "
    "is an error",
    remedy="give every weight the gain of the activation behind it",
    source="Schoenholz et al. 2017 (arXiv:1611.01232); He et al. 2015, section 2.2",
)
def vanishing(evidence: Evidence) -> Iterator[Finding]:
    """The signal of the deepest layers against that of the first."""
    yield from _swallowed(evidence)
    if not evidence.plain or not evidence.finite:
        return
    start = _start(evidence)
    hidden = hidden_chain(evidence)
    if not start or len(hidden) < 2:
        return
    left = _left_by_depth(evidence, hidden)
    layers, (least, smallest) = min(enumerate(left, start=1), key=lambda item: item[1][0])
    ratio = least / start
    if ratio * LINE < 1:
        usual = ratio > DEFAULT**layers
        if usual and layers <= SHALLOW:
            severity = Severity.NOTE
        else:
            severity = Severity.ERROR if ratio * FAR < 1 and not (usual and layers < DEEP) else Severity.WARNING
        seen = f"what differs between inputs has RMS {least:.3g}, {ratio:.2g} of what the inputs have"
        yield finding("F301", severity, smallest.name, seen, edits=redrawn_chain(evidence))


def _left_by_depth(evidence: Evidence, hidden: Sequence[LayerSignal]) -> list[tuple[float, LayerSignal]]:
    """What is left of the signal behind each layer; of ways side by side the largest carries it."""
    best: dict[tuple[int | None, int], tuple[float, LayerSignal]] = {}
    for layer in hidden:
        place = (layer.tower, layer.weight_depth)
        size = _handed_on(evidence, layer) * math.sqrt(evidence.averaged(layer))
        if place not in best or size > best[place][0]:
            best[place] = (size, layer)
    return list(best.values())


def _handed_on(evidence: Evidence, layer: LayerSignal) -> float:
    """What a weight, or the activation behind it, hands on: a factor between them may make a small output large."""
    behind = takewhile(lambda later: later.kind != Kind.WEIGHT, islice(evidence.signals.layers, layer.index + 1, None))
    return max(varying(item) for item in (layer, *behind) if item is layer or item.kind == Kind.ACTIVATION)


def _swallowed(evidence: Evidence) -> Iterator[Finding]:
    """Norms whose ε is larger than what they normalize, and those that are left with nothing but zeros."""
    for layer in evidence.signals.of_kind(Kind.NORM) if evidence.finite else ():
        scales = [name for name in layer.weights if evidence.graph[name].role == Role.NORM_SCALE]
        scale = _scale(evidence, layer)
        # The mean over n positions takes √n from what differs, which is no weight's doing.
        limit = STARVED * scale / math.sqrt(evidence.averaged(layer, steps=2))
        if not scale or (scales and scale < 0.5) or layer.rms >= limit or not _standardizes(evidence, layer):
            continue
        # The rows of a table outgrow an ε by themselves: a step of Adam's is larger than many a table that is meant so.
        table = bool(layer.index) and evidence.signals.layers[layer.index - 1].kind == Kind.EMBEDDING
        severity = Severity.ERROR if layer.rms * LINE < scale and not table else Severity.WARNING
        if table and _norm_behind(evidence, layer):
            severity = Severity.NOTE  # as RWKV's, whose tables are meant to start next to nothing
        if severity is Severity.WARNING and any(_is_shut(evidence, layer, name) for name in scales):
            continue
        if layer.rms * LINE < scale and _given(evidence, layer) > ABOVE_EPSILON:
            seen = f"the norm puts out RMS {layer.rms:.3g}: what it normalizes together is all alike"
            yield finding("F301", severity, layer.name, seen)
        elif layer.rms or _zero_weight(evidence, layer):  # else the model feeds it zeros, such as queries of a decoder
            seen = f"the norm puts out RMS {layer.rms:.3g} with a scale of {scale:.3g}: its ε outweighs the signal"
            yield finding("F301", severity, layer.name, seen, edits=evidence.redraw(*_feeding(evidence, layer)))


def _norm_behind(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether another norm follows at once, and makes up for what this one left."""
    following = next(iter(evidence.signals.layers[layer.index + 1 :]), None)
    if following is None or following.kind is not Kind.NORM:
        return False
    return following.rms >= STARVED * _scale(evidence, following)


def _scale(evidence: Evidence, layer: LayerSignal) -> float:
    """What a norm multiplies with: the RMS of its scales; 1 without any."""
    scales = [name for name in layer.weights if evidence.graph[name].role == Role.NORM_SCALE]
    return evidence.signals.parameter(scales[0]).rms if scales else 1.0


def _is_shut(evidence: Evidence, layer: LayerSignal, scale: str) -> bool:
    """Whether a norm is in a residual branch that starts shut, by a layer scale or a last norm."""
    stream = evidence.graph[scale].stream
    later = islice(evidence.signals.layers, layer.index + 1, None)
    behind = (evidence.graph[name] for item in later for name in item.weights)
    end = next((node for node in behind if node.residual_last and node.stream == stream), None)
    return stream is not None and end is not None and bool(end.tamed_by)


def _standardizes(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether a norm divides by the size that a weight gives its input: not by what it had counted before."""
    if any(word in layer.target for word in ("layer_norm", "rms_norm", "group_norm")):
        return True
    return subtracts_channels(evidence, layer)


def subtracts_channels(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether an operation takes each channel's mean over the batch, or over places, from it."""
    # One that ran by its running statistics has no part in how large the signal is now.
    counted = any(note.startswith("run as in evaluation") for note in evidence.signals.notes)
    return any(word in layer.target for word in ("batch_norm", "instance_norm")) and not counted


def _given(evidence: Evidence, layer: LayerSignal) -> float:
    """How much what a norm is given, if the operation before it was measured, differs from input to input."""
    before = evidence.signals.layers[layer.index - 1] if layer.index else None
    carriers = (Kind.WEIGHT, Kind.ACTIVATION, Kind.EMBEDDING, Kind.POOLING, Kind.SUM)
    return varying(before) if before is not None and before.kind in carriers else 0.0


def _zero_weight(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether a weight before this operation is all zero."""
    names = (name for earlier in evidence.signals.layers[: layer.index] for name in earlier.weights)
    return any(evidence.graph[name].role in DRAWN and not evidence.signals.parameter(name).rms for name in names)


def _feeding(evidence: Evidence, layer: LayerSignal) -> tuple[str, ...]:
    """The last weight before a norm; or the tables whose rows are summed up before it, all of which are too small."""
    tables: dict[str, float] = {}
    for earlier in reversed(evidence.signals.layers[: layer.index]):
        if earlier.kind is Kind.EMBEDDING and earlier.weights:
            tables.setdefault(earlier.weights[0], earlier.rms)
        elif tables and earlier.kind in (Kind.WEIGHT, Kind.NORM):
            break
        elif earlier.kind is Kind.WEIGHT and earlier.weights:
            return earlier.weights[:1]
    return tuple(name for name, size in tables.items() if 0 < size < ABOVE_EPSILON) or tuple(tables)[:1]


@register(
    "F302",
    "activations that explode",
    why="the signal grows from layer to layer; the loss and its gradients with it",
    threshold="its RMS grows twentyfold (six e-foldings of the variance) from the input through a net without norms or "
    "streams; four-hundredfold is an error",
    remedy="give every weight the gain of the activation behind it",
    source="He et al. 2015, section 2.2",
)
def exploding(evidence: Evidence) -> Iterator[Finding]:
    """The largest signal against that of the input."""
    start = _start(evidence, whole=True)
    layers = [layer for layer in evidence.chain if layer.rms]
    if not evidence.plain or not start or not layers:
        return
    size, largest = max(((_of_weights(evidence, layer), layer) for layer in layers), key=lambda pair: pair[0])
    ratio = size / start
    if ratio > LINE:
        severity = Severity.ERROR if ratio > FAR else Severity.WARNING
        seen = f"RMS {size:.3g}, {ratio:.3g} times the input's"
        yield finding("F302", severity, largest.name, seen, edits=redrawn_chain(evidence))


def _of_weights(evidence: Evidence, layer: LayerSignal) -> float:
    """The RMS of an output without the layer's own bias, which is no growth of what came in."""
    biases = (name for name in layer.weights if evidence.graph[name].role is Role.BIAS)
    power = layer.rms**2 - sum(evidence.signals.parameter(name).rms ** 2 for name in biases)
    return max(math.sqrt(max(power, 0.0)), varying(layer))


def _start(evidence: Evidence, whole: bool = False) -> float:
    """The RMS of the first weight's input, from its output and its gain; of embeddings, that of the largest output."""
    looked_up = 0.0
    for layer in evidence.signals.layers:
        if layer.kind == Kind.EMBEDDING:
            looked_up = max(looked_up, layer.rms)
        elif looked_up and layer.kind in (Kind.WEIGHT, Kind.RECURRENT):
            return looked_up
        gain = evidence.gain(layer) if layer.kind == Kind.WEIGHT else None
        if gain:
            return min((layer.rms if whole else varying(layer)) / gain, 1e30)
    return looked_up


def hidden_chain(evidence: Evidence) -> list[LayerSignal]:
    """The chain without what only computes the output, scores or gates."""
    nodes = evidence.graph
    side = ("softmax_q", "softmax_k", "softmax", "sigmoid")

    def carries(layer: LayerSignal) -> bool:
        weights = [nodes[name] for name in layer.weights if nodes[name].is_weight]
        return bool(weights) and weights[0].name not in evidence.last and weights[0].activation not in side

    return [layer for layer in evidence.chain if carries(layer)]


def redrawn_chain(evidence: Evidence) -> tuple[Edit, ...]:
    """Edits of all weights of a plain chain, since the fault is their product.

    Where ways are joined, and pooled between, or factors are exponentials, no rule knows what comes to the end better
    than to a factor of a few: the output layer starts so small that the loss bears it.
    """
    edits = evidence.redraw(*_chain_weights(evidence))
    if evidence.alone and not any(node.activation == "exp" for node in evidence.graph):
        return edits
    outputs = {node.name for node in evidence.graph if node.output and node.is_weight}
    return tuple(_shrunk(edit) if edit.pattern in outputs else edit for edit in edits)


def _shrunk(edit: Edit) -> Edit:
    assert edit.scheme is not None
    return Edit(edit.pattern, edit.scheme.scaled(SHRUNK))


def _chain_weights(evidence: Evidence) -> list[str]:
    names = [name for layer in evidence.chain for name in layer.weights]
    nodes = (evidence.graph[name] for name in dict.fromkeys(names))
    trained = [node for node in nodes if not node.frozen and (node.is_weight or node.role == Role.BIAS)]
    chain = [node.name for node in trained if weight_rms(evidence.signals.parameter(node.name))]
    starts = [n.name for n, signal in evidence.parameters() if n.role == Role.EMBEDDING and signal.rms]
    return [*starts, *chain]


GROWTH = 3.0
"""Over √depth, which independent branches of one size add up to."""


@register(
    "F307",
    "a residual stream that grows",
    why="each branch adds in proportion to the stream, which grows exponentially: the last layers drown the rest",
    threshold=f"from the first branch to the last by over {GROWTH:g}·√depth, where branches of one size make it grow "
    "by √depth, while its branches grow by as much; ten times that is an error. Branches that each end in a norm or a "
    "layer scale of less than one are of one size, and streams that are normalized have one; without norms, streams "
    "that lead on to each other are judged together too",
    remedy="divide the last weight of each branch by √depth, or all of its weights alike where there are no norms; or "
    "start the last at zero",
    source="Zhang et al. 2019 (arXiv:1901.09321)",
)
def growing_stream(evidence: Evidence) -> Iterator[Finding]:
    """Streams that outgrow the square root of their depth; or those that follow one another, all together."""
    found = [one for stream, sums in evidence.signals.streams.items() for one in _growing(evidence, sums, stream)]
    yield from found or (one for sums in _in_a_row(evidence) for one in _growing(evidence, sums))


def _in_a_row(evidence: Evidence) -> Iterator[list[LayerSignal]]:
    """The sums of streams that lead on to each other without a norm: what one has grown to goes into the next."""
    if not Branches.of(list(evidence.graph)).in_a_row:
        return
    ways: dict[int | None, list[tuple[LayerSignal, ...]]] = {}
    for sums in evidence.signals.streams.values():
        ways.setdefault(sums[0].tower, []).append(sums)
    yield from (list(chain(*streams)) for streams in ways.values() if len(streams) > 1)


def _growing(evidence: Evidence, sums: Sequence[LayerSignal], stream: int | None = None) -> Iterator[Finding]:
    """The finding that a stream, or all in a row, outgrow what their branches would give if they were of one size."""
    ends = [node for node in evidence.graph if node.residual_last and stream in (None, node.stream)]
    if len(sums) < 2 or not sums[0].rms or (ends and all(_is_tamed(evidence, node) for node in ends)):
        return
    size = _without_zeroed(evidence, sums)
    first, last = sums[0], max(sums[1:], key=size)
    start = max(size(first), size(sums[1]) if len(sums) > 3 else 0.0, first.stream_start or 0.0)
    growth = size(last) / start
    limit = GROWTH * math.sqrt(len(sums))
    if growth > limit and _branch_growth(sums) > limit:
        severity = Severity.ERROR if growth > 10 * limit else Severity.WARNING
        which = "the streams in a row grow" if stream is None else f"stream {stream} grows"
        seen = f"{which} {growth:.3g} times over {len(sums)} branches; √{len(sums)} is usual"
        yield finding("F307", severity, last.name, seen, edits=_divided(evidence, ends, len(sums)))


def _divided(evidence: Evidence, ends: Sequence[ParameterNode], depth: int) -> tuple[Edit, ...]:
    """Edits that make branches smaller: of the learned scales at their ends, where there are any, or of their weights.

    What a scale multiplies, recipes leave to it.
    """
    loose = (node for node in ends if not _is_tamed(evidence, node))
    scales = dict.fromkeys(scale for node in loose if (scale := node.tamed_by or node.scaled_by))
    if scales:
        return tuple(Edit(name, Constant(1 / math.sqrt(depth))) for name in scales)
    shared = Branches.of(list(evidence.graph)).weights
    streams = {node.stream for node in ends}
    sharing = [node for node in evidence.graph if node.is_weight and node.stream in streams & shared.keys()]
    return evidence.redraw(*(node.name for node in sharing or ends if not node.frozen))


def _is_tamed(evidence: Evidence, node: ParameterNode) -> bool:
    """Whether a branch ends in what keeps it of one size: a norm, or a learned scale of less than one."""
    scale = node.tamed_by or node.scaled_by
    if not scale or node.post_norm:
        return node.post_norm
    norm = evidence.graph[scale].role is Role.NORM_SCALE
    return norm or evidence.signals.parameter(scale).rms < NEARLY_ONE


def _without_zeroed(evidence: Evidence, sums: Sequence[LayerSignal]) -> Callable[[LayerSignal], float]:
    """The measure of a stream: its RMS, or where a remedy zeroes a bias in it, whose doing that is, what varies."""
    inside = evidence.signals.layers[sums[0].index : sums[-1].index]
    zeroed = any(evidence.zeroes(name) for layer in inside for name in layer.weights)
    return varying if zeroed else lambda layer: layer.rms


def _branch_growth(sums: Sequence[LayerSignal]) -> float:
    """The largest branch over the larger of the first two, which are often of two kinds.

    Behind norms, branches are of one size whatever the stream is: on a small start they outgrow it, once.
    """
    sizes = [layer.branch_rms for layer in sums if layer.branch_rms]  # those that a zero shuts come later
    return max(sizes) / max(sizes[: 2 if len(sizes) > 2 else 1]) if sizes else 1.0
