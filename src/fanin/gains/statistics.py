"""The Gaussian moments of an activation, and the gains that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from fanin.errors import SchemeError, compose, nearest
from fanin.gains.activations import Activation, ClosedForm, Parameter
from fanin.gains.quadrature import Array, integrate
from fanin.gains.resolution import ActivationLike, resolve_activation

Kind = Literal["second_moment", "centred", "backward"]
"""Which moment a gain restores: E φ², Var φ, or E φ'² for the gradient."""

_ROUNDING = 1e-13


@dataclass(frozen=True, slots=True)
class Moments:
    """What an activation φ does to z ~ N(0, σ²), and the gains that undo it.

    A weight of standard deviation ``gain/√fan_in`` restores the pre-activation's variance σ², layer after layer.
    For a gated product ``φ(u)·v``, u and v independent, the two derivatives are added: a gradient comes back by
    both paths.

    Args:
        activation: the name, with parameters.
        std: σ, the standard deviation of the pre-activation.
        mean: E φ(z).
        second_moment: E φ(z)².
        derivative_second_moment: E φ'(z)²; of a gated product ``σ²·E φ'² + E φ²``.
        length_slope: the slope of q ↦ gain²·E φ(√q z)² at q = σ²: a pre-activation variance that is off by 1 %
            comes out of the layer off by `length_slope` %. 1 for ReLU, below 1 where the net corrects itself (tanh),
            about 2 where it amplifies (gated products). With it one knows how far the gain holds.
        homogeneous: the gain holds at every scale.
        holds: where the gain stops being true, in a sentence.

    >>> tanh = moments("tanh")
    >>> round(tanh.gain, 6), round(tanh.chi, 6)
    (1.592537, 1.177807)
    """

    activation: str
    std: float
    mean: float
    second_moment: float
    derivative_second_moment: float
    length_slope: float
    homogeneous: bool
    holds: str

    @property
    def variance(self) -> float:
        """``Var φ = E φ² − (E φ)²``."""
        variance = self.second_moment - self.mean**2
        return variance if variance > _ROUNDING * self.second_moment else 0.0

    @property
    def gain(self) -> float:
        """``σ/√E φ²``: keeps the variance of pre-activations (He et al. 2015, eq. 10: √2 for ReLU)."""
        return self._per_root(self.std, self.second_moment, "second moment")

    @property
    def gain_centred(self) -> float:
        """``σ/√Var φ``: keeps the variance of activations where the mean is taken away behind (NFNet's γ)."""
        return self._per_root(self.std, self.variance, "variance")

    @property
    def gain_backward(self) -> float:
        """``1/√E φ'²``: keeps the variance of gradients (He et al. 2015, eq. 14)."""
        return self._per_root(1.0, self.derivative_second_moment, "derivative")

    @property
    def chi(self) -> float:
        """``χ = gain²·E φ'²``: how gradients grow per layer when the forward gain is used.

        1 means that no gain has to choose between the directions; otherwise L layers multiply the second moment of
        gradients by χ^L.
        """
        if self.second_moment <= 0:
            return self.gain  # raises, and says why
        return self.std**2 * self.derivative_second_moment / self.second_moment

    def _per_root(self, numerator: float, moment: float, what: str) -> float:
        if moment <= 0:
            why = f"its {what} is zero, so no weight scale can restore it"
            raise SchemeError(compose(f"the activation {self.activation}", f"an activation whose {what} is not 0", why))
        return numerator * math.sqrt(1 / moment)  # this way round, ReLU's is √2 to the last bit


