"""The biases of recurrent gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import Evidence
from fanin.findings.registry import finding, register
from fanin.graph import ParameterNode, Role
from fanin.recipes.state_gates import SIGNS, WORDS, StateGates
from fanin.schemes import Ones, Packed, Scheme, Zeros

SHUT = -0.5
"""σ(-½) = 0.38: each step then loses more than half of the memory."""
OPEN = 0.5
"""σ(½) = 0.62: under it a memory's half-life is one step."""
SHALLOW = 10
"""Layers: so many train without ways around them; where they do not, F305 or F402 tells."""


@register(
    "F206",
    "a forget gate that does not start open",
    why="the memory loses a share of itself at every step, and with it the gradient of what was long ago",
    threshold=f"the two forget biases together under {SHUT:g}, where each step loses over half; a note under {OPEN:g}; "
    f"of a GRU's update gate, which is usually zero, only under {SHUT:g}. "
    f"Of a gate written by hand, found by what it multiplies, under {SHUT:g}, or over {-SHUT:g} where it writes over "
    f"the state; a note in a highway of at most {SHALLOW} layers, which is then a plain net and may train as one",
    remedy="1 for the forget gate on one of torch's two biases, 0 for the rest; by hand 1 for what keeps the state, "
    "-1 for what writes over it",
    source="Jozefowicz et al. 2015; Gers et al. 2000",
)
def forget_gate(evidence: Evidence) -> Iterator[Finding]:
    """The sum of the forget biases of each LSTM and GRU; and of gates that the dataflow shows to hold a state."""
    yield from _written(evidence)
    for gates in recurrent_biases(evidence):
        total = gates.means.get("f", gates.means.get("z", 0.0))
        if total >= (OPEN if gates.is_lstm else SHUT):  # a GRU's gate is usually zero
            continue
        severity = Severity.WARNING if total < SHUT else Severity.NOTE
        word = "forget gate's" if gates.is_lstm else "update gate, which keeps the state: its"
        seen = f"the {word} biases sum to {total:.3g}"
        yield finding("F206", severity, gates.node.name, seen, edits=gates.opened(evidence))


@dataclass(frozen=True, slots=True)
class RecurrentBiases:
    """The one or two biases of an LSTM's or a GRU's gates, and the mean of their sum for each gate."""

    node: ParameterNode
    pair: str | None
    means: dict[str, float]

    @property
    def is_lstm(self) -> bool:
        """Whether it has a forget gate of its own; of a GRU one gate keeps and writes."""
        return "f" in self.means

    def opened(self, evidence: Evidence) -> tuple[Edit, ...]:
        """Edits that open the forget gate of an LSTM and zero the rest, or give a GRU what it should get."""
        if not self.is_lstm:
            return evidence.redraw(self.node.name, *([self.pair] if self.pair else []))
        scheme: Scheme = Packed.of({name: Ones() if name == "f" else Zeros() for name in self.means})
        return (Edit(self.node.name, scheme), *([Edit(self.pair, Zeros())] if self.pair else []))


def recurrent_biases(evidence: Evidence) -> Iterator[RecurrentBiases]:
    """Of each direction and layer of torch's LSTMs and GRUs."""
    for node, signal in evidence.parameters():
        names = {block.name for block in signal.blocks}
        known = {"i", "f", "g", "o"} <= names or {"r", "z", "n"} <= names
        if node.role != Role.BIAS or not known or "bias_hh" in node.name:
            continue
        other = node.name.replace("bias_ih", "bias_hh")
        pair = other if other != node.name and other in evidence.graph else None
        blocks = (*signal.blocks, *(evidence.signals.parameter(pair).blocks if pair else ()))
        means = dict.fromkeys(names, 0.0)
        for block in blocks:
            means[block.name] = means.get(block.name, 0.0) + block.mean
        yield RecurrentBiases(node, pair, means)


def _written(evidence: Evidence) -> Iterator[Finding]:
    """Gates of recurrences and highways that are written by hand; only where they are shut, for 0 is a usual choice."""
    gates = StateGates.of(evidence.graph)
    for node, signal in evidence.parameters():
        for name, sign in SIGNS.items():
            block = signal.block(name) or (signal if node.gate == name else None)
            if node.role == Role.BIAS and block is not None and sign * block.mean < SHUT:
                bias = gates.bias(node)
                seen = f"the bias of a {WORDS[name]} is {block.mean:.3g}"
                edits = (Edit(node.name, bias[0] if bias else Zeros()),)
                shallow = gates.is_highway(node) and len(gates.highway) <= SHALLOW
                severity = Severity.NOTE if shallow else Severity.WARNING
                yield finding("F206", severity, node.name, seen, edits=() if shallow else edits)
