"""Activations with kinks: ReLU and its kin, the exponential linear units, and the hard ones.

Parameters have torch's names and defaults. A closed form gives E φ, E φ² and E φ'² for z ~ N(0, σ²), q = σ².
"""

from __future__ import annotations

import math

import numpy as np

from fanin.errors import SchemeError, compose
from fanin.gains.activations import Activation, ClosedForm, register
from fanin.gains.quadrature import Array

_ROOT_TWO_PI = math.sqrt(2 * math.pi)

SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717
"""Klambauer et al. 2017 (arXiv:1706.02515), eq. 14: the fixed point at mean 0 and variance 1."""


def _two_slopes(left: float, right: float = 1.0) -> Activation:
    """``right·x`` above zero, ``left·x`` below: the positively homogeneous functions of one variable.

    E φ = (right − left)σ/√2π, E φ² = (left² + right²)q/2, E φ'² = (left² + right²)/2 (He et al. 2015).
    """
    half_squares = (left * left + right * right) / 2

    def closed_form(std: float) -> ClosedForm:
        return ClosedForm((right - left) * std / _ROOT_TWO_PI, half_squares * std * std, half_squares)

    kinks = () if left == right else (0.0,)
    return Activation(
        "", lambda x: np.where(x >= 0, right * x, left * x), kinks, homogeneous=True, closed_form=closed_form
    )


@register("identity", "linear", "none")
def _identity() -> Activation:
    return _two_slopes(1.0)


@register("relu", "relu_")
def _relu() -> Activation:
    return _two_slopes(0.0)


@register("abs", "absolute")
def _abs() -> Activation:
    return _two_slopes(-1.0)


@register("leaky_relu", "lrelu")
def _leaky_relu(negative_slope: float = 0.01) -> Activation:
    return _two_slopes(negative_slope)


@register("prelu")
def _prelu(weight: float = 0.25) -> Activation:
    return _two_slopes(weight)


@register("rrelu")
def _rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """At evaluation, where the slope is the mean; in training its variance (upper − lower)²/12 comes on top."""
    return _two_slopes((lower + upper) / 2)


def _exponential_unit(scale: float, alpha: float, width: float) -> Activation:
    """``scale·x`` above zero, ``scale·alpha·(e^(x/width) − 1)`` below.

    With M(t) = E[e^(tz); z < 0] = e^(t²q/2)·Φ(−tσ): E φ = scale·(σ/√2π + alpha·(M(1/width) − ½)), and so on.
    """

    def function(x: Array) -> Array:
        return scale * np.where(x > 0, x, alpha * np.expm1(np.where(x > 0, 0.0, x) / width))

    def half_transform(t: float, std: float) -> float:
        return math.exp((t * std) ** 2 / 2) * 0.5 * math.erfc(t * std / math.sqrt(2))

    def closed_form(std: float) -> ClosedForm:
        if std > 10 * abs(width):  # e^(t²q/2) would overflow, and the quadrature has no trouble there
            return ClosedForm()
        once, twice = half_transform(1 / width, std), half_transform(2 / width, std)
        mean = std / _ROOT_TWO_PI + alpha * (once - 0.5)
        second = std * std / 2 + alpha**2 * (twice - 2 * once + 0.5)
        return ClosedForm(scale * mean, scale**2 * second, scale**2 * (0.5 + (alpha / width) ** 2 * twice))

    return Activation("", function, (0.0,), closed_form=closed_form)


@register("elu")
def _elu(alpha: float = 1.0) -> Activation:
    return _exponential_unit(1.0, alpha, 1.0)


@register("celu")
def _celu(alpha: float = 1.0) -> Activation:
    if alpha <= 0:
        raise SchemeError(compose(f"celu with alpha={alpha}", "alpha > 0", why="celu divides by alpha"))
    return _exponential_unit(1.0, alpha, alpha)


@register("selu")
def _selu() -> Activation:
    return _exponential_unit(SELU_SCALE, SELU_ALPHA, 1.0)


def _clip(low: float, high: float) -> Activation:
    """``min(max(x, low), high)``; E φ'² = P(low < z < high)."""

    def closed_form(std: float) -> ClosedForm:
        a, b = low / std, high / std
        below, above = 0.5 * math.erfc(-a / math.sqrt(2)), 0.5 * math.erfc(b / math.sqrt(2))
        at_a, at_b = (math.exp(-edge * edge / 2) / _ROOT_TWO_PI for edge in (a, b))
        inside = 1.0 - below - above
        mean = low * below + high * above + std * (at_a - at_b)
        second = low**2 * below + high**2 * above + std**2 * (inside + a * at_a - b * at_b)
        return ClosedForm(mean, second, inside)

    return Activation("", lambda x: np.clip(x, low, high), (low, high), closed_form=closed_form)


@register("hardtanh", "clip", "clamp")
def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    if min_val >= max_val:
        raise SchemeError(compose(f"hardtanh with min_val={min_val}, max_val={max_val}", "min_val < max_val"))
    return _clip(min_val, max_val)


@register("relu6")
def _relu6() -> Activation:
    return _clip(0.0, 6.0)


@register("hardsigmoid")
def _hardsigmoid() -> Activation:
    return Activation("", lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0), (-3.0, 3.0))


@register("hardswish", "hswish")
def _hardswish() -> Activation:
    return Activation("", lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0), (-3.0, 3.0))


@register("softshrink")
def _softshrink(lambd: float = 0.5) -> Activation:
    _check_threshold("softshrink", lambd)
    return Activation("", lambda x: np.sign(x) * np.maximum(np.abs(x) - lambd, 0.0), (-lambd, lambd))


@register("hardshrink")
def _hardshrink(lambd: float = 0.5) -> Activation:
    _check_threshold("hardshrink", lambd)
    return Activation("", lambda x: np.where(np.abs(x) > lambd, x, 0.0), (-lambd, lambd), continuous=lambd == 0)


@register("threshold")
def _threshold(threshold: float, value: float) -> Activation:
    return Activation("", lambda x: np.where(x > threshold, x, value), (threshold,), continuous=threshold == value)


@register("softsign")
def _softsign() -> Activation:
    return Activation("", lambda x: x / (1.0 + np.abs(x)), (0.0,))


@register("relu_squared", "squared_relu", "relu2", "relu^2", "relu²")
def _relu_squared() -> Activation:
    """Homogeneous of degree 2, so not at every scale (So et al. 2021, Primer)."""
    return Activation(
        "",
        lambda x: np.maximum(x, 0.0) ** 2,
        (0.0,),
        closed_form=lambda std: ClosedForm(std**2 / 2, 1.5 * std**4, 2 * std**2),
    )


@register("star_relu")
def _star_relu(scale: float = 0.8944, bias: float = -0.4472) -> Activation:
    """``scale·relu(x)² + bias``, which standardises relu² (Yu et al. 2022, MetaFormer baselines)."""

    def closed_form(std: float) -> ClosedForm:
        mean = std**2 / 2
        second = scale**2 * 1.5 * std**4 + 2 * scale * bias * mean + bias**2
        return ClosedForm(scale * mean + bias, second, 2 * (scale * std) ** 2)

    return Activation("", lambda x: scale * np.maximum(x, 0.0) ** 2 + bias, (0.0,), closed_form=closed_form)


def _check_threshold(name: str, lambd: float) -> None:
    if lambd < 0:
        raise SchemeError(compose(f"{name} with lambd={lambd}", "lambd of at least 0"))
