"""Plain chains of gated layers, φ(gate x) · (value x), which start as linear maps where their gates start open.

Each such layer squares what it takes in, where its gate knows no bound: after six of them the largest of many samples
is thousands of times the usual one, and after ten nothing is left of the others. A gate that starts at one, and hardly
bends, hands on its value; training makes it a gate. Where neither factor has an activation, as in bilinear layers, both
start near one. Streams and norms hold such layers by other means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fanin import gains
from fanin.errors import FaninError
from fanin.graph import ParameterNode, Role
from fanin.recipes.questions import is_normed, squashes
from fanin.recipes.rules import Decision
from fanin.schemes import Constant, Packed, ScaledOrthogonal, Zeros

FEW = 2
"""Products in a chain up to which nothing has grown yet."""
NEAR_ONE = 0.35
"""Gain of linear factors around one: four such layers train best at 0.35 to 0.42, eight at 0.35; 0.5 diverges."""
_WIDEST = 4.0


@dataclass(frozen=True)
class Products:
    """The gated layers of a chain; none where the net has streams, norms or recurrences, or too few of them."""

    layers: int
    """How many there are."""
    activation: str
    """What their gates pass; empty where both factors are linear."""
    opening: float
    """The bias of a gate that starts open."""
    height: float
    """The gate at that bias."""

    @classmethod
    def of(cls, nodes: Iterable[ParameterNode]) -> Products | None:
        """Look at every parameter; None where there is no such chain, or a gate has no bias to open it."""
        nodes = list(nodes)
        if any(is_normed(node) or node.stream is not None or node.feedback or node.state_before for node in nodes):
            return None
        if not any(map(_gate_of, nodes)):
            return cls._of_linear_factors(nodes)
        gates = {_owner(node): gate for node in nodes if node.is_weight and (gate := _gate_of(node))}
        biases = {_owner(node) for node in nodes if node.role == Role.BIAS and _gate_of(node)}
        if len(gates) <= FEW or biases != set(gates) or len(set(gates.values())) > 1:
            return None
        activation = next(iter(gates.values()))
        opening = open_bias(activation)
        if opening is None:
            return None
        return cls(len(gates), activation, opening, _at(activation, opening))

    @classmethod
    def _of_linear_factors(cls, nodes: list[ParameterNode]) -> Products | None:
        factors = [node for node in nodes if node.activation == "gate_value"]
        weights = {_owner(node): node.weight_depth for node in factors if node.is_weight}
        layers = len(set(weights.values()))
        biases = {_owner(node) for node in factors if node.role == Role.BIAS}
        return cls(layers, "", 1.0, 1.0) if layers > FEW and biases == set(weights) else None

    def weight(self, node: ParameterNode, activation: str | None) -> Decision | None:
        """What a gate or a value gets; None for any other weight."""
        layers = f"{self.layers} gated layers in a chain"
        if activation == "gate_value" and not self.activation:
            words = f"factor that starts near one, by its bias, in one of {self.layers} products in a chain"
            return ScaledOrthogonal(NEAR_ONE), f"{words}: orthogonal, gain {NEAR_ONE:g}"
        if activation == "gate_value":
            gain = 1 / self.height
            words = f"value behind a {self.activation} gate that starts at {self.height:.4g}, one of {layers}"
            return ScaledOrthogonal(gain), f"{words}: orthogonal, gain {gain:.4f}"
        if activation == self.activation and _gate_of(node):
            words = f"{self.activation} gate, one of {layers}, which starts open"
            if self.opening:  # it knows no bound: what grows opens it further
                return ScaledOrthogonal(1 / self.layers), f"{words}: gain 1/{self.layers}"
            return ScaledOrthogonal(self.layers**-0.5), f"{words}: gain 1/√{self.layers}"
        return None

    def bias(self, node: ParameterNode) -> Decision | None:
        """The bias that opens a gate; None for any other."""
        if node.activation == "gate_value" and not self.activation:
            return Constant(1.0), "bias of a factor in a chain of products: 1, so that the other factor is handed on"
        if not _gate_of(node) or not self.opening:
            return None
        start, words = Constant(self.opening), f"{self.activation} gate: {self.opening:.4f}, where it is 1"
        if not node.blocks:
            return start, words
        parts = {name: start if name == "gate" else Zeros() for name in node.blocks}
        return Packed.of(parts), f"{words}; the rest zero"


@lru_cache(maxsize=256)
def open_bias(activation: str) -> float | None:
    """Where an activation without a bound is 1; 0 for a sigmoid, which its value makes up for; None for any other.

    >>> round(open_bias("silu"), 4), open_bias("relu"), open_bias("sigmoid"), open_bias("tanh")
    (1.2785, 1.0, 0.0, None)
    """
    if squashes(activation):
        return 0.0
    try:
        function = gains.resolve_activation(activation)
    except FaninError:
        return None
    low, high = 0.0, _WIDEST
    if function.gated or not _at(activation, low) < 1 < _at(activation, high):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at(activation, middle) < 1 else (low, middle)
    return float(f"{(low + high) / 2:.12g}")


def _at(activation: str, place: float) -> float:
    return float(gains.resolve_activation(activation)(np.array([place]))[0])


def _gate_of(node: ParameterNode) -> str:
    """The activation of the gate that a parameter makes, alone or as a block; empty where it makes none."""
    packed = [block.activation for block in node.axes.blocks if block.name == "gate"]
    return (packed[0] if packed else node.activation if node.gate == "factor" else "") or ""


def _owner(node: ParameterNode) -> str:
    return node.name.rpartition(".")[0]
