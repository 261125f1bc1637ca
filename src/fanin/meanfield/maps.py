"""The length map and the correlation map: what one wide random layer does to one signal, and to two."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fanin.errors import SchemeError, compose
from fanin.gains import Activation, ActivationLike, Moments, moments, resolve_activation
from fanin.gains.pairs import PairExpectation, pair_expectation
from fanin.gains.quadrature import Array

_SMALLEST_STD = 1e-50
_SMALLEST_STD_OFF_ZERO = 1e-5


class Correlation(NamedTuple):
    """The value of the correlation map at one point, and its slope there."""

    value: float
    slope: float


def length_map(
    activation: ActivationLike, length: float, weight_variance: float, bias_variance: float = 0.0, **parameters: Any
) -> float:
    """The variance of the next layer's pre-activations: ``q' = σ_w²·E φ(√q·z)² + σ_b²``.

    For a gated product ``φ(u)·v``, both factors of variance q, it is ``σ_w²·q·E φ(√q·z)² + σ_b²``.

    Args:
        activation: as for `fanin.gains.moments`.
        length: q, the variance of this layer's pre-activations, at least 0.
        weight_variance: σ_w² = fan_in · Var(W), the square of the gain.
        bias_variance: σ_b².
        **parameters: of a named activation.

    Raises:
        SchemeError: a negative or infinite variance, and whatever `fanin.gains.moments` raises.

    >>> length_map("relu", 3.0, weight_variance=2.0)
    3.0

    Source: Poole et al. 2016 (arXiv:1606.05340), eq. 3. It is exact for infinite width, with an error of order
    1/width in the mean and √(depth/width) from one network to another.
    """
    check_variances(length=length, weight_variance=weight_variance, bias_variance=bias_variance)
    found = layer_moments(resolve_activation(activation, **parameters), length)
    return weight_variance * found.second_moment + bias_variance


def correlation_map(
    activation: ActivationLike,
    correlation: float,
    length: float,
    weight_variance: float,
    bias_variance: float = 0.0,
    **parameters: Any,
) -> float:
    """The correlation of two signals one layer on, both with pre-activations of variance q.

    ``c' = (σ_w²·E φ(u)φ(v) + σ_b²) / (σ_w²·E φ(u)² + σ_b²)`` with u, v of variance q and correlation c.

    Args:
        activation: as for `fanin.gains.moments`.
        correlation: c, in [−1, 1].
        length: q, the variance of the pre-activations; at a fixed point, q*.
        weight_variance: σ_w² = fan_in · Var(W).
        bias_variance: σ_b².
        **parameters: of a named activation.

    Raises:
        SchemeError: a correlation outside [−1, 1], a negative variance, or a layer whose output is zero.

    >>> round(correlation_map("relu", 0.0, 1.0, weight_variance=2.0), 6) == round(1 / math.pi, 6)
    True

    Source: Poole et al. 2016, eq. 5; for ReLU the arc-cosine kernel of Cho & Saul 2009.
    """
    check_variances(length=length, weight_variance=weight_variance, bias_variance=bias_variance)
    if not abs(correlation) <= 1.0:
        raise SchemeError(compose(f"correlation={correlation!r}", "a correlation in [-1, 1]"))
    resolved = resolve_activation(activation, **parameters)
    return correlation_step(resolved, correlation, length, weight_variance, bias_variance).value


def depth_scale(slope: float) -> float:
    """The number of layers ξ over which a deviation changes by a factor e: ``ξ = 1/|ln|slope||``.

    It decays where the slope of the map at its fixed point is below 1 in modulus, and grows above; at 1 ξ is infinite.

    >>> round(depth_scale(0.9), 4)
    9.4912

    Source: Schoenholz et al. 2017 (arXiv:1611.01232), eq. 7 and 9. Trainable depth is a few ξ of the correlation map.
    """
    size = abs(slope)
    if size == 0.0:
        return 0.0
    return math.inf if size == 1.0 else 1.0 / abs(math.log(size))


def check_variances(**variances: float) -> None:
    """Raise unless every variance is finite and at least 0."""
    for name, value in variances.items():
        if not (math.isfinite(value) and value >= 0.0):
            raise SchemeError(compose(f"{name}={value!r}", f"a finite {name} of at least 0", why="it is a variance"))


def layer_moments(activation: Activation, length: float) -> Moments:
    """The activation's moments at pre-activation variance `length`, down to 0."""
    if activation.homogeneous:
        unit = moments(activation)
        return replace(unit, std=math.sqrt(length), second_moment=length * unit.second_moment)
    found = moments(activation, _std(activation, length))
    if length > 0.0:
        return found
    return replace(found, second_moment=0.0 if activation.gated else _at_rest(activation) ** 2)


def correlation_step(
    activation: Activation, correlation: float, length: float, weight_variance: float, bias_variance: float
) -> Correlation:
    """The correlation map and its slope by the correlation."""
    second = layer_moments(activation, length).second_moment
    whole = weight_variance * second + bias_variance
    if whole <= 0.0:
        why = "two outputs that are zero have no correlation"
        raise SchemeError(compose(f"{activation} at length={length!r}", "an output that is not always 0", why))
    pair = _pair(activation, correlation, _std(activation, length))
    value = (weight_variance * pair.value + bias_variance) / whole
    return Correlation(min(1.0, max(-1.0, value)), weight_variance * pair.slope / whole)


def _std(activation: Activation, length: float) -> float:
    """√q, kept away from 0: by much where φ(0) ≠ 0, whose slope would drown in the rounding of φ."""
    return max(math.sqrt(length), _SMALLEST_STD_OFF_ZERO if _at_rest(activation) else _SMALLEST_STD)


def _at_rest(activation: Activation) -> float:
    return float(activation(np.zeros(1))[0])


def _pair(activation: Activation, correlation: float, std: float) -> PairExpectation:
    def scaled(z: Array) -> Array:
        return activation.function(std * z)

    kinks = [kink / std for kink in activation.kinks]
    gate = pair_expectation(scaled, correlation, kinks, activation.tolerance)
    if not activation.gated:
        return gate
    # The value path multiplies by its own covariance q·c.
    return PairExpectation(std**2 * correlation * gate.value, std**2 * (gate.value + correlation * gate.slope))
