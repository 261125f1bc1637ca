"""Variants of the auto recipe that raced against it: one rule changed, the rest as it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from torch import Tensor, nn

import fanin
from fanin.graph import Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.schemes import Constant, Packed, ScaledOrthogonal, Scheme, VarianceScaling, Zeros, xavier_normal

Rule = Callable[[ParameterNode], Scheme | None]
"""The scheme that a variant gives a parameter; None where it does as auto."""


def planned(name: str, model: nn.Module, inputs: Tensor) -> Plan:
    """The plan of a variant."""
    graph: Graph = fanin.trace(model, inputs)
    plan = fanin.plan(model, inputs, recipe="auto")
    if name in SCALES:
        for item, factor in SCALES[name](graph).items():
            plan = plan.scale(item, factor)
        return plan
    if name in SCHEMES:
        for item, scheme in SCHEMES[name](graph).items():
            plan = plan.replace(item, scheme)
        return plan
    for node in graph:
        chosen = VARIANTS[name](node)
        if chosen is not None:
            plan = plan.replace(node.name, chosen)
    return plan


def head(gain: float) -> Rule:
    """Another gain for the output layer."""
    return lambda node: VarianceScaling(gain**2) if node.output and node.is_weight else None


def gates(power: float) -> Rule:
    """Every weight of a branch × L^−power."""
    return lambda node: (
        VarianceScaling(node.stream_depth ** (-2 * power)) if node.is_weight and node.stream is not None else None
    )


def branches(gain: float, power: float) -> Rule:
    """The last weight of a branch: a gain × L^−power."""
    return lambda node: VarianceScaling((gain * node.stream_depth**-power) ** 2) if node.residual_last else None


def long(std: float) -> Callable[[Graph], dict[str, Scheme]]:
    """A plain net whose activations take in this standard deviation; the output layer undoes it."""

    def schemes(graph: Graph) -> dict[str, Scheme]:
        first, *inner, last = (node for node in graph if node.is_weight)
        assert first.activation is not None
        power = fanin.gains.moments(first.activation, std=std).second_moment
        found: dict[str, Scheme] = {node.name: ScaledOrthogonal(std / math.sqrt(power)) for node in inner}
        return found | {first.name: ScaledOrthogonal(std), last.name: VarianceScaling(1 / power)}

    return schemes


def norm_ends(power: float) -> Callable[[Graph], dict[str, Scheme]]:
    """The scales of the norms that end branches: L^−power, or zero for an infinite power."""

    def schemes(graph: Graph) -> dict[str, Scheme]:
        return {node.tamed_by: Constant(node.stream_depth**-power) for node in graph if node.tamed_by}

    return schemes


def harmonic(graph: Graph) -> dict[str, float]:
    """The last weight of the l-th branch of a stream ÷ √l, so that each brings as much; the head as much less."""
    factors, sizes = {}, Counter[int | None]()
    for node in graph:
        if node.residual_last and node.stream_depth > 1 and not node.tamed_by:
            sizes[node.stream] += 1
            factors[node.name] = math.sqrt(node.stream_depth / sizes[node.stream])
    for node in graph:
        if node.output and node.is_weight and not node.norm_before:
            factors[node.name] = math.sqrt(math.e / (max(sizes.values(), default=0) + 1))
    return factors


def spread(graph: Graph) -> dict[str, float]:
    """The 1/√L of a branch, shared by all of its weights instead of borne by the last."""
    inside = [node for node in graph if node.is_weight and node.stream is not None and not node.tamed_by]
    sizes = Counter(node.stream for node in inside)
    factors = {}
    for node in inside:
        share = node.stream_depth ** (-1 / 2 * node.stream_depth / sizes[node.stream])
        factors[node.name] = share * (math.sqrt(node.stream_depth) if node.residual_last else 1.0)
    return factors


def gates_of_root(node: ParameterNode) -> Scheme | None:
    """Gates at their activation's gain, and the branch ÷ √L."""
    if not node.is_weight or node.stream is None:
        return None
    if node.residual_last:
        return VarianceScaling(1 / node.stream_depth)
    silu, one = VarianceScaling(fanin.gains.gain("silu") ** 2), VarianceScaling(1.0)
    if node.blocks:
        return Packed.of({name: silu if name == "gate" else one for name in node.blocks})
    return silu if node.activation == "silu" else one


def recurrent_inputs(scheme: Scheme) -> Rule:
    """Another scheme for what a recurrence takes in."""
    return lambda node: scheme if node.role == Role.RECURRENT and not node.feedback else None


def open_gate(value: float) -> Rule:
    """Another bias for the forget gate of an LSTM or the update gate of a GRU."""

    def rule(node: ParameterNode) -> Scheme | None:
        if node.role != Role.BIAS or "bias_ih" not in node.name:
            return None
        keeping = "z" if "z" in node.blocks else "f"
        return Packed.of({name: Constant(value) if name == keeping else Zeros() for name in node.blocks})

    return rule


SCALES: dict[str, Callable[[Graph], dict[str, float]]] = {"harmonic": harmonic, "spread": spread}
SCHEMES: dict[str, Callable[[Graph], dict[str, Scheme]]] = {
    **{f"long-{std:g}": long(std) for std in (1, 2, 4, 8, 16)},
    "norm-ends-0": norm_ends(math.inf),
    "norm-ends-1/2": norm_ends(1 / 2),
}
VARIANTS: dict[str, Rule] = {
    "head-0.3": head(0.3),
    "head-0.6": head(0.6),
    "head-1.5": head(1.5),
    "gates-root": gates_of_root,
    "gates-1/2": gates(1 / 2),
    "gates-1/3": gates(1 / 3),
    "gates-1/4": gates(1 / 4),
    "branches-1/2": branches(fanin.gains.gain("tanh"), 1 / 2),
    "ends-0": branches(1.0, 0.0),
    "ends-1/4": branches(1.0, 1 / 4),
    "ends-1/2": branches(1.0, 1 / 2),
    "inputs-xavier": recurrent_inputs(xavier_normal()),
    "inputs-fan-in": recurrent_inputs(VarianceScaling(1.0)),
    "open-2": open_gate(2.0),
}
