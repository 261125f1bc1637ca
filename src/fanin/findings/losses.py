"""The first loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import Evidence
from fanin.findings.registry import finding, register
from fanin.graph import Role
from fanin.observations import Kind
from fanin.schemes import Zeros


@register(
    "F309",
    "a first loss far from uninformed",
    why="the net starts sure of wrong answers, and the first steps only unlearn them",
    threshold="over 1.5 times the loss of knowing nothing (ln C for C classes): the net knows less than nothing by "
    "half of that; over 3 times is an error",
    remedy="shrink the output layer, and zero its bias",
    source="Karpathy 2019, a recipe for training neural networks: verify the loss at init",
)
def first_loss(evidence: Evidence) -> Iterator[Finding]:
    """The loss against that of a uniform guess."""
    loss, uninformed = evidence.signals.loss, evidence.signals.uninformed
    if loss is None or not uninformed or not math.isfinite(loss) or loss <= 1.5 * uninformed:
        return
    outputs = [node for node, _ in evidence.parameters() if node.output]
    weights = [node.name for node in outputs if node.is_weight or node.role == Role.EMBEDDING]
    biases = [Edit(node.name, Zeros()) for node in outputs if node.role == Role.BIAS]
    severity = Severity.ERROR if loss > 3 * uninformed else Severity.WARNING
    seen = f"the loss is {loss:.3g}; knowing nothing costs {uninformed:.3g}"
    if not weights:
        last = [name for layer in evidence.signals.of_kind(Kind.WEIGHT)[-1:] for name in layer.weights]
        weights = [name for name in last if evidence.graph[name].role != Role.BIAS]
    edits = (*evidence.redraw(*weights), *biases)
    yield finding("F309", severity, weights[0] if weights else "", seen, edits=edits, places=weights[1:])
