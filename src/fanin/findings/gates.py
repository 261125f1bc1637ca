"""The biases of recurrent gates."""

from __future__ import annotations

from collections.abc import Iterator

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import Evidence
from fanin.findings.registry import finding, register
from fanin.graph import Role
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
    threshold=f"the two forget biases together under {SHUT:g}, where each step loses over half; a note under {OPEN:g}. "
    f"Of a gate written by hand, found by what it multiplies, under {SHUT:g}, or over {-SHUT:g} where it writes over "
    f"the state; a note in a highway of at most {SHALLOW} layers, which is then a plain net and may train as one",
    remedy="1 for the forget gate on one of torch's two biases, 0 for the rest; by hand 1 for what keeps the state, "
    "-1 for what writes over it",
    source="Jozefowicz et al. 2015; Gers et al. 2000",
)
def forget_gate(evidence: Evidence) -> Iterator[Finding]:
    """The sum of the forget biases of each LSTM; and of gates that the dataflow shows to hold a state."""
    yield from _written(evidence)
    for node, signal in evidence.parameters():
        names = {block.name for block in node.axes.blocks}
        forget = signal.block("f")
        if node.role != Role.BIAS or not {"i", "f", "g", "o"} <= names or forget is None or "bias_hh" in node.name:
            continue
        other = node.name.replace("bias_ih", "bias_hh")
        pair = other if other != node.name and other in evidence.graph else None
        second = evidence.signals.parameter(pair).block("f") if pair else None
        total = forget.mean + (second.mean if second else 0.0)
        if total >= OPEN:
            continue
        severity = Severity.WARNING if total < SHUT else Severity.NOTE
        scheme: Scheme = Packed.of({name: Ones() if name == "f" else Zeros() for name in names})
        edits = [Edit(node.name, scheme)] + ([Edit(pair, Zeros())] if pair else [])
        yield finding("F206", severity, node.name, f"the forget gate's biases sum to {total:.3g}", edits=edits)


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
