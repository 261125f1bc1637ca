"""What the rules ask of a parameter, or of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fanin import gains
from fanin.errors import FaninError
from fanin.graph import ParameterNode, Role
from fanin.recipes.following import LINEAR

_LOOKUPS = frozenset({"embedding", "embedding_bag"})

STEEP = 1.5
"""The squared slope over the variance: 1 for a line, 1.03 for the sigmoid, 2.2 for the cosine."""


def is_normed(node: ParameterNode) -> bool:
    """Whether a parameter tells of a norm in its net; a norm without a scale of its own is seen by its neighbours."""
    return node.role == Role.NORM_SCALE or node.norm_after or node.norm_before


def is_gate(node: ParameterNode) -> bool:
    """Whether a weight, or a block of it, makes a factor of something else."""
    return bool(node.gate) or not {"gate", "exponent", "keep", "write"}.isdisjoint(node.blocks)


def activations_after(node: ParameterNode) -> tuple[str, ...]:
    """The activations that follow a weight or its blocks, where they are known."""
    found = (node.activation, *(block.activation for block in node.axes.blocks))
    return tuple(activation for activation in found if activation)


def multiplies(nodes: Sequence[ParameterNode]) -> bool:
    """Whether branches of residual streams multiply what they take in by itself: gates that know no bound."""
    gates = gate_activations(nodes)
    return bool(gates) and not all(bounded(gate) for gate in gates)


def factor_activations(nodes: Sequence[ParameterNode]) -> frozenset[str]:
    """The activations whose results are factors."""
    return frozenset(node.activation for node in nodes if node.gate == "factor" and node.activation)


def ends_in_product(node: ParameterNode) -> bool:
    """Whether what a weight puts out is multiplied, as a gate or as its value, before it goes anywhere."""
    return is_gate(node) or "gate_value" in activations_after(node)


def makes_exponent(node: ParameterNode) -> bool:
    """Whether a weight, or a block of it, makes the exponent of a factor, as the couplings of a flow do."""
    return node.is_weight and (node.gate == "exponent" or "exponent" in node.blocks)


def is_tied_table(node: ParameterNode) -> bool:
    """Whether an embedding is a matrix as well, as the output layer; two look-ups that share their rows tie nothing."""
    tied = bool(node.aliases) and (not node.ops or any(op.target not in _LOOKUPS for op in node.ops))
    return node.role == Role.EMBEDDING and (tied or node.output)


def added_to_signals(node: ParameterNode) -> bool:
    """Whether a learned position is added to a signal before its stream, and not to the scores of an attention."""
    added = bool(node.ops) and node.ops[0].target == "add" and len(node.shape) > 1
    kept = node.frozen or node.rescaled
    return added and not kept and node.activation != "softmax" and node.stream is None


def enters_scores(node: ParameterNode) -> bool:
    """Whether a parameter is added to the scores of an attention, which a fused one takes in as its mask."""
    return node.activation == "softmax" or any(op.target == "scaled_dot_product_attention" for op in node.ops)


def added_to_scores(node: ParameterNode) -> bool:
    """Whether a learned position is added to the scores of an attention as it is drawn."""
    return enters_scores(node) and not (node.frozen or node.rescaled)


def hands_on(node: ParameterNode, activation: str | None) -> bool:
    """Whether a branch is as large as what a weight puts out: an inner layer or a value, no gate and no score."""
    if activation in ("attention_value", "gate_value"):
        return True
    return activation is not None and activation not in LINEAR and not is_gate(node)


def gate_activations(nodes: Sequence[ParameterNode]) -> set[str]:
    """What follows the weights in residual branches that multiply; empty where none does."""
    branches = {activation for node in nodes if node.stream is not None for activation in activations_after(node)}
    return branches.difference(LINEAR) if "gate_value" in branches else set()


@lru_cache(maxsize=256)
def bounded(activation: str | None) -> bool:
    """Whether an activation is known to stay small however large its input is, as tanh and sigmoid do."""
    if activation is None or activation in LINEAR:
        return False
    try:
        return gains.moments(activation, std=100.0).second_moment < 2
    except FaninError:
        return False


@lru_cache(maxsize=256)
def squashes(activation: str) -> bool:
    """Whether an activation is bounded around a mean that is larger than its spread, as the sigmoid is.

    One that goes to and fro, as the cosine, has such a mean too; but its slopes are larger than its spread, and where
    a gain makes up for the spread alone, gradients explode.
    """
    if not bounded(activation):
        return False
    near = gains.moments(activation)
    return near.mean**2 > near.variance and near.derivative_second_moment < STEEP * near.variance
