"""How long the signals of a plain net should run, where an activation is only stable far from the origin.

GELU, SiLU and their kin have no stable length at unit scale: at GELU's gain a squared length that is 1 % too large is
1.14 % too large a layer later, and after 30 layers the length of every sample and of every draw is off by a factor of
its own. Softplus has a stable length there, but its squared gradient falls by two thirds in every layer. Far from the
origin all of them are rectifiers, which hand on any length and any gradient; so that is where they should run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from fanin import gains
from fanin.errors import FaninError

UNSTEADY = 10.0
"""How much a deviation of the squared length may grow through a net whose activations see unit variance."""
STEADY = 1.1
"""The same where the length is chosen: nearly nothing, for it costs little more."""
FADING = 0.1
"""How much of the squared gradient has to come through; where no length lets so much, the longest is taken."""
LENGTHS = tuple(2 ** (step / 2) for step in range(9))
"""Standard deviations of what enters an activation that are looked at: 1, √2, … 16. F302 calls 20 explosive."""


@dataclass(frozen=True, slots=True)
class Running:
    """A length at which an activation hands on signals and gradients through many layers."""

    std: float
    """Of what enters the activation."""
    power: float
    """The second moment of what leaves it, E[φ(std · z)²]."""

    @property
    def gain(self) -> float:
        """What restores the length from one layer to the next: ``std / √power``."""
        return self.std / math.sqrt(self.power)


@lru_cache(maxsize=256)
def stable_length(activation: str, depth: int) -> Running | None:
    """The smallest length that is stable through ``depth`` layers; None where unit variance will do, or nothing does.

    Where no length is quite stable, the longest is taken if it is stable enough.

    At a length s a deviation of the squared length grows by d log E[φ(s·z)²] / d log s² in every layer, and the squared
    gradient by s² · E[φ'(s·z)²] / E[φ(s·z)²]. An activation that is no rectifier far out, as the squared ReLU and the
    sine, is stable nowhere.

    >>> stable_length("relu", 50), stable_length("gelu", 10)
    (None, None)
    >>> found = stable_length("gelu", 30)
    >>> round(found.std, 2), round(found.gain, 4)
    (5.66, 1.4156)
    """
    try:
        if _drift(activation, 1.0) ** depth <= UNSTEADY and _passing(activation, 1.0) ** depth >= FADING:
            return None
        drifts = {std: _drift(activation, std) ** depth for std in LENGTHS}
        steady = [std for std, drift in drifts.items() if drift <= STEADY]
        if not steady and drifts[LENGTHS[-1]] <= UNSTEADY:
            steady = [LENGTHS[-1]]
        lasting = [std for std in steady if _passing(activation, std) ** depth >= FADING]
    except FaninError:
        return None
    std = next(iter(lasting), max(steady, default=0.0))
    return Running(std, gains.moments(activation, std=std).second_moment) if std else None


def _drift(activation: str, std: float) -> float:
    """The growth of a deviation of the squared length in a layer."""
    here, further = (gains.moments(activation, std=factor * std).second_moment for factor in (1.0, 1.01))
    return math.log(further / here) / (2 * math.log(1.01))


def _passing(activation: str, std: float) -> float:
    """The growth of the squared gradient in a layer whose gain restores the length."""
    moments = gains.moments(activation, std=std)
    return std**2 * moments.derivative_second_moment / moments.second_moment
