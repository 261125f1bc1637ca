"""What a weight must make up for: the gain of what follows it, in a number and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanin import gains
from fanin.errors import FaninError
from fanin.graph import ParameterNode

LINEAR = {
    "none": "nothing non-linear follows",
    "softmax_q": "query of an attention score",
    "softmax_k": "key of an attention score",
    "attention_value": "value of an attention",
    "gate_value": "value of a gated product",
    "softmax": "a softmax follows",
    "log_softmax": "a log-softmax follows",
    "identity": "nothing non-linear follows",
}
"""What follows without a gain of its own: the weight is to hand on unit variance."""


@dataclass(frozen=True, slots=True)
class Following:
    """A gain and the words that justify it."""

    gain: float
    words: str
    known: bool = True


def following(node: ParameterNode, activation: str | None, unknown: str = "relu") -> Following:
    """The second-moment gain ``1/√E[φ(z)²]`` of the activation that follows, with its reason.

    Args:
        node: the parameter; a captured activation of its own comes first.
        activation: the name of what follows the parameter or one of its blocks.
        unknown: the activation to assume where nothing is known.

    >>> from fanin.fans import Axes
    >>> from fanin.graph import Role
    >>> node = ParameterNode("fc.weight", (8, 4), Role.LINEAR, Axes())
    >>> following(node, "gelu").words
    'followed by gelu: gain 1.5335'
    """
    if node.captured is not None and node.captured.name == activation and node.captured.second_moment > 0:
        gain = 1 / math.sqrt(node.captured.second_moment)
        return Following(gain, f"followed by {node.captured.name}: gain {gain:.4f} by quadrature")
    if activation is None:
        gain = gains.gain(unknown)
        return Following(gain, f"what follows is not known, {unknown} is assumed: gain {gain:.4f}", known=False)
    if activation in LINEAR:
        return Following(1.0, f"{LINEAR[activation]}: gain 1")
    try:
        gain = gains.gain(activation)
    except FaninError:
        return Following(1.0, f"followed by {activation}, whose gain is not known: gain 1", known=False)
    return Following(gain, f"followed by {activation}: gain {gain:.4f}")
