"""Attention that looks at one place only."""

from __future__ import annotations

from collections.abc import Iterator

from fanin.diagnoses import Finding, Severity
from fanin.findings.evidence import Evidence
from fanin.findings.registry import finding, register
from fanin.observations import Kind, LayerSignal

SHARP = 1 / 3
"""Of the entropy of looking everywhere alike: the cube root of the keys is left. The variance of the scores is then
two thirds of that at which the softmax of normal scores freezes onto single keys, 2 ln keys (Derrida 1981)."""
ONE_HOT = 0.2
FEW_KEYS = 4


@register(
    "F308",
    "attention that is one-hot",
    why="a softmax over large scores passes no gradient to queries and keys; each position copies another at random",
    threshold="entropy under a third of the uniform one, where ∛keys are left of the keys; an error under "
    f"{ONE_HOT:g}. Uniform attention is a healthy start",
    remedy="queries and keys of gain 1, scores times 1/√head width",
    source="Vaswani et al. 2017, section 3.2.1; Zhai et al. 2023 (arXiv:2303.06296)",
)
def one_hot(evidence: Evidence) -> Iterator[Finding]:
    """Entropy of attention far below uniform."""
    for layer in evidence.signals.of_kind(Kind.ATTENTION):
        if layer.entropy is None or (layer.keys or 0) < FEW_KEYS or layer.entropy >= SHARP or layer.non_finite:
            continue
        severity = Severity.ERROR if layer.entropy < ONE_HOT else Severity.WARNING
        seen = f"entropy {layer.entropy:.2f} of the uniform one over {layer.keys:.0f} keys"
        yield finding("F308", severity, layer.name, seen, edits=evidence.redraw(*_scores(evidence, layer)))


def _scores(evidence: Evidence, layer: LayerSignal) -> list[str]:
    """The weights of the queries and keys of this attention: the nearest before it."""
    names: list[str] = []
    for earlier in reversed(evidence.signals.layers[: layer.index + 1]):
        for name in earlier.weights:
            node = evidence.graph[name]
            ends = {node.activation, *(block.activation for block in node.axes.blocks)}
            if node.is_weight and ends & {"softmax_q", "softmax_k"}:
                names.append(name)
                if len(names) == 2 or node.axes.blocks:
                    return names
    return names
