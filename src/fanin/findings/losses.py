"""The first loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import NATS, SHRUNK, Evidence, is_entropy, weight_rms
from fanin.findings.factors import learned_factor, of_unit_vectors
from fanin.findings.registry import finding, register
from fanin.graph import BESIDE, ParameterNode, Role
from fanin.observations import ERASING, Kind, LayerSignal, ParameterSignal
from fanin.schemes import Constant, Ones, Zeros
from fanin.signals import OF_STANDARD

FREE = 1e-3
"""The cosine between a weight and its gradient: 0 but for a norm's ε (1e-5 of unit variance) where its scale is taken
away; of heads that are sure and wrong, with 50,000 classes and a batch of 8, it is 5e-3."""
NARROW = 3.0
"""Times narrower than standard: the loss of a normal law grows with the square. Of a distribution the loss need be no
likelihood, so that two such steps make the line for an error, and what is under 1 is compared with 1."""
STEEP = 3.0
"""Times the loss, with an e-fold of what it depends on: a square grows by two, and an exponential of x by x."""
BLAMED = 0.1
"""Of the loss: what it loses with an e-fold of the factor. A loss that is in proportion to it loses all."""


@register(
    "F309",
    "a first loss far from uninformed",
    why="the net starts sure of wrong answers, and the first steps only unlearn them",
    threshold="for cross-entropy over 1.5 times ln C, the loss of knowing nothing: the net knows less than nothing by "
    f"half of that, and by {NATS:g} nats at least; over 3 times is an error. Another loss is compared with that of "
    "zeros: over 3 times, where outputs have twice the power of their targets; over 9 times is an error. Of cosines "
    "only the errors are told: what they are multiplied by is a temperature, and chosen. Where the output is a "
    f"distribution, with that of the standard one: over {NARROW**2:g} times, for one that is {NARROW:g} times too "
    f"narrow; over {NARROW**4:g} times is an error",
    remedy="shrink the output layer, and zero its bias; of cosines and behind a norm, the factor behind them; start a "
    "distribution wide, and exponents near zero",
    source="Karpathy 2019, a recipe for training neural networks: verify the loss at init",
)
def first_loss(evidence: Evidence) -> Iterator[Finding]:
    """The loss against that of a uniform guess."""
    loss, uninformed = evidence.signals.loss, evidence.signals.uninformed
    # A ratio says something of losses that start at zero: a log-likelihood of densities may have either sign.
    if loss is None or uninformed is None or uninformed <= 0 or not math.isfinite(loss):
        return
    line, wrong = (1.5, 3.0) if is_entropy(uninformed) else (3.0, 9.0)
    cosines = of_unit_vectors(evidence, len(evidence.signals.layers))
    line = wrong if cosines else line  # their scale is a temperature, and chosen
    standard = evidence.signals.uninformed_from == OF_STANDARD
    if standard:
        line, wrong, uninformed = NARROW**2, NARROW**4, max(uninformed, 1.0)
    if loss <= line * uninformed or (not standard and is_entropy(uninformed) and loss <= uninformed + NATS):
        return
    severity = Severity.ERROR if loss > wrong * uninformed else Severity.WARNING
    seen = f"the loss is {loss:.3g}; knowing nothing costs {uninformed:.3g}"
    factor = learned_factor(evidence, len(evidence.signals.layers)) if cosines else None
    if factor is not None:
        edit = factor.divided(evidence.signals.layers[-1].rms or 1.0)
        yield finding("F309", severity, factor.node.name, seen, edits=(edit,))
        return
    weights = _output_weights(evidence)
    spread = _spread(evidence) if standard else ()
    if spread:
        yield finding("F309", severity, spread[0].pattern, seen, edits=spread)
        return
    exponents = _exponents(evidence)
    if exponents:
        yield finding("F309", severity, exponents[0], seen, edits=evidence.redraw(*exponents), places=exponents[1:])
        return
    wild = [name for name in _output_biases(evidence) if _outweighs(evidence, name, entropy=is_entropy(uninformed))]
    if wild:
        edits = tuple(Edit(name, Zeros()) for name in wild)
        yield finding("F309", severity, wild[0], seen, edits=edits, places=wild[1:])
        return
    bound = [name for name in weights if not _is_scale_free(evidence, name)]
    if weights and not bound:
        yield _behind_a_norm(evidence, severity, seen)
        return
    if _is_relieved(evidence, bound, line):
        seen += "; it is mended before the output layer"
        bound, edits = bound[:1], ()
    else:
        edits = () if cosines else _shrunk(evidence, bound)
    yield finding("F309", severity, bound[0] if bound else "", seen, edits=edits, places=bound[1:])


def _output_weights(evidence: Evidence) -> list[str]:
    """The output layers' weights, or those of the last layer where none is known for one."""
    outputs = [node for node, _ in evidence.parameters() if node.output]
    weights = [node.name for node in outputs if node.is_weight or node.role == Role.EMBEDDING]
    if weights:
        return weights
    last = [name for layer in evidence.signals.of_kind(Kind.WEIGHT)[-1:] for name in layer.weights]
    return [name for name in last if evidence.graph[name].role != Role.BIAS]


