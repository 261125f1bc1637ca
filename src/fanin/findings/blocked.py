"""Gradients that do not arrive: zeros that block them, layers that nothing reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fanin.diagnoses import Finding, Severity
from fanin.findings.evidence import Evidence, varying
from fanin.findings.registry import finding, register
from fanin.graph import BESIDE, ParameterNode
from fanin.observations import Kind, LayerSignal, ParameterSignal

NEUTRAL = frozenset({"exp", "sigmoid", "softplus", "add"})
"""Between a parameter and what it scales, these turn a zero into a number that is none: exp(0) = 1."""
PRODUCTS = frozenset({"matmul", "mm", "bmm", "addmm", "einsum"})
ALIKE = 1e-3
"""Of an output: less is the rounding of what is the same for all inputs, √10⁻⁷ of a difference of squares."""


@register(
    "F401",
    "a zero that blocks all gradient",
    why="it is zero and receives no gradient, so that it stays, and what lies behind it never learns",
    threshold="exactly zero in value and in gradient, it or a named block of it, and still so when what is zero and "
    "does receive a gradient, such as a head, has moved; or a weight before a non-linearity or attention, exactly "
    "zero, past which no gradient gets to the layer before it. A zero head, a zero last weight or scale of a branch, a "
    "zero gate, a zero factor of an adapter receive gradients, open at the first step, and are right",
    remedy="draw it; of two zeros in a row, the first",
    source="Glorot and Bengio 2010; Hu et al. 2021 (arXiv:2106.09685) for the intended zero of an adapter",
)
def blocking_zero(evidence: Evidence) -> Iterator[Finding]:
    """Zero parameters without a gradient."""
    if not evidence.signals.has_gradients or not evidence.finite:
        return
    stuck = [node.name for node, signal in evidence.parameters() if _stuck(evidence, node, signal)]
    yield from _stuck_blocks(evidence)
    opened = _opened(evidence, stuck)
    for name in stuck:
        others = [other for other in stuck if other != name]
        seen = "all values are zero, and so is its gradient"
        if name in opened:
            seen += f"; it may stay so when {opened[name]} is drawn"
        edits = () if name in opened else evidence.redraw_alike(name)
        yield finding("F401", Severity.ERROR, name, seen, edits=edits, places=others[:8])
    if evidence.zero_head:  # then no gradient tells what else shuts
        return
    for node, _ in evidence.drawn():
        if node.name in evidence.intended_zeros and _is_hidden(node) and _shuts(evidence, node):
            severity = Severity.WARNING if node.stream is not None else Severity.ERROR
            seen = "all values are zero: what comes in does not pass, and what lies before gets no gradient at first"
            yield finding("F401", severity, node.name, seen, edits=evidence.redraw(node.name))


def _stuck_blocks(evidence: Evidence) -> Iterator[Finding]:
    """Blocks of packed weights, of which each shuts the other, as queries and keys do."""
    for node, signal in evidence.parameters():
        shut = [block.name for block in signal.blocks if block.blocked]
        if shut and node.role not in BESIDE and node.exercised:
            blocks = f"the {'blocks' if len(shut) > 1 else 'block'} {' and '.join(shut)}"
            seen = f"all values of {blocks} are zero, and so are their gradients"
            yield finding("F401", Severity.ERROR, node.name, seen, edits=evidence.redraw(node.name))


def _opened(evidence: Evidence, stuck: Sequence[str]) -> dict[str, str]:
    """The zeros that receive a gradient as soon as the zero before them is drawn, and the name of that one.

    They end a way that is added to another, so that they leave the output as it is: an adapter's second factor.
    """
    found: dict[str, str] = {}
    for name in stuck:
        reader = next(iter(evidence.signals.readers(name)), None)
        if reader is None or not _passes_beside(evidence, reader.index):
            continue
        together = [other for other in reader.weights if other in stuck and evidence.graph[other].is_weight]
        if len(together) > 1:  # a product of parameters, put in as one weight: its first factor takes in the more
            before = max(together, key=lambda other: evidence.graph[other].fans.fan_in)
        else:
            before = _zero_before(evidence, stuck, reader)
        if before not in ("", name):
            found[name] = before
    return {name: before for name, before in found.items() if name not in found.values()}


def _zero_before(evidence: Evidence, stuck: Sequence[str], reader: LayerSignal) -> str:
    """Which of the zeros lies right before an operation on its way; empty if none does."""
    depth = reader.weight_depth - (reader.kind is Kind.WEIGHT)
    for layer in reversed(evidence.signals.layers[: reader.index]):
        names = [name for name in layer.weights if name in stuck]
        if names and not layer.rms and layer.weight_depth >= depth:
            return names[0]
    return ""


def _is_hidden(node: ParameterNode) -> bool:
    """Whether a weight is followed by a non-linearity or an attention: not an output, the end of a branch, a shift."""
    followed = {node.activation, *(block.activation for block in node.axes.blocks)} - {None, "none", "gate_value"}
    return bool(followed) and not (node.output or node.residual_last or node.feedback)


def _shuts(evidence: Evidence, node: ParameterNode) -> bool:
    """Whether nothing passes a zero weight: no gradient to the layer before, or no difference between inputs behind."""
    readers = evidence.signals.readers(node.name)
    if not readers:
        return False
    first = readers[0].index
    steps = [layer for layer in evidence.signals.of_kind(Kind.WEIGHT, Kind.NORM, Kind.EMBEDDING) if layer.weights]
    before = next((layer for layer in reversed(steps) if layer.index < first), None)
    if before is None:
        behind = [layer for layer in evidence.trunk if layer.index >= first and layer.rms]
        return bool(behind) and not any(map(_differs, behind))
    if _passes_beside(evidence, first):
        return False
    signals = [evidence.signals.parameter(name) for name in before.weights]
    alive = [signal for signal in signals if signal.rms and signal.reached]
    return bool(alive) and not any(signal.grad_rms for signal in alive) and not _is_adapter(evidence, node, before)


def _passes_beside(evidence: Evidence, zero: int) -> bool:
    """Whether what a zero weight's output is put to still differs from input to input: a way leads around the zero."""
    joins = (Kind.WEIGHT, Kind.SUM, Kind.PRODUCT, Kind.ATTENTION)
    behind = next((layer for layer in evidence.signals.layers if layer.index > zero and layer.kind in joins), None)
    return behind is not None and _differs(behind)


