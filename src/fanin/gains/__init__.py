"""Gains: how much an activation shrinks a Gaussian signal, and the factor that a weight needs to undo it.

For a pre-activation z ~ N(0, 1) and weights of variance g²/fan_in, the next pre-activation has variance g²·E φ(z)².
The gain ``g = 1/√E φ²`` keeps it at 1 through any depth. Three gains go by that name in the literature and differ:
of the second moment (He), of the variance (NFNet), of the derivative (for gradients); `gain` says them apart.

>>> from fanin import gains
>>> round(gains.gain("silu"), 6), round(gains.gain("swiglu"), 6)
(1.676532, 1.676532)
"""

from fanin.gains import piecewise as piecewise
from fanin.gains import smooth as smooth
from fanin.gains.activations import Activation, ClosedForm, gated, names
from fanin.gains.resolution import ActivationLike, from_callable, resolve_activation
from fanin.gains.statistics import Kind, Moments, gain, moments
from fanin.gains.tables import Claim, GainRow, disagreements, table

__all__ = [
    "Activation",
    "ActivationLike",
    "Claim",
    "ClosedForm",
    "GainRow",
    "Kind",
    "Moments",
    "disagreements",
    "from_callable",
    "gain",
    "gated",
    "moments",
    "names",
    "resolve_activation",
    "table",
]
