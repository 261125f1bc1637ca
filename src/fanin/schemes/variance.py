"""Variance scaling: LeCun, Xavier/Glorot and He/Kaiming are three settings of one rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fanin.fans import Axes, Fans, Shape
from fanin.schemes.base import Expected, Scheme, register, require_choice, require_number
from fanin.schemes.normal import Normal, TruncatedNormal, Uniform

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
Distribution = Literal["normal", "uniform", "truncated_normal"]


@register
@dataclass(frozen=True, slots=True)
class VarianceScaling(Scheme):
    """Entries of variance ``scale / n``, with n chosen from the fans by ``mode``.

    Args:
        scale: the variance times n; the square of the gain.
        mode: ``fan_in`` keeps the signal on the way forward, ``fan_out`` the gradient on the way back, ``fan_avg`` is
            Glorot's compromise, ``fan_geo_avg`` the geometric one.
        distribution: ``normal``; ``uniform`` on ``±√(3 · scale / n)``; ``truncated_normal`` at ±2σ, whose std is
            corrected for the cut, as in JAX and Keras.

    >>> VarianceScaling(2.0).expected(Fans(256, 512)).std
    0.08838834...
    >>> VarianceScaling(1.0, "fan_avg", "uniform").resolve(Fans(256, 512)).label
    'uniform ±0.08839'

    The fans are the weight's true ones (see `fanin.Axes`), which torch's are not for grouped, transposed and packed
    weights.
    """

    scale: float = 1.0
    mode: Mode = "fan_in"
    distribution: Distribution = "normal"

    def __post_init__(self) -> None:
        require_number("VarianceScaling", "scale", self.scale, minimum=0)
        require_choice("VarianceScaling", "mode", self.mode, get_args(Mode))
        require_choice("VarianceScaling", "distribution", self.distribution, get_args(Distribution))

    @property
    def gain(self) -> float:
        """``√scale``."""
        return math.sqrt(self.scale)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        count: float = getattr(fans, self.mode)
        return Expected(0.0, math.sqrt(self.scale / count) if count else 0.0)

    def resolve(self, fans: Fans) -> Scheme:
        std = self.expected(fans).std
        if self.distribution == "uniform":
            return Uniform(-math.sqrt(3) * std, math.sqrt(3) * std)
        if self.distribution == "truncated_normal":
            return TruncatedNormal(std, corrected=True)
        return Normal(std)

    def scaled(self, factor: float) -> VarianceScaling:
        return VarianceScaling(self.scale * factor * factor, self.mode, self.distribution)

    @property
    def label(self) -> str:
        name = {"fan_in": "he" if math.isclose(self.scale, 2) else "lecun", "fan_avg": "xavier"}.get(
            self.mode, self.mode
        )
        usual = 2.0 if name == "he" else 1.0
        gain = "" if math.isclose(self.scale, usual) else f" × {self.gain:.4f}"
        return f"{name} {self.distribution.replace('_', ' ')}{gain}"

    @property
    def sources(self) -> tuple[str, ...]:
        if self.mode == "fan_in":
            return ("lecun1998",) if self.scale == 1 else ("he2015",)
        return ("he2015",) if self.mode == "fan_out" else ("glorot2010",)


def lecun_normal(gain: float = 1.0) -> VarianceScaling:
    """N(0, gain²/fan_in): unit variance forward through a linear layer (LeCun et al. 1998); right for SELU.

    Differs from JAX and Keras, whose ``lecun_normal`` is truncated: that is `lecun_truncated_normal`.
    """
    return VarianceScaling(gain**2, "fan_in", "normal")


def lecun_truncated_normal(gain: float = 1.0) -> VarianceScaling:
    """Truncated at ±2σ with the same std as `lecun_normal`; the default kernel of Flax and JAX."""
    return VarianceScaling(gain**2, "fan_in", "truncated_normal")


def lecun_uniform(gain: float = 1.0) -> VarianceScaling:
    """U(±gain·√(3/fan_in)): the std of `lecun_normal`."""
    return VarianceScaling(gain**2, "fan_in", "uniform")


def xavier_normal(gain: float = 1.0) -> VarianceScaling:
    """N(0, 2·gain²/(fan_in + fan_out)) (Glorot & Bengio 2010), for linear, tanh and sigmoid layers.

    >>> xavier_normal().expected(Fans(256, 512)).std
    0.0510310...
    """
    return VarianceScaling(gain**2, "fan_avg", "normal")


def xavier_truncated_normal(gain: float = 1.0) -> VarianceScaling:
    """Truncated at ±2σ with the std of `xavier_normal`; ``glorot_normal`` of JAX and Keras."""
    return VarianceScaling(gain**2, "fan_avg", "truncated_normal")


def xavier_uniform(gain: float = 1.0) -> VarianceScaling:
    """U(±gain·√(6/(fan_in + fan_out))), as first published by Glorot & Bengio 2010, eq. 16."""
    return VarianceScaling(gain**2, "fan_avg", "uniform")


def he_normal(negative_slope: float = 0.0, mode: Mode = "fan_in") -> VarianceScaling:
    """N(0, 2/((1 + a²)·fan)) (He et al. 2015, eq. 10 and 15), for ReLU and, with slope a, leaky ReLU.

    >>> he_normal().expected(Fans(256, 512)).std
    0.08838834...

    Differs from JAX and Keras, whose ``he_normal`` is truncated: that is `he_truncated_normal`.
    """
    return VarianceScaling(2.0 / (1.0 + negative_slope**2), mode, "normal")


def he_truncated_normal(negative_slope: float = 0.0, mode: Mode = "fan_in") -> VarianceScaling:
    """Truncated at ±2σ with the std of `he_normal`; ``he_normal`` of JAX and Keras."""
    return VarianceScaling(2.0 / (1.0 + negative_slope**2), mode, "truncated_normal")


def he_uniform(negative_slope: float = 0.0, mode: Mode = "fan_in") -> VarianceScaling:
    """U(±√(6/((1 + a²)·fan))): the std of `he_normal`."""
    return VarianceScaling(2.0 / (1.0 + negative_slope**2), mode, "uniform")


glorot_normal, glorot_uniform, glorot_truncated_normal = xavier_normal, xavier_uniform, xavier_truncated_normal
kaiming_normal, kaiming_uniform, kaiming_truncated_normal = he_normal, he_uniform, he_truncated_normal
