"""Activations without kinks, and the gated products.

Parameters have torch's names and defaults. A closed form gives E φ, E φ² and E φ'² for z ~ N(0, σ²), q = σ².
"""

from __future__ import annotations

import math

import numpy as np

from fanin.errors import SchemeError, compose, nearest
from fanin.gains.activations import Activation, ClosedForm, gated, named, register
from fanin.gains.quadrature import Array

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """The error function, element by element (numpy has none)."""
    values: Array = np.asarray(_erf(x), dtype=np.float64)
    return values


def sigmoid(x: Array) -> Array:
    """``1/(1 + e^−x)``, without overflow."""
    values: Array = 0.5 * (1.0 + np.tanh(0.5 * x))
    return values


@register("tanh")
def _tanh() -> Activation:
    return Activation("", np.tanh)


@register("sigmoid", "logistic")
def _sigmoid() -> Activation:
    return Activation("", sigmoid)


@register("silu", "swish")
def _silu(beta: float = 1.0) -> Activation:
    """``x·sigmoid(βx)``; torch's has β = 1."""
    return Activation("", lambda x: x * sigmoid(beta * x))


@register("quick_gelu")
def _quick_gelu() -> Activation:
    return Activation("", lambda x: x * sigmoid(1.702 * x))


@register("gelu")
def _gelu(approximate: str = "none") -> Activation:
    """``x·Φ(x)`` (Hendrycks & Gimpel 2016), or its tanh approximation."""
    if approximate == "tanh":
        return _gelu_tanh()
    if approximate != "none":
        wrong = nearest(approximate, ("none", "tanh"))
        raise SchemeError(compose(f"gelu with approximate={approximate!r}", "'none' or 'tanh'", instead=wrong))

    def closed_form(std: float) -> ClosedForm:
        q = std * std
        angle, root = math.asin(q / (1 + q)), math.sqrt(1 + 2 * q)
        second = q / 4 + (q * angle + 2 * q * q / ((1 + q) * root)) / (2 * math.pi)
        slopes = 0.25 + (angle + 2 * q / ((1 + q) * root) + q / root**3) / (2 * math.pi)
        return ClosedForm(q / math.sqrt(2 * math.pi * (1 + q)), second, slopes)

    return Activation("", lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2))), closed_form=closed_form)


@register("gelu_tanh", "gelu_new", "gelu_pytorch_tanh")
def _gelu_tanh() -> Activation:
    constant = math.sqrt(2 / math.pi)
    return Activation("", lambda x: 0.5 * x * (1.0 + np.tanh(constant * (x + 0.044715 * x**3))))


@register("mish")
def _mish() -> Activation:
    return Activation("", lambda x: x * np.tanh(np.logaddexp(0.0, x)))


@register("softplus")
def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """``log(1 + e^(βx))/β``, and x itself once βx exceeds the threshold."""
    if beta <= 0:
        raise SchemeError(compose(f"softplus with beta={beta}", "beta > 0"))

    def function(x: Array) -> Array:
        return np.where(beta * x > threshold, x, np.logaddexp(0.0, beta * x) / beta)

    return Activation("", function, (threshold / beta,))


@register("logsigmoid")
def _logsigmoid() -> Activation:
    return Activation("", lambda x: -np.logaddexp(0.0, -x))


@register("tanhshrink")
def _tanhshrink() -> Activation:
    return Activation("", lambda x: x - np.tanh(x))


@register("erf")
def _erf_activation() -> Activation:
    def closed_form(std: float) -> ClosedForm:
        q = std * std
        return ClosedForm(0.0, 2 / math.pi * math.asin(2 * q / (1 + 2 * q)), 4 / (math.pi * math.sqrt(1 + 4 * q)))

    return Activation("", erf, closed_form=closed_form)


@register("arctan", "atan")
def _arctan() -> Activation:
    return Activation("", np.arctan)


@register("sin", "sine", "siren")
def _sin(omega: float = 1.0) -> Activation:
    """``sin(ωx)``."""

    def closed_form(std: float) -> ClosedForm:
        wave = math.exp(-2 * (omega * std) ** 2)
        return ClosedForm(0.0, (1 - wave) / 2, omega**2 * (1 + wave) / 2)

    return Activation("", lambda x: np.sin(omega * x), closed_form=closed_form)


@register("cos", "cosine")
def _cos(omega: float = 1.0) -> Activation:
    """``cos(ωx)``."""

    def closed_form(std: float) -> ClosedForm:
        wave = math.exp(-2 * (omega * std) ** 2)
        return ClosedForm(math.exp(-((omega * std) ** 2) / 2), (1 + wave) / 2, omega**2 * (1 - wave) / 2)

    return Activation("", lambda x: np.cos(omega * x), closed_form=closed_form)


@register("snake")
def _snake(alpha: float = 1.0) -> Activation:
    """``x + sin²(αx)/α`` (Ziyin et al. 2020)."""
    if alpha == 0:
        raise SchemeError(compose("snake with alpha=0", "an alpha other than 0", why="snake divides by alpha"))
    return Activation("", lambda x: x + np.sin(alpha * x) ** 2 / alpha)


@register("gaussian")
def _gaussian() -> Activation:
    """``e^(−x²)``."""

    def closed_form(std: float) -> ClosedForm:
        q = std * std
        return ClosedForm(1 / math.sqrt(1 + 2 * q), 1 / math.sqrt(1 + 4 * q), 4 * q / (1 + 4 * q) ** 1.5)

    return Activation("", lambda x: np.exp(-x * x), closed_form=closed_form)


@register("square", "squared")
def _square() -> Activation:
    return Activation("", np.square, closed_form=lambda std: ClosedForm(std**2, 3 * std**4, 4 * std**2))


@register("glu")
def _glu() -> Activation:
    return gated(_sigmoid(), "glu")


@register("swiglu", "silu_glu")
def _swiglu(beta: float = 1.0) -> Activation:
    return gated(_silu(beta), "swiglu")


@register("geglu", "gelu_glu")
def _geglu(approximate: str = "none") -> Activation:
    return gated(_gelu(approximate), "geglu")


@register("reglu", "relu_glu")
def _reglu() -> Activation:
    return gated(named("relu"), "reglu")


@register("bilinear", "bilinear_glu")
def _bilinear() -> Activation:
    return gated(named("identity"), "bilinear")


@register("tanhglu", "tanh_glu", "gtu")
def _tanhglu() -> Activation:
    return gated(_tanh(), "tanhglu")
