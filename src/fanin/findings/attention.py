"""Attention that looks at one place only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import Evidence, weight_rms
from fanin.findings.factors import learned_factor, of_unit_vectors
from fanin.findings.registry import finding, register
from fanin.graph import ParameterNode, Role
from fanin.observations import Kind, LayerSignal
from fanin.recipes.questions import enters_scores
from fanin.schemes import Normal, Packed, Scheme, Zeros

SHARP = 1 / 3
"""Of the entropy of looking everywhere alike: the cube root of the keys is left. The variance of the scores is then
two thirds of that at which the softmax of normal scores freezes onto single keys, 2 ln keys (Derrida 1981)."""
ONE_HOT = 0.2
FEW_KEYS = 4
ROOM = 1.5
"""Normal scores of standard deviation s cost s²/2 nats of entropy: at 1.5 over a third is left from six keys on, and
weights that make such scores need no further factor."""
SMALL_BIAS = 0.02
"""Of a table of biases of the scores (Liu et al. 2021, arXiv:2103.14030): looking everywhere alike."""


@register(
    "F308",
    "attention that is one-hot",
    why="a softmax over large scores passes no gradient to queries and keys; each position copies another at random",
    threshold="entropy under a third of the uniform one, where ∛keys are left of the keys; an error under "
    f"{ONE_HOT:g}. Uniform attention is a healthy start. A note where it is not yet so, and will be once the scale of "
    "the norm before it is mended",
    remedy="queries and keys of gain 1, scores times 1/√head width; where the model has no such factor, smaller "
    "queries do the same, and where it learns one of unit vectors, a smaller start of it; one that is fixed is in the "
    "model's code; biases of scores near zero",
    source="Vaswani et al. 2017, section 3.2.1; Zhai et al. 2023 (arXiv:2303.06296)",
    last=True,
)
def one_hot(evidence: Evidence) -> Iterator[Finding]:
    """Entropy of attention far below uniform."""
    for layer in evidence.signals.of_kind(Kind.ATTENTION):
        if layer.entropy is None or (layer.keys or 0) < FEW_KEYS or layer.non_finite:
            continue
        grown = _grown(evidence, layer)
        if layer.entropy < SHARP:
            severity = Severity.ERROR if layer.entropy < ONE_HOT else Severity.WARNING
            seen = f"entropy {layer.entropy:.2f} of the uniform one over {layer.keys:.0f} keys"
            yield finding("F308", severity, layer.name, seen, edits=_softened(evidence, layer, grown))
        elif grown > 1 and _will_be_sharp(layer, grown):
            seen = f"once the norm before it is mended, scores are {grown:.2g} times larger, and attention is one-hot"
            yield finding("F308", Severity.NOTE, layer.name, seen, edits=_softened(evidence, layer, grown))


def _grown(evidence: Evidence, layer: LayerSignal) -> float:
    """By what the scores grow when the norm before queries and keys gets the scale that remedies plan."""
    readers = (reader for name in _scores(evidence, layer) for reader in _before(evidence, name, layer))
    first = min((reader.index for reader in readers), default=0)
    norms = (one for one in reversed(evidence.signals.layers[:first]) if one.kind is Kind.NORM)
    scales = [name for name in next((one.weights for one in norms), ()) if evidence.graph[name].role == Role.NORM_SCALE]
    return math.prod(evidence.becomes(name) for name in scales) ** 2


def _relief(evidence: Evidence, layer: LayerSignal) -> float:
    """By what remedies multiply the scores before queries and keys, which packed ones take in twice."""
    reliefs = [
        evidence.relief(reader) for name in _scores(evidence, layer) for reader in _before(evidence, name, layer)
    ]
    return math.prod(reliefs) ** (2 / max(len(reliefs), 1))


def _before(evidence: Evidence, name: str, layer: LayerSignal) -> list[LayerSignal]:
    return [reader for reader in evidence.signals.readers(name) if reader.index <= layer.index][-1:]


def _will_be_sharp(layer: LayerSignal, grown: float) -> bool:
    """Whether normal scores that are so many times larger cost as much entropy as makes a finding."""
    return ((layer.score_std or 0.0) * grown) ** 2 / 2 > (1 - SHARP) * math.log(layer.keys or 1)


def _softened(evidence: Evidence, layer: LayerSignal, grown: float) -> tuple[Edit, ...]:
    """Edits after which the scores have a standard deviation of 1 over the keys: of their scale, or of queries."""
    spread = (layer.score_std or 1.0) * grown
    factor = learned_factor(evidence, layer.index)
    if factor is not None:
        return (factor.divided(spread),)
    if of_unit_vectors(evidence, layer.index):
        return ()  # the factor is the model's, and no plan's
    relief = _relief(evidence, layer)
    drawn = math.prod(evidence.becomes(name) for name in _scores(evidence, layer))
    if relief < 1 and spread * relief * drawn <= ROOM:
        return ()  # what comes in is to blame, and mended
    spread *= relief
    tables = _added(evidence, layer, spread)
    if tables:
        # What the products of queries and keys have of the spread; scaled afterwards, they have less than they show.
        rest = math.sqrt(max(spread**2 - sum(evidence.signals.parameter(name).rms ** 2 for name in tables), 0.0))
        small = tuple(Edit(name, Normal(SMALL_BIAS)) for name in tables)
        harmless = min(rest, _product(evidence, layer)) <= ROOM
        return small if harmless else (*small, *_smaller_queries(evidence, layer, rest))
    return _smaller_queries(evidence, layer, spread)


def _added(evidence: Evidence, layer: LayerSignal, spread: float) -> list[str]:
    """The tables of biases that are added to the scores, and that make a softmax sharp by themselves."""
    found = []
    for node, signal in evidence.parameters():
        table = not node.is_weight and len(node.shape) > 1 and enters_scores(node)
        before = any(reader.index < layer.index for reader in evidence.signals.readers(node.name))
        if table and before and signal.rms > max(ROOM, spread / 4):
            found.append(node.name)
    return found


def _product(evidence: Evidence, layer: LayerSignal) -> float:
    """The RMS of the nearest product of two signals before an attention."""
    before = evidence.signals.layers[: layer.index]
    return next((earlier.rms for earlier in reversed(before) if earlier.kind == Kind.PRODUCT), math.inf)


def _smaller_queries(evidence: Evidence, layer: LayerSignal, spread: float) -> tuple[Edit, ...]:
    """Edits of the weights of queries and keys."""
    names = _scores(evidence, layer)
    if not names:
        return _smaller_factors(evidence, layer, spread)
    edits = evidence.redraw(*names)
    # The recommended weights may leave the scores large: where nothing divides them by √width, queries have to.
    left = spread * math.prod(_change(evidence, name) for name in names)
    if left <= ROOM or not edits:
        return edits
    first = next((edit for edit in edits if _queries(evidence, edit.pattern)), edits[0])
    assert first.scheme is not None
    smaller = replace(first, scheme=_smaller(evidence.graph[first.pattern], first.scheme, left))
    # A bias beside them would be all that is left of the queries.
    beside = dict.fromkeys(name for reader in evidence.signals.readers(first.pattern) for name in reader.weights)
    biases = (Edit(name, Zeros()) for name in beside if evidence.graph[name].role == Role.BIAS)
    return (*(smaller if edit is first else edit for edit in edits), *biases)


def _smaller_factors(evidence: Evidence, layer: LayerSignal, spread: float) -> tuple[Edit, ...]:
    """Edits of the vectors that signals are multiplied with to make scores of them, where no weight does."""
    factors: list[str] = []
    for earlier in reversed(evidence.signals.layers[: layer.index]):
        if earlier.kind is Kind.WEIGHT:
            break
        if earlier.target == "mul":
            factors += [name for name in earlier.weights if len(evidence.graph[name].shape) > 1]
    return tuple(Edit(name, Normal(evidence.signals.parameter(name).rms / spread)) for name in factors)


def _change(evidence: Evidence, name: str) -> float:
    """What the scores are multiplied by when a weight is drawn as recommended; a packed one makes both sides."""
    node, signal = evidence.graph[name], evidence.signals.parameter(name)
    if node.axes.blocks:
        stds = {block.name: math.hypot(block.mean, block.std) for block in signal.blocks}
        want = {part: evidence.scheme(name).part(part) for part in ("q", "k") if stds.get(part)}
        fans = node.axes.block_fans(node.shape)
        return math.prod(scheme.expected(fans[part]).std / stds[part] for part, scheme in want.items())
    have = weight_rms(signal)
    return evidence.scheme(name).expected(node.fans, node.shape, node.axes).std / have if have else 1.0


def _queries(evidence: Evidence, name: str) -> bool:
    node = evidence.graph[name]
    return "softmax_q" in {node.activation, *(block.activation for block in node.axes.blocks)}


def _smaller(node: ParameterNode, scheme: Scheme, factor: float) -> Scheme:
    """The scheme divided by a factor; of a packed weight its queries alone."""
    names = [block.name for block in node.axes.blocks]
    if "q" not in names:
        return scheme.scaled(1 / factor)
    parts = {name: scheme.part(name) for name in names}
    return Packed.of({**parts, "q": parts["q"].scaled(1 / factor)})


def _scores(evidence: Evidence, layer: LayerSignal) -> list[str]:
    """The weights of the queries and keys of this attention, or of its scores: the nearest before it."""
    names: list[str] = []
    for earlier in reversed(evidence.signals.layers[: layer.index + 1]):
        for name in earlier.weights:
            node = evidence.graph[name]
            ends = {node.activation, *(block.activation for block in node.axes.blocks)}
            drawn = node.is_weight or node.role == Role.EMBEDDING
            if drawn and ends & {"softmax_q", "softmax_k", "softmax"}:
                names.append(name)
                if len(names) == 2 or node.axes.blocks or "softmax" in ends:
                    return names
    return names
