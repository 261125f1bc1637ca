"""The edge of chaos: the weight and bias variances at which gradients neither vanish nor explode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fanin.errors import SchemeError, compose
from fanin.gains import Activation, ActivationLike, resolve_activation
from fanin.meanfield.maps import check_variances, layer_moments
from fanin.meanfield.roots import find_root

_SHORTEST = 1e-4
_LONGEST = 1e6
_STEP = 1.25


@dataclass(frozen=True, slots=True)
class CriticalPoint:
    """A point of the critical line χ₁ = 1.

    Args:
        activation: the name, with parameters.
        length: q*, the fixed length there.
        weight_variance: σ_w² = fan_in · Var(W).
        bias_variance: σ_b².
        length_slope: the slope of the length map at q*.
    """

    activation: str
    length: float
    weight_variance: float
    bias_variance: float
    length_slope: float

    @property
    def gain(self) -> float:
        """σ_w: the weight's standard deviation is ``gain/√fan_in``."""
        return math.sqrt(self.weight_variance)

    @property
    def stable(self) -> bool:
        """Whether the length stays near q*: gradients are critical in either case, but not for long if it leaves."""
        return abs(self.length_slope) <= 1.0 + 1e-9


def critical_point(activation: ActivationLike, length: float = 1.0, **parameters: Any) -> CriticalPoint:
    """The point of the critical line with a given fixed length.

    ``σ_w² = 1/E φ'(√q·z)²`` so that χ₁ = 1, and ``σ_b² = q − σ_w²·E φ(√q·z)²`` so that q is fixed.

    Args:
        activation: as for `fanin.gains.moments`.
        length: q, at least 0.
        **parameters: of a named activation.

    Raises:
        SchemeError: σ_b² would be negative, φ' is zero, or `length` is negative.

    >>> point = critical_point("tanh", 0.5)
    >>> round(point.weight_variance, 6), round(point.bias_variance, 6)
    (1.687975, 0.038041)

    Source: Schoenholz et al. 2017, section 3; Pennington et al. 2017 (arXiv:1711.04735), fig. 1.
    """
    check_variances(length=length)
    point = _at(resolve_activation(activation, **parameters), length)
    if point.bias_variance < 0:
        raise SchemeError(
            compose(
                f"{point.activation} with fixed length {length:g}",
                f"a bias variance of at least 0; it would be {point.bias_variance:.4g}",
                why="its mean or its curvature adds more second moment than gradients that stay the same allow",
                instead="an activation without its mean, or a normalization",
            )
        )
    return point


def critical_point_at_bias(activation: ActivationLike, bias_variance: float = 0.0, **parameters: Any) -> CriticalPoint:
    """The stable point of the critical line with a given bias variance, zero being the usual one.

    Args:
        activation: as for `fanin.gains.moments`.
        bias_variance: σ_b², at least 0.
        **parameters: of a named activation.

    Raises:
        SchemeError: the line has no point with that bias variance whose length is stable, as for GELU and SiLU: a
            forward and a backward gain then disagree, and depth decides between them.

    >>> round(critical_point_at_bias("tanh", 0.05).weight_variance, 6)
    1.760955
    >>> critical_point_at_bias("tanh").length, critical_point_at_bias("leaky_relu", negative_slope=0.0).weight_variance
    (0.0, 2.0)

    Of smooth sigmoidal activations with φ(0) = 0 the point without bias is at q* = 0, which the length approaches
    only as 1/depth. Source: as `critical_point`.
    """
    check_variances(bias_variance=bias_variance)
    resolved = resolve_activation(activation, **parameters)
    if bias_variance == 0.0:
        point = _without_bias(resolved)
        if point is not None:
            return point

    def excess(length: float) -> float:
        found = layer_moments(resolved, length)
        slopes = found.derivative_second_moment
        return length - found.second_moment / slopes - bias_variance if slopes else math.nan

    low, below = _SHORTEST, excess(_SHORTEST)
    while low < _LONGEST and not resolved.homogeneous:
        high = low * _STEP
        above = excess(high)
        if below * above <= 0.0 and below != above:
            point = _at(resolved, find_root(excess, low, high))
            if point.stable:
                return point
        low, below = high, above
    raise SchemeError(
        compose(
            f"{resolved} with bias variance {bias_variance:g}",
            "an activation with a stable critical point there",
            why="wherever gradients would keep their second moment, activations do not keep theirs",
            instead=f'gain({resolved.name!r}, "backward") when deep, gain({resolved.name!r}) when shallow',
        )
    )


def _at(activation: Activation, length: float) -> CriticalPoint:
    found = layer_moments(activation, length)
    if found.derivative_second_moment <= 0.0:
        why = "χ₁ = σ_w²·E φ'² is then 0 for every weight variance"
        raise SchemeError(compose(f"{activation} at length {length:g}", "a derivative that is not 0 everywhere", why))
    weight_variance = 1.0 / found.derivative_second_moment
    second = weight_variance * found.second_moment
    # What rounding leaves of the difference is no bias variance.
    bias_variance = length - second
    if activation.homogeneous or abs(bias_variance) < 1e-12 * length:
        bias_variance = 0.0
    slope = second * found.length_slope / length if length else 1.0
    return CriticalPoint(str(activation), length, weight_variance, bias_variance, slope)


def _without_bias(activation: Activation) -> CriticalPoint | None:
    """Every length, when homogeneous; else length 0, if φ(0) = 0 and lengths nearby fall towards it."""
    if activation.homogeneous:
        return _at(activation, 1.0)
    if layer_moments(activation, 0.0).derivative_second_moment <= 0.0:
        return None
    at_rest = _at(activation, 0.0)
    nearby = layer_moments(activation, _SHORTEST).second_moment
    # Exactly as long where the activation is linear about 0, as hardtanh.
    return at_rest if at_rest.weight_variance * nearby <= _SHORTEST * (1 + 1e-9) else None
