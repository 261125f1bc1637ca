"""The first loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import Evidence, weight_rms
from fanin.findings.factors import learned_factor, of_unit_vectors
from fanin.findings.registry import finding, register
from fanin.graph import Role
from fanin.observations import Kind
from fanin.schemes import Zeros

NATS = 1.2
"""A head of He's gain has logits of variance 2, which cost one nat, up to a fifth, at any number of classes. Where
classes are few, that is half of ln C and more; the first steps undo it."""
SHRUNK = 0.3
"""Of the recommended output layer: its outputs have a tenth of the power, and the loss hardly feels them."""


@register(
    "F309",
    "a first loss far from uninformed",
    why="the net starts sure of wrong answers, and the first steps only unlearn them",
    threshold="for cross-entropy over 1.5 times ln C, the loss of knowing nothing: the net knows less than nothing by "
    f"half of that, and by {NATS:g} nats at least; over 3 times is an error. Another loss is compared with that of "
    "zeros: over 3 times, where outputs have twice the power of their targets; over 9 times is an error. Of cosines "
    "only the errors are told: what they are multiplied by is a temperature, and chosen",
    remedy="shrink the output layer, or the learned scale of cosines, and zero its bias",
    source="Karpathy 2019, a recipe for training neural networks: verify the loss at init",
)
def first_loss(evidence: Evidence) -> Iterator[Finding]:
    """The loss against that of a uniform guess."""
    loss, uninformed = evidence.signals.loss, evidence.signals.uninformed
    # A ratio says something of losses that start at zero: a log-likelihood of densities may have either sign.
    if loss is None or uninformed is None or uninformed <= 0 or not math.isfinite(loss):
        return
    line, wrong = (1.5, 3.0) if _is_entropy(uninformed) else (3.0, 9.0)
    cosines = of_unit_vectors(evidence, len(evidence.signals.layers))
    line = wrong if cosines else line  # their scale is a temperature, and chosen
    if loss <= line * uninformed or (_is_entropy(uninformed) and loss <= uninformed + NATS):
        return
    severity = Severity.ERROR if loss > wrong * uninformed else Severity.WARNING
    seen = f"the loss is {loss:.3g}; knowing nothing costs {uninformed:.3g}"
    factor = learned_factor(evidence, len(evidence.signals.layers)) if cosines else None
    if factor is not None:
        edit = factor.divided(evidence.signals.layers[-1].rms or 1.0)
        yield finding("F309", severity, factor.node.name, seen, edits=(edit,))
        return
    weights = _output_weights(evidence)
    edits = () if cosines else _shrunk(evidence, weights)
    yield finding("F309", severity, weights[0] if weights else "", seen, edits=edits, places=weights[1:])


def _output_weights(evidence: Evidence) -> list[str]:
    """The output layers' weights, or those of the last layer where none is known for one."""
    outputs = [node for node, _ in evidence.parameters() if node.output]
    weights = [node.name for node in outputs if node.is_weight or node.role == Role.EMBEDDING]
    if weights:
        return weights
    last = [name for layer in evidence.signals.of_kind(Kind.WEIGHT)[-1:] for name in layer.weights]
    return [name for name in last if evidence.graph[name].role != Role.BIAS]


def _shrunk(evidence: Evidence, weights: list[str]) -> tuple[Edit, ...]:
    biases = (node.name for node, _ in evidence.parameters() if node.output and node.role == Role.BIAS)
    smaller = (Edit(name, evidence.scheme(name).scaled(SHRUNK / _left(evidence, name))) for name in weights)
    return (*smaller, *(Edit(name, Zeros()) for name in biases))


def _left(evidence: Evidence, name: str) -> float:
    """The outputs' RMS when the weight is drawn as recommended, if over 1: what comes in may be as large."""
    node, have = evidence.graph[name], weight_rms(evidence.signals.parameter(name))
    largest = max((layer.rms for layer in evidence.signals.readers(name) if layer.kind == Kind.WEIGHT), default=0.0)
    if not have:
        return 1.0
    return max(largest * evidence.scheme(name).expected(node.fans, node.shape, node.axes).std / have, 1.0)


def _is_entropy(uninformed: float) -> bool:
    """Whether the loss of an output of zeros is ln C for a whole number C, as that of a cross-entropy is."""
    classes = math.exp(min(uninformed, 100.0))
    return classes > 1.5 and abs(classes - round(classes)) < 1e-5 * classes
