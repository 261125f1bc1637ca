"""Learned numbers that scores are multiplied by: temperatures, logit scales."""

from __future__ import annotations

import math

from fanin.diagnoses import Edit
from fanin.findings.evidence import Evidence
from fanin.graph import ParameterNode
from fanin.observations import Kind
from fanin.schemes import Constant

WITHIN = 4
"""Operations between the product that makes scores and what they are for: a scale, a bias, a mask."""


def learned_scale(evidence: Evidence, end: int) -> ParameterNode | None:
    """The learned number, one for all or one a head, that scores are multiplied by before the operation of an index."""
    for earlier in reversed(evidence.signals.layers[max(end - WITHIN, 0) : end]):
        for name in earlier.weights:
            node, signal = evidence.graph[name], evidence.signals.parameter(name)
            if node.is_weight:
                return None
            if signal.constant and signal.rms and max(node.shape, default=1) == math.prod(node.shape):
                return node
    return None


def divided(evidence: Evidence, node: ParameterNode, factor: float) -> Edit:
    """The edit that divides a learned scale; of one that is the exponential of a parameter, a difference."""
    value = evidence.signals.parameter(node.name).mean
    exponential = "exp" in node.reparametrized
    return Edit(node.name, Constant(value - math.log(factor) if exponential else value / factor))


def of_unit_vectors(evidence: Evidence, end: int) -> bool:
    """Whether what an operation takes is cosines, or a multiple of them: no weight makes those larger."""
    contractions = [layer for layer in evidence.signals.of_kind(Kind.WEIGHT, Kind.PRODUCT) if layer.index < end]
    if not contractions:
        return False
    last = contractions[-1].index
    return any(layer.target == "normalize" for layer in evidence.signals.layers[max(last - WITHIN, 0) : last])
