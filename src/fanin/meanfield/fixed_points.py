"""Where the maps settle with depth, and which phase a network is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fanin.errors import SchemeError, compose
from fanin.gains import Activation, ActivationLike, resolve_activation
from fanin.meanfield.maps import check_variances, correlation_step, depth_scale, layer_moments
from fanin.meanfield.roots import find_root

Outcome = Literal["fixed_point", "every_length", "vanishing", "exploding"]
"""What the length does with depth: settles; stays where it starts; goes to 0; to infinity.

It cannot oscillate: at a fixed point the length map's slope is at least −½, since E z²φ² ≥ 0.
"""

Phase = Literal["ordered", "critical", "chaotic"]

_SMALL = 1e-10
_LARGE = 1e8
_CRITICAL = 1e-6


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Where a deep random network of one activation settles.

    Args:
        activation: the name, with parameters.
        weight_variance: σ_w² = fan_in · Var(W).
        bias_variance: σ_b².
        outcome: what the length does. Where it vanishes or explodes, the numbers after `length` are those at 1e-10
            or 1e8.
        length: q*, the variance of pre-activations: 0 when vanishing, infinite when exploding.
        correlation: c*, what the correlation of two different inputs tends to.
        chi: χ₁ = σ_w²·E φ'(√q*·z)², by which one layer multiplies the second moment of a gradient.
        length_slope: the slope of the length map at q*.
        correlation_slope: the slope of the correlation map at c*.

    >>> point = fixed_point("tanh", weight_variance=2.0, bias_variance=0.05)
    >>> point.phase, round(point.chi, 5)
    ('chaotic', 1.04767)
    """

    activation: str
    weight_variance: float
    bias_variance: float
    outcome: Outcome
    length: float
    correlation: float
    chi: float
    length_slope: float
    correlation_slope: float

    @property
    def phase(self) -> Phase:
        """Ordered (χ₁ < 1: gradients vanish), chaotic (χ₁ > 1: they explode) or critical, to within 1e-6."""
        if abs(self.chi - 1.0) <= _CRITICAL:
            return "critical"
        return "ordered" if self.chi < 1.0 else "chaotic"

    @property
    def length_depth(self) -> float:
        """ξ_q, the layers over which a deviation of the length from q* changes by a factor e."""
        return depth_scale(self.length_slope)

    @property
    def correlation_depth(self) -> float:
        """ξ_c, the layers over which a deviation of the correlation from c* falls by a factor e."""
        return depth_scale(self.correlation_slope)

    @property
    def gradient_depth(self) -> float:
        """ξ_∇ = 1/|ln χ₁|, the layers over which the second moment of gradients changes by a factor e."""
        return depth_scale(self.chi)

    def gradient_growth(self, depth: int) -> float:
        """``χ₁^depth``: the second moment of gradients at the input over that at the output."""
        return self.chi**depth


def fixed_point(
    activation: ActivationLike,
    weight_variance: float,
    bias_variance: float = 0.0,
    start: float = 1.0,
    **parameters: Any,
) -> FixedPoint:
    """The fixed points of both maps, with their slopes.

    ``q* = σ_w²·E φ(√q*·z)² + σ_b²`` that the length reaches from `start`; ``c* = C(c*)`` that correlations of
    different inputs tend to: 1 where ``C'(1) ≤ 1``, below 1 in the chaotic phase.

    Args:
        activation: as for `fanin.gains.moments`.
        weight_variance: σ_w² = fan_in · Var(W), above 0.
        bias_variance: σ_b², at least 0.
        start: the length to start from, above 0; matters where there is more than one fixed point.
        **parameters: of a named activation.

    Raises:
        SchemeError: a variance out of range, and whatever `fanin.gains.moments` raises.

    A ReLU net at He's variance keeps any length; above, it explodes:

    >>> fixed_point("relu", 2.0).outcome, fixed_point("relu", 2.1).outcome, fixed_point("relu", 1.9).outcome
    ('every_length', 'exploding', 'vanishing')

    Source: Poole et al. 2016; Schoenholz et al. 2017. It describes the initialization, of wide layers, alone: it
    stops being true with training, with normalization or residual branches, and at depths near the width.
    """
    check_variances(bias_variance=bias_variance)
    for name, value in (("weight_variance", weight_variance), ("start", start)):
        check_variances(**{name: value})
        if value == 0.0:
            raise SchemeError(compose(f"{name}=0", f"a {name} above 0"))
    resolved = resolve_activation(activation, **parameters)
    length, outcome = _settle(resolved, weight_variance, bias_variance, start)
    probe = min(max(length, _SMALL), _LARGE)
    found = layer_moments(resolved, probe)
    length_slope = weight_variance * found.second_moment * found.length_slope / probe
    correlation, slope = _settle_correlation(resolved, probe, weight_variance, bias_variance)
    return FixedPoint(
        activation=str(resolved),
        weight_variance=weight_variance,
        bias_variance=bias_variance,
        outcome=outcome,
        length=length,
        correlation=correlation,
        chi=weight_variance * found.derivative_second_moment,
        length_slope=length_slope,
        correlation_slope=slope,
    )


def _settle(
    activation: Activation, weight_variance: float, bias_variance: float, start: float
) -> tuple[float, Outcome]:
    """The nearest fixed length in the direction in which the map moves `start`."""

    def excess(length: float) -> float:
        return weight_variance * layer_moments(activation, length).second_moment + bias_variance - length

    if activation.homogeneous:
        slope = weight_variance * layer_moments(activation, 1.0).second_moment
        return _settle_linear(slope, bias_variance, start)
    first = excess(start)
    if abs(first) <= 1e-14 * start:
        return start, "fixed_point"
    inner, factor = start, 2.0 if first > 0 else 0.5
    while _SMALL < inner < _LARGE:
        outer = inner * factor
        if excess(outer) * first <= 0.0:
            return find_root(excess, inner, outer), "fixed_point"
        inner = outer
    return (float("inf"), "exploding") if first > 0 else (0.0, "vanishing")


def _settle_linear(slope: float, bias_variance: float, start: float) -> tuple[float, Outcome]:
    """The same for ``q' = slope·q + σ_b²``, exactly."""
    if abs(slope - 1.0) < 1e-12 and bias_variance == 0.0:
        return start, "every_length"
    if slope > 1.0 - 1e-12:
        return float("inf"), "exploding"
    return bias_variance / (1.0 - slope), "fixed_point" if bias_variance else "vanishing"


def _settle_correlation(
    activation: Activation, length: float, weight_variance: float, bias_variance: float
) -> tuple[float, float]:
    """c* and the slope there; between 0 and 1 the map is a power series with coefficients of at least 0."""

    def excess(correlation: float) -> float:
        step = correlation_step(activation, correlation, length, weight_variance, bias_variance)
        return step.value - correlation

    slope = correlation_step(activation, 1.0, length, weight_variance, bias_variance).slope
    if slope <= 1.0 + _CRITICAL:
        return 1.0, slope
    low, gap = 0.0, 0.5
    while excess(1.0 - gap) > 0.0 and gap > 1e-9:
        low, gap = 1.0 - gap, gap / 4
    fixed = find_root(excess, low, 1.0 - gap, tolerance=1e-12)
    fixed = 0.0 if fixed < 1e-12 else fixed
    return fixed, correlation_step(activation, fixed, length, weight_variance, bias_variance).slope