def _differs(layer: LayerSignal) -> bool:
    """Whether an output differs from input to input, and not from place to place alone, as at a padding's borders."""
    alike = len(layer.shape) > 2 and layer.sample_cosine is not None and 1 - layer.sample_cosine <= ALIKE**2
    return varying(layer) > ALIKE * layer.rms and not alike


def _is_adapter(evidence: Evidence, node: ParameterNode, before: LayerSignal) -> bool:
    """Whether it is the second, zero factor of a product of low rank, which is added to another weight's output."""
    inner = node.fans.fan_in
    factors = (evidence.graph[name] for name in before.weights if evidence.graph[name].is_weight)
    return any(2 * inner <= min(factor.fans.fan_in, node.fans.fan_out) for factor in factors)


def _before_product(node: ParameterNode) -> tuple[str, ...]:
    """What is done to a parameter until it is multiplied with another matrix, whose product with a zero is zero."""
    products = [index for index, name in enumerate(node.reparametrized) if name in PRODUCTS]
    return node.reparametrized[: products[0]] if products else node.reparametrized


def _stuck(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> bool:
    zero = signal.constant and not signal.rms and not NEUTRAL.intersection(_before_product(node))
    # A zero head explains every zero gradient, where it could not be asked whether the first steps open the rest. In a
    # plain chain without one nothing passes a zero, even if training opens it from behind.
    stays = bool(signal.blocked) or (not evidence.zero_head and (signal.blocked is None or evidence.plain))
    return (
        zero and node.role not in BESIDE and bool(signal.reached) and not signal.grad_rms and node.exercised and stays
    )


@register(
    "F405",
    "parameters that are not reached",
    why="what receives no gradient does not learn; an optimizer with weight decay shrinks it all the same",
    threshold="it is used, and no gradient arrives, or one that is exactly zero although nothing that is zero or dead "
    "stands in its way, and it is in no copy of a trained module, such as a target network; a note when the run did "
    "not use it at all, or nothing that the model returned depends on it; an error when any of these is so of every "
    "weight",
    remedy="call it, remove it, freeze it, or take away the detach or rounding behind it",
    source="torch.nn.parallel.DistributedDataParallel: find_unused_parameters",
)
def not_reached(evidence: Evidence) -> Iterator[Finding]:
    """Parameters without a gradient."""
    if not evidence.finite:
        return
    if not evidence.signals.has_gradients:
        names = [node.name for node, _ in evidence.parameters()]
        if names and evidence.signals.loss is not None:  # without a loss, what is put out may be choices
            seen = "the loss depends on no parameter, so that nothing is trained"
            yield finding("F405", Severity.ERROR, names[0], seen, places=names[1:])
        return
    unused = [node.name for node, signal in evidence.parameters() if _unused(node, signal)]
    if unused:
        seen = "the run did not use it" + (f", nor {len(unused) - 1} more" if len(unused) > 1 else "")
        severity = Severity.ERROR if {node.name for node, _ in _weights(evidence)} <= set(unused) else Severity.NOTE
        yield finding("F405", severity, unused[0], seen, places=unused[1:])
    explained = _explains_zeros(evidence)
    cut = [
        (node.name, signal)
        for node, signal in evidence.parameters()
        if _cut(node, signal, explained) and not evidence.is_copy(node.name)
    ]
    needless = Severity.ERROR if _all_needless(evidence) else Severity.NOTE
    learns = any(signal.grad_rms for _, signal in _weights(evidence))
    untrained = Severity.WARNING if learns else Severity.ERROR
    for needed, severity, words in (
        (True, untrained, "no gradient arrives here"),
        (False, needless, "nothing that the model returned for these inputs depends on it"),
    ):
        names = [name for name, signal in cut if (signal.influential is not False) is needed]
        if names:
            more = f"; nor at {len(names) - 1} more" if needed else f"; nor on {len(names) - 1} more"
            yield finding("F405", severity, names[0], f"{words}{more if len(names) > 1 else ''}", places=names[1:])


def _weights(evidence: Evidence) -> list[tuple[ParameterNode, ParameterSignal]]:
    """The trained weights and tables; of a model without any, all of its parameters."""
    return list(evidence.drawn()) or list(evidence.parameters())


def _all_needless(evidence: Evidence) -> bool:
    """Whether the output depends on no weight of the model: a softmax or a norm over a single number ends it."""
    weights = [signal for node, signal in evidence.parameters() if node.is_weight and node.exercised]
    return bool(weights) and all(signal.influential is False and not signal.grad_rms for signal in weights)


def _unused(node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether the run did not use a parameter; one that the output depends on was used, if not by torch's own means."""
    return not node.exercised and not signal.grad_rms and not signal.influential


def _cut(node: ParameterNode, signal: ParameterSignal, explained: bool) -> bool:
    if signal.reached is None or _unused(node, signal):
        return False
    if not signal.reached:
        return True
    # Of what no layer reads, a clamp or rounding is all that can stand between it and the output.
    judged = node.is_weight or not node.exercised
    return judged and bool(signal.rms) and signal.grad_rms == 0 and not (explained or signal.dtype == "float16")


def _explains_zeros(evidence: Evidence) -> bool:
    """Whether a gradient may be zero for a reason that is no cut.

    That is a zero somewhere, dead units, a range that is too small; or what is no number, of which no part is other
    than zero.
    """
    if evidence.intended_zeros or _something_is_zero(evidence):
        return True
    return any(fact.grad_non_finite for fact in evidence.signals.parameters)


def _has_zero_block(node: ParameterNode, signal: ParameterSignal) -> bool:
    return node.role not in BESIDE and any(block.zero for block in signal.blocks)


def _something_is_zero(evidence: Evidence) -> bool:
    if any(_stuck(evidence, node, signal) or _has_zero_block(node, signal) for node, signal in evidence.parameters()):
        return True
    return any((layer.dead or 0) > 0.5 for layer in evidence.signals.layers)