def moments(activation: ActivationLike, std: float = 1.0, **parameters: Any) -> Moments:
    """The Gaussian moments of an activation, by closed form where there is one and by quadrature otherwise.

    ``E φ(z), E φ(z)², E φ'(z)²`` for z ~ N(0, std²), to about ten digits, in a millisecond.

    Args:
        activation: a name (``names()`` lists them), an element-wise callable of a numpy array or a torch tensor, an
            activation module such as ``nn.GELU()``, or an `Activation`.
        std: of the pre-activation; finite and above 0. Gains at other values than 1 matter where an activation is
            not homogeneous.
        **parameters: of a named activation, with torch's names (``negative_slope``, ``alpha``, ``beta``, …).

    Raises:
        SchemeError: an unknown name or parameter, a callable that is not element-wise or not finite, a std that
            is not above 0.

    >>> moments("leaky_relu", negative_slope=0.2).second_moment
    0.52
    >>> import numpy as np
    >>> round(moments(lambda x: np.maximum(x, 0.0)).gain, 9)
    1.414213562
    >>> moments("swiglu").holds.split(":")[0]
    'at standard deviation 1 of two independent pre-activations'

    It stops being true where pre-activations are not Gaussian with mean zero: narrow layers, biases, inputs with a
    strong mean, and trained weights.
    """
    if not (math.isfinite(std) and std > 0):
        raise SchemeError(compose(f"std={std!r}", "a finite standard deviation above 0"))
    if isinstance(activation, str):
        return _named_moments(activation, std, tuple(sorted(parameters.items())))
    return _compute(resolve_activation(activation, **parameters), std)


def gain(activation: ActivationLike, kind: Kind = "second_moment", *, std: float = 1.0, **parameters: Any) -> float:
    """The factor g in ``std = g/√fan`` that restores a moment behind an activation.

    ``second_moment``: 1/√E φ², what He, EDM2 and the mean-field literature mean by a gain.
    ``centred``: 1/√Var φ, NFNet's γ and u-μP's element-wise scale.
    ``backward``: 1/√E φ'², for use with fan_out, or with fan_in where gradients matter more than activations.

    Args:
        activation: as for `moments`.
        kind: which of the three.
        std: of the pre-activation, as for `moments`.
        **parameters: of a named activation.

    Raises:
        SchemeError: as `moments`; an unknown kind; a moment that is zero.

    >>> round(gain("gelu"), 6)
    1.53353
    >>> round(gain("relu", "centred"), 6)
    1.712859
    >>> round(gain("tanh", "backward"), 6)
    1.467414

    Differs from ``torch.nn.init.calculate_gain``, which has 5/3 for tanh (the exact value is 1.592537), 1 for sigmoid
    (1.846229), 3/4 for selu (1), and nothing for gelu, silu, mish, elu and gated products. `disagreements` lists who
    else says what.
    """
    found = moments(activation, std, **parameters)
    if kind == "second_moment":
        return found.gain
    if kind == "centred":
        return found.gain_centred
    if kind == "backward":
        return found.gain_backward
    raise SchemeError(compose(f"kind={kind!r}", "a kind of gain", instead=nearest(str(kind), get_args(Kind))))


@lru_cache(maxsize=512)
def _named_moments(name: str, std: float, parameters: tuple[tuple[str, Parameter], ...]) -> Moments:
    return _compute(resolve_activation(name, **dict(parameters)), std)


def _compute(activation: Activation, std: float) -> Moments:
    def scaled(z: Array) -> Array:
        return activation.function(std * z)

    integrals = integrate(scaled, [kink / std for kink in activation.kinks], activation.tolerance)
    exact = activation.closed_form(std) if activation.closed_form else ClosedForm()
    mean = integrals.mean if exact.mean is None else exact.mean
    second = integrals.second if exact.second_moment is None else exact.second_moment
    slopes = exact.derivative_second_moment
    slopes = integrals.derivative_second / std**2 if slopes is None else slopes
    # Stein's lemma: E[zφφ'] = ½E[(z² − 1)φ²], so the slope of the length map needs no derivative.
    stretch = 0.5 * (integrals.weighted_second / integrals.second - 1.0) if integrals.second else 0.0
    if activation.homogeneous:
        stretch = 1.0
    if activation.gated:
        mean, second, slopes, stretch = 0.0, std**2 * second, std**2 * slopes + second, 1.0 + stretch
    # What rounding leaves of an odd function's mean, and of a constant's derivative, is zero.
    mean = 0.0 if abs(mean) < _ROUNDING * math.sqrt(second) else mean
    slopes = 0.0 if std**2 * slopes < _ROUNDING**2 * second else slopes
    return Moments(str(activation), std, mean, second, slopes, stretch, activation.homogeneous, activation.holds)