def _output_biases(evidence: Evidence) -> list[str]:
    return [node.name for node, _ in evidence.parameters() if node.output and node.role == Role.BIAS]


def _exponents(evidence: Evidence) -> list[str]:
    """What makes exponents that are so large that the loss grows with them exponentially, the worst first."""
    loss = evidence.signals.loss or 0.0
    growth = {
        node.name: fact.grad_along or 0.0
        for node, fact in evidence.parameters()
        if node.activation == "exp" or node.gate == "exponent"
    }
    return sorted((name for name in growth if growth[name] > STEEP * loss), key=lambda name: -growth[name])


def _outweighs(evidence: Evidence, name: str, *, entropy: bool) -> bool:
    """Whether a bias alone makes an output large: without it, it is of unit size, or has a tenth of the power.

    What is added to all classes alike changes no cross-entropy but a binary one, of which each output is its own.
    """
    signal = evidence.signals.parameter(name)
    matters = abs(signal.grad_along or 0.0) > BLAMED * (evidence.signals.loss or 0.0)
    size = signal.std if entropy and not matters else signal.rms
    reader = next(iter(evidence.signals.readers(name)), None)
    if reader is None or not size:
        return False
    rest = math.sqrt(max(reader.rms**2 - signal.rms**2, 0.0))
    return size > 1 and rest < max(1.0, SHRUNK * size)


def _is_relieved(evidence: Evidence, weights: list[str], line: float) -> bool:
    """Whether the loss comes under the line by what other findings' remedies take from what the output layer reads.

    What the loss is over that of knowing nothing falls at least in proportion to the outputs.
    """
    loss, uninformed = evidence.signals.loss or 0.0, evidence.signals.uninformed or 0.0
    relief = max((_relief(evidence, name) for name in weights), default=1.0)
    left = uninformed + relief * (loss - uninformed)
    return relief < 1 and left <= max(line * uninformed, uninformed + NATS if is_entropy(uninformed) else 0.0)


def _relief(evidence: Evidence, name: str) -> float:
    """By what other remedies multiply the outputs of a weight, if it stays itself as it is."""
    readers = [layer for layer in evidence.signals.readers(name) if layer.kind == Kind.WEIGHT]
    return max(map(evidence.relief, readers), default=1.0)


def _shrunk(evidence: Evidence, weights: list[str]) -> tuple[Edit, ...]:
    biases = _output_biases(evidence)
    smaller = (Edit(name, evidence.scheme(name).scaled(SHRUNK / _left(evidence, name))) for name in weights)
    return (*smaller, *(Edit(name, Zeros()) for name in biases))


