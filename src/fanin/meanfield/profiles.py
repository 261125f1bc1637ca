"""What a deep network does layer by layer: the prediction that measurements are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fanin.errors import SchemeError, compose
from fanin.gains import Activation, ActivationLike, resolve_activation
from fanin.meanfield.maps import check_variances, correlation_step, layer_moments

_LONGEST = 1e100
_SHORTEST = 1e-100


@dataclass(frozen=True, slots=True)
class Profile:
    """Second moments and correlations in every layer of a deep network, before training.

    Args:
        activation: the name, with parameters.
        lengths: q of the pre-activations of layer 1, 2, … depth.
        chis: χ of each layer: ``σ_w²·E φ'(√q·z)²``, by which the gradient grows on its way back through it.
        gradients: the second moment of the gradient at each layer's pre-activations, that of the last being 1.
        correlations: of the pre-activations of two inputs, layer by layer; empty if not asked for.

    >>> he = profile("relu", depth=50, weight_variance=2.0)
    >>> he.lengths[-1], he.gradients[0]
    (2.0, 1.0)
    """

    activation: str
    lengths: tuple[float, ...]
    chis: tuple[float, ...]
    gradients: tuple[float, ...]
    correlations: tuple[float, ...] = ()


def profile(
    activation: ActivationLike,
    depth: int,
    weight_variance: float,
    bias_variance: float = 0.0,
    input_second_moment: float = 1.0,
    input_correlation: float | None = None,
    **parameters: Any,
) -> Profile:
    """Follow the maps through a network of equal layers.

    ``q₁ = σ_w²·E x² + σ_b²``, ``q_{l+1} = σ_w²·E φ(√q_l·z)² + σ_b²``; the gradient's second moment at layer l is
    ``χ_l·…·χ_{depth−1}`` times that at the last, for layers of equal width.

    Args:
        activation: as for `fanin.gains.moments`.
        depth: the number of weight layers, at least 1.
        weight_variance: σ_w² = fan_in · Var(W), the square of the gain.
        bias_variance: σ_b².
        input_second_moment: the mean square of the input's elements.
        input_correlation: the normalised product of two inputs, in [−1, 1]; None to leave correlations out.
        **parameters: of a named activation.

    Raises:
        SchemeError: a number out of range, and whatever `fanin.gains.moments` raises.

    A length beyond 1e100 is given as infinite, and its χ and correlation as not a number; one below 1e-100 as 0.

    Xavier's variance halves the second moment at every ReLU:

    >>> profile("relu", depth=4, weight_variance=1.0).lengths
    (1.0, 0.5, 0.25, 0.125)

    Source: Poole et al. 2016; Schoenholz et al. 2017. Measurements on width n scatter about it by about
    √(depth/n), times a few.
    """
    check_variances(
        weight_variance=weight_variance, bias_variance=bias_variance, input_second_moment=input_second_moment
    )
    if depth < 1:
        raise SchemeError(compose(f"depth={depth!r}", "a depth of at least 1"))
    if input_correlation is not None and not abs(input_correlation) <= 1.0:
        raise SchemeError(compose(f"input_correlation={input_correlation!r}", "a correlation in [-1, 1]"))
    resolved = resolve_activation(activation, **parameters)
    length = weight_variance * input_second_moment + bias_variance
    correlation = math.nan
    if input_correlation is not None and length > 0.0:
        correlation = (weight_variance * input_second_moment * input_correlation + bias_variance) / length
    lengths, chis, correlations = [], [], []
    for _ in range(depth):
        lengths.append(length)
        correlations.append(correlation)
        chi, correlation, length = _advance(resolved, length, correlation, weight_variance, bias_variance)
        chis.append(chi)
    return Profile(
        activation=str(resolved),
        lengths=tuple(lengths),
        chis=tuple(chis),
        gradients=_backwards(chis),
        correlations=() if input_correlation is None else tuple(correlations),
    )


def _advance(
    activation: Activation, length: float, correlation: float, weight_variance: float, bias_variance: float
) -> tuple[float, float, float]:
    """One layer on: its χ, and the next correlation and length."""
    if math.isinf(length):
        return math.nan, math.nan, length
    found = layer_moments(activation, length)
    further = weight_variance * found.second_moment + bias_variance
    if further > 0.0 and not math.isnan(correlation):
        correlation = correlation_step(activation, correlation, length, weight_variance, bias_variance).value
    else:
        correlation = math.nan
    if not _SHORTEST < further < _LONGEST:
        further = math.inf if further >= _LONGEST else 0.0
    return weight_variance * found.derivative_second_moment, correlation, further


def _backwards(chis: list[float]) -> tuple[float, ...]:
    """Products of χ from each layer to the last but one, the last layer's gradient being 1."""
    gradients = [1.0]
    for chi in reversed(chis[:-1]):
        gradients.append(gradients[-1] * chi)
    return tuple(reversed(gradients))
