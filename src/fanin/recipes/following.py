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

    scale: float
    """The gain squared, ``1/E[φ(z)²]``: what a variance is multiplied by."""
    words: str
    known: bool = True

    @property
    def gain(self) -> float:
        """``√scale``."""
        return math.sqrt(self.scale)


def frequency(node: ParameterNode, activation: str | None) -> float | None:
    """The ω of a layer that is followed by sin(ω x) or cos(ω x), from 2 on; None for any other.

    E[(d sin(ω z)/dz)²] is ω² (1 + exp(−2ω²)) / 2, of which the exponential does not count from 2 on.
    """
    if node.captured is None or activation not in ("sin", "cos") or node.captured.name != activation:
        return None
    omega = math.sqrt(2 * node.captured.derivative_second_moment)
    return omega if omega >= 2 else None


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
    if (omega := frequency(node, activation)) is not None:
        scale = 1 / gains.moments("sin").second_moment / omega**2
        words = f"followed by {activation} of {omega:.4g} times what it puts out"
        return Following(scale, f"{words}: gain {math.sqrt(scale):.4g}, so that phases have a std of one radian")
    if node.captured is not None and node.captured.name == activation and node.captured.second_moment > 0:
        scale = 1 / node.captured.second_moment
        return Following(scale, f"followed by {activation}: gain {math.sqrt(scale):.4f} by quadrature")
    if activation is None:
        scale = 1 / gains.moments(unknown).second_moment
        words = f"what follows is not known, {unknown} is assumed: gain {math.sqrt(scale):.4f}"
        return Following(scale, words, known=False)
    if activation in LINEAR:
        return Following(1.0, f"{LINEAR[activation]}: gain 1")
    try:
        scale = 1 / gains.moments(activation).second_moment
    except FaninError:
        return Following(1.0, f"followed by {activation}, whose gain is not known: gain 1", known=False)
    return Following(scale, f"followed by {activation}: gain {math.sqrt(scale):.4f}")
