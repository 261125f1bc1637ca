"""The textbook recipes: one scheme for every weight, zero biases, norms that start as the identity."""

from __future__ import annotations

import math
from collections.abc import Callable

from fanin.graph import WEIGHTS, Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.recipes.following import following
from fanin.recipes.registry import register
from fanin.recipes.rules import norm_scale
from fanin.schemes import (
    Keep,
    Normal,
    Orthogonal,
    Packed,
    Scheme,
    VarianceScaling,
    Zeros,
    xavier_normal,
)

WeightRule = Callable[[ParameterNode, str | None], tuple[Scheme, str]]
"""From a weight and the activation that follows it, or one of its blocks, to a scheme and a reason."""


@register("zero")
def zero(graph: Graph) -> Plan:
    """Zeros for every weight and bias: the mistake to compare with.

    All units of a layer stay equal for ever, since they compute the same and get the same gradient.
    """
    return everywhere(graph, "zero", lambda node, _: (Zeros(), "zero start: all units of a layer stay equal"))


@register("normal")
def normal(graph: Graph) -> Plan:
    """N(0, 0.01²) for every weight: symmetry is broken, the signal vanishes with depth."""
    return everywhere(graph, "normal", lambda node, _: (Normal(0.01), "a fixed small std, whatever the fans"))


@register("lecun", sources=("lecun1998",))
def lecun(graph: Graph) -> Plan:
    """LeCun normal, variance 1/fan_in: unit variance through linear layers, and the right one for SELU."""
    return everywhere(graph, "lecun", lambda node, _: (VarianceScaling(1.0), f"1/fan_in, {_fan_in(node)}"))


@register("xavier", sources=("glorot2010",))
def xavier(graph: Graph) -> Plan:
    """Xavier normal, variance 2/(fan_in + fan_out): for linear, tanh and sigmoid layers (Glorot & Bengio 2010)."""

    def rule(node: ParameterNode, _: str | None) -> tuple[Scheme, str]:
        fans = node.fans
        return xavier_normal(), f"2/(fan_in + fan_out), fans {fans.fan_in:g} and {fans.fan_out:g}"

    return everywhere(graph, "xavier", rule)


@register("he", sources=("he2015",))
def he(graph: Graph) -> Plan:
    """He normal, variance gain²/fan_in with the gain of the activation that follows (He et al. 2015)."""

    def rule(node: ParameterNode, activation: str | None) -> tuple[Scheme, str]:
        after = following(node, activation)
        return VarianceScaling(after.scale), f"{after.words}, {_fan_in(node)}"

    return everywhere(graph, "he", rule)


@register("orthogonal", sources=("saxe2014",))
def orthogonal(graph: Graph) -> Plan:
    """Orthogonal matrices times the gain of the activation that follows (Saxe et al. 2014)."""

    def rule(node: ParameterNode, activation: str | None) -> tuple[Scheme, str]:
        if node.feedback:
            return Orthogonal(), "recurrent: an orthogonal matrix keeps the state's length over time"
        after = following(node, activation)
        return Orthogonal(after.gain), f"{after.words}, orthogonal"

    return everywhere(graph, "orthogonal", rule)


@register("torch", sources=("pytorch",))
def torch_defaults(graph: Graph) -> Plan:
    """What torch's constructors draw: U(±1/√fan_in) for most weights and biases, with torch's own fans."""

    def decide(node: ParameterNode) -> tuple[Scheme, str]:
        if node.default is None:
            return Keep(), "no torch layer owns it: kept as constructed"
        return node.default, f"what {node.module_type}'s constructor draws"

    return Plan.of(graph, "torch", decide)


def everywhere(graph: Graph, name: str, rule: WeightRule) -> Plan:
    """One rule for every weight and for each block of a packed one; the plain start for everything else."""

    def decide(node: ParameterNode) -> tuple[Scheme, str]:
        if node.role in WEIGHTS:
            return for_each_block(node, rule)
        return beside_weights(node)

    return Plan.of(graph, name, decide)


def for_each_block(node: ParameterNode, rule: WeightRule) -> tuple[Scheme, str]:
    """Apply a rule to a weight, or to each block of a packed one; blocks that agree share one scheme."""
    if not node.axes.blocks:
        return rule(node, node.activation)
    parts = {block.name: rule(node, block.activation) for block in node.axes.blocks}
    schemes = {scheme for scheme, _ in parts.values()}
    reasons = list(dict.fromkeys(reason for _, reason in parts.values()))
    reason = f"packed {', '.join(parts)}, each block its own: {'; '.join(reasons)}"
    if len(schemes) == 1:
        return schemes.pop(), reason
    return Packed.of({name: scheme for name, (scheme, _) in parts.items()}), reason


def beside_weights(node: ParameterNode) -> tuple[Scheme, str]:
    """The plain start of what is not a weight: biases 0, norms 1 and 0, embeddings 1/√d, the rest kept."""
    if node.role == Role.BIAS:
        return Zeros(), "biases start at zero"
    if node.role == Role.NORM_SCALE:
        return norm_scale(node)
    if node.role == Role.NORM_SHIFT:
        return Zeros(), "a norm's shift starts at zero"
    if node.role == Role.EMBEDDING and node.fans.fan_out:
        std = 1 / math.sqrt(node.fans.fan_out)
        return Normal(std), f"embedding: rows of unit length, 1/√{node.fans.fan_out:g}"
    if node.default is not None:
        return node.default, f"as {node.module_type}'s constructor sets it"
    if node.role == Role.OTHER:
        return Keep(), "no rule knows what it is for: kept as constructed"
    return Keep(), f"{str(node.role).replace('_', ' ')}: kept as constructed"


def _fan_in(node: ParameterNode) -> str:
    return f"fan_in {node.fans.fan_in:g}"
