"""The biases of gates that hold a state from step to step, or a stream from layer to layer: memory starts open."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fanin.graph import ParameterNode, Role
from fanin.recipes.rules import Decision
from fanin.schemes import Constant, Packed, Zeros

SIGNS = {"keep": 1.0, "write": -1.0}
"""Of the bias that opens a memory, by what the gate's sigmoid does to the state."""
WORDS = {
    "keep": "gate that keeps the state",
    "write": "gate that writes over the state",
    "f": "forget gate",
    "z": "update gate",
}
LSTM, GRU = frozenset("ifgo"), frozenset("rzn")


@dataclass(frozen=True)
class StateGates:
    """What is known of all gates of a model."""

    second: frozenset[str]
    """Biases that are added to another bias, which opens the gate for both."""
    highway: frozenset[str]
    """The modules whose gates share out between what a layer makes and what it takes in."""

    @classmethod
    def of(cls, nodes: Iterable[ParameterNode]) -> StateGates:
        """Look at every parameter once."""
        nodes = list(nodes)
        feedback = {_owner(node) for node in nodes if node.feedback}
        feeding = {_owner(node) for node in nodes if node.feeds_state}
        gates = [node for node in nodes if has_state_gate(node)]
        biases = {node.name: _owner(node) for node in gates if node.role == Role.BIAS}
        around = feedback - feeding if feeding.difference(feedback).intersection(biases.values()) else set()
        second = frozenset(name for name, owner in biases.items() if owner in around or "bias_hh" in name)
        highway = frozenset(_owner(node) for node in gates if node.is_weight) - feedback - feeding
        return cls(second, highway)

    def is_highway(self, node: ParameterNode) -> bool:
        """Whether a parameter belongs to such a module: its gate acts once on what goes through depth, not time."""
        return _owner(node) in self.highway

    def bias(self, node: ParameterNode) -> Decision | None:
        """The bias of a gate that holds a state; None for any other.

        In a highway of L layers every gate starts by writing 1/L, so that the stream keeps 1/e of what entered.

        >>> from fanin.fans import Axes
        >>> gate = ParameterNode("t.bias", (8,), Role.BIAS, Axes((), (0,)), gate="write")
        >>> StateGates(frozenset(), frozenset("abcdefghit")).bias(gate)[0]
        Constant(value=-2.1972245773362196)
        """
        if not has_state_gate(node) or node.name in self.second:
            return None
        size, why, layers = 1.0, "so that memory starts open", len(self.highway)
        if _owner(node) in self.highway and layers > 1 + math.e:
            size, why = math.log(layers - 1), f"so that each of {layers} layers starts by writing a share of 1/{layers}"
        if node.gate in SIGNS:
            bias = size * SIGNS[node.gate]
            return Constant(bias), f"{WORDS[node.gate]}: {bias:.4g}, {why}"
        held = {name: SIGNS[kind] * size for name in node.blocks if (kind := _kind(node, name))}
        parts = {name: Constant(held[name]) if name in held else Zeros() for name in node.blocks}
        words = ", ".join(f"{WORDS[name]}: {bias:.4g}" for name, bias in held.items())
        once = ", on one of the two biases" if "bias_ih" in node.name else ""
        return Packed.of(parts), f"{words}{once}, {why}; the rest zero"


def has_state_gate(node: ParameterNode) -> bool:
    """Whether a gate that holds a state, or a block of one, depends on this parameter."""
    return node.gate in SIGNS or any(_kind(node, name) for name in node.blocks)


def _kind(node: ParameterNode, block: str) -> str:
    """``keep``, ``write`` or nothing, for a block; torch's layers have letters for their gates."""
    letters = {LSTM: "f", GRU: "z"}.get(frozenset(node.blocks))
    return "keep" if block == letters else block if block in SIGNS else ""


def _owner(node: ParameterNode) -> str:
    return node.name.rpartition(".")[0]