def _left(evidence: Evidence, name: str) -> float:
    """The outputs' RMS when the weight is drawn as recommended, if over 1: what comes in may be as large.

    What is so large that it erases all else is uninitialized memory before it, a fault of its own, and is mended there.
    """
    node, have = evidence.graph[name], weight_rms(evidence.signals.parameter(name))
    largest = max((layer.rms for layer in _made_of(evidence, name)), default=0.0)
    if not have or largest > ERASING:
        return 1.0
    change = evidence.scheme(name).expected(node.fans, node.shape, node.axes).std / have
    return max(largest * _relief(evidence, name) * change, 1.0)


def _made_of(evidence: Evidence, name: str) -> Iterator[LayerSignal]:
    """What a weight puts out, and the products of it with another signal that end the model, as behind a hypernet."""
    readers = [layer for layer in evidence.signals.readers(name) if layer.kind == Kind.WEIGHT]
    yield from readers
    last = evidence.signals.of_kind(Kind.WEIGHT, Kind.PRODUCT)[-1:]
    yield from (layer for layer in last if layer.kind is Kind.PRODUCT and readers and layer.index > readers[-1].index)


def _spread(evidence: Evidence) -> tuple[Edit, ...]:
    """Edits of what makes a distribution narrow: a parameter that no weight is, with which the loss changes most.

    Below zero it is a logarithm, or an inverse softplus, of the spread.
    """
    line = BLAMED * (evidence.signals.loss or 0.0)
    found = []
    for node, fact in evidence.parameters():
        own = not node.is_weight and node.role not in (Role.NORM_SCALE, Role.NORM_SHIFT, Role.EMBEDDING)
        change = abs(fact.grad_along or 0.0)
        if own and change > line and fact.min * fact.max > 0:
            found.append((change, Edit(node.name, Zeros() if fact.max < 0 else Ones())))
    return tuple(edit for _, edit in sorted(found, key=lambda pair: -pair[0]))


def _is_scale_free(evidence: Evidence, name: str) -> bool:
    """Whether the loss does not change with the scale of a weight and its bias, as where the outputs are cosines."""
    readers = evidence.signals.readers(name)
    together = dict.fromkeys((name, *(readers[0].weights if readers else ())))
    facts = [evidence.signals.parameter(other) for other in together]
    size = sum((fact.grad_rms or 0.0) * fact.rms * fact.elements for fact in facts)
    return bool(size) and abs(sum(fact.grad_along or 0.0 for fact in facts)) < FREE * size


def _behind_a_norm(evidence: Evidence, severity: Severity, seen: str) -> Finding:
    """The factor to blame, of outputs whose weights are normalized: the one whose size the loss grows with most."""
    seen += "; what the weights put out is normalized, so that their scale is not to blame"
    factors = [(_growth(node, fact), node) for node, fact in evidence.parameters() if _is_factor(node)]
    growth, node = max(factors, key=lambda pair: pair[0], default=(0.0, None))
    last = evidence.signals.layers[-1] if evidence.signals.layers else None
    if node is None or last is None or growth < BLAMED * (evidence.signals.loss or 0.0):
        return finding("F309", severity, last.name if last else "", f"{seen}, but a factor behind it that no plan sets")
    uninformed = evidence.signals.uninformed or 0.0
    want = 1.0 if is_entropy(uninformed) else SHRUNK * math.sqrt(uninformed)
    factor = min(want / last.rms, 1.0) if last.rms else 1.0
    now = evidence.signals.parameter(node.name).mean
    value = now + math.log(factor) if "exp" in node.reparametrized else now * factor
    return finding("F309", severity, node.name, seen, edits=(Edit(node.name, Constant(value)),))


def _is_factor(node: ParameterNode) -> bool:
    """Whether a parameter may be a factor of all outputs: a single number that is no bias, or the scales of a norm."""
    return node.role == Role.NORM_SCALE or (math.prod(node.shape) == 1 and node.role not in BESIDE)


def _growth(node: ParameterNode, fact: ParameterSignal) -> float:
    """How much the loss grows with an e-fold larger factor, of which the parameter may be the logarithm."""
    if fact.grad_along is None:
        return 0.0
    return fact.grad_along / fact.mean if "exp" in node.reparametrized and fact.mean else fact.grad_along
