"""The range of the chosen precision."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.diagnoses import Finding, Severity
from fanin.findings.evidence import Evidence
from fanin.findings.registry import finding, register
from fanin.observations import Kind, LayerSignal, ParameterSignal

LARGEST = {"float16": 65504.0}
ROOM = 8.0
"""Three doublings: what the first steps may add."""
LOST = 0.1
"""A tenth of a gradient."""
FLUSHED = 6.1e-5
"""The smallest normal number of float16; from here on precision is lost, and everything under 6·10⁻⁸."""


@register(
    "F310",
    "activations out of range",
    why="an infinity becomes not-a-number in the next norm or loss, and in every parameter after one step",
    threshold="any value, or a first loss, that is not finite although the parameters are; in float16 a warning within "
    f"{ROOM:g} times of 65504, of any operation behind a weight but of scores that masks may have filled",
    remedy="lower the gains of the weights before it, or compute in bfloat16 or float32",
    source="Micikevicius et al. 2018 (arXiv:1710.03740)",
)
def overflow(evidence: Evidence) -> Iterator[Finding]:
    """The first operation that is not finite."""
    if any(signal.non_finite for signal in evidence.signals.parameters):
        return
    loss = evidence.signals.loss
    everything = evidence.signals.layers if loss is not None and not math.isfinite(loss) else evidence.trunk
    broken = [layer for layer in everything if layer.non_finite]
    if not broken:
        last = evidence.signals.layers[-1:]
        broken = [layer for layer in last if layer.non_finite]
    if broken:
        seen = f"{broken[0].non_finite:.2%} of the values are not finite in {broken[0].dtype}"
        yield finding(
            "F310", Severity.ERROR, broken[0].name, seen, edits=evidence.redraw(*_behind(evidence, broken[0]))
        )
        return
    if loss is not None and not math.isfinite(loss):
        # A logarithm of zero, a root of something negative, an operation that is not measured.
        yield finding("F310", Severity.ERROR, "", "the first loss is not finite, though all measured operations are")
        return
    close = [
        layer
        for layer in evidence.signals.layers
        if layer.max * ROOM > LARGEST.get(layer.dtype, math.inf) and _carries(evidence, layer)
    ]
    if close:
        first = close[0]
        seen = f"values up to {first.max:.3g}; {first.dtype} ends at {LARGEST[first.dtype]:.0f}"
        # A power or a factor that overflows is no fault of the weights; if it is a parameter, it is to blame.
        blamed = _behind(evidence, first) if first in evidence.trunk else list(first.weights)
        yield finding("F310", Severity.WARNING, first.name, seen, edits=evidence.redraw(*blamed))


def _carries(evidence: Evidence, layer: LayerSignal) -> bool:
    """Whether an operation carries a signal; masked scores are at the range's end on purpose, inputs are the user's."""
    masked = layer.scores and layer.kind is not Kind.PRODUCT
    return layer in evidence.trunk or (layer.weight_depth > 0 and not masked and layer.kind is not Kind.ATTENTION)


def _behind(evidence: Evidence, layer: LayerSignal) -> list[str]:
    """All weights up to an operation: their product is what overflowed."""
    names = [name for earlier in evidence.signals.layers[: layer.index + 1] for name in earlier.weights]
    return [name for name in dict.fromkeys(names) if evidence.graph[name].is_weight]


@register(
    "F406",
    "gradients out of range",
    why="gradients under 6·10⁻⁸ are zero in float16, and infinite ones poison every parameter",
    threshold=f"in float16 over {LOST:.0%} of a gradient exactly zero while the rest is subnormal; any that is not "
    "finite",
    remedy="scale the loss, compute in bfloat16, or raise the gains of the layers behind it",
    source="Micikevicius et al. 2018 (arXiv:1710.03740)",
)
def gradient_range(evidence: Evidence) -> Iterator[Finding]:
    """Gradients that the precision cannot hold."""
    if not evidence.finite or evidence.zero_head:
        return
    for node, signal in evidence.parameters():
        if signal.grad_non_finite and not signal.non_finite:
            seen = f"{signal.grad_non_finite:.2%} of its gradient is not finite"
            yield finding("F406", Severity.ERROR, node.name, seen, edits=evidence.redraw(node.name))
        elif node.is_weight and _flushed(signal):
            seen = f"{signal.grad_zero:.0%} of its gradient is zero, the rest under {FLUSHED:g}, in float16"
            edits = evidence.redraw(*_all_weights(evidence))
            yield finding("F406", Severity.WARNING, node.name, seen, edits=edits)


def _flushed(signal: ParameterSignal) -> bool:
    return signal.dtype == "float16" and (signal.grad_zero or 0) > LOST and (signal.grad_max or 0) < FLUSHED


def _all_weights(evidence: Evidence) -> list[str]:
    return [node.name for node, _ in evidence.parameters() if node.is_weight]
