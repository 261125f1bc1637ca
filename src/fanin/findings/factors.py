"""Learned numbers that scores are multiplied by: temperatures, logit scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanin.diagnoses import Edit
from fanin.findings.evidence import Evidence
from fanin.graph import ParameterNode
from fanin.observations import Kind
from fanin.schemes import Constant

WITHIN = 4
"""Operations between the product that makes scores and what they are for: a scale, a bias, a mask."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A learned number that scores are multiplied by, or divided by; it, or its exponential."""

    node: ParameterNode
    value: float
    divides: bool
    exponential: bool

    def divided(self, by: float) -> Edit:
        """The edit after which the scores are so many times smaller."""
        by = 1 / by if self.divides else by
        return Edit(self.node.name, Constant(self.value - math.log(by) if self.exponential else self.value / by))


def learned_factor(evidence: Evidence, end: int) -> Factor | None:
    """The learned factor, one for all scores or one a head, before the operation of an index."""
    for earlier in reversed(evidence.signals.layers[max(end - WITHIN, 0) : end]):
        for name in earlier.weights:
            node, signal = evidence.graph[name], evidence.signals.parameter(name)
            if node.is_weight:
                return None
            known = set(node.reparametrized) <= {"exp"}
            single = max(node.shape, default=1) == math.prod(node.shape)
            if signal.constant and signal.rms and single and known and earlier.target in ("mul", "div"):
                return Factor(node, signal.mean, earlier.target == "div", bool(node.reparametrized))
    return None


def of_unit_vectors(evidence: Evidence, end: int) -> bool:
    """Whether what an operation takes is cosines, or a multiple of them: no weight makes those larger."""
    contractions = [layer for layer in evidence.signals.of_kind(Kind.WEIGHT, Kind.PRODUCT) if layer.index < end]
    if not contractions:
        return False
    last = contractions[-1].index
    return any(layer.target == "normalize" for layer in evidence.signals.layers[max(last - WITHIN, 0) : last])
