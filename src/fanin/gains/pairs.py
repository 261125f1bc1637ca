"""Expectations of a function at two correlated Gaussians, and how they change with the correlation.

Two standard Gaussians with correlation c ≥ 0 share a part: ``u = √c·x + √(1−c)·y``, ``v = √c·x + √(1−c)·y'``. So

    P(c) = E f(u)f(v) = E_x g(x)²,          g(x) = E_y f(√c·x + √(1−c)·y)
    P'(c) = E f'(u)f'(v) = E_x h(x)²/(1−c),  h(x) = E_y y·f(√c·x + √(1−c)·y)    (Stein's lemma)

and for c < 0 with |c|, ``g(x)·g(−x)`` and ``h(x)·h(−x)``. The slope needs no derivative of f, and the outer integrand
is smooth where f has kinks; the inner panels are cut at the kinks for each x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fanin.gains.quadrature import Array, ArrayFunction, composite_rule, density, grid, integrate, resolve

_REACH = 9.0
_WIDTH = 1.5
_CHUNK = 1_000_000
_NEARLY_ONE = 1e-12


class PairExpectation(NamedTuple):
    """``E f(u)f(v)`` and its derivative by the correlation, ``E f'(u)f'(v)``."""

    value: float
    slope: float


def pair_expectation(
    function: ArrayFunction, correlation: float, kinks: Sequence[float] = (), tolerance: float = 1e-11
) -> PairExpectation:
    """``E f(u)f(v)`` for standard Gaussians u and v of a given correlation, and its slope.

    Args:
        function: f, element by element.
        correlation: in [−1, 1].
        kinks: where f is not smooth.
        tolerance: of the search for features of f that the regular panels miss.

    For ReLU the slope is (π − arccos c)/2π (Cho & Saul 2009):

    >>> pair = pair_expectation(lambda x: np.maximum(x, 0.0), 0.5, kinks=[0.0])
    >>> round(pair.slope - (math.pi - math.acos(0.5)) / (2 * math.pi), 9)
    0.0
    """
    if 1 - abs(correlation) < _NEARLY_ONE:
        return _fully_correlated(function, correlation > 0, kinks, tolerance)
    shared, own = math.sqrt(abs(correlation)), math.sqrt(1 - abs(correlation))
    features = _features(function, kinks, tolerance)
    x, weights = composite_rule(_outer_edges(features, kinks, shared, own))
    weights = weights * density(x)
    smoothed, tilted = _inner(function, x, features, shared, own)
    if correlation < 0:
        # The outer grid is not symmetric when the kinks are not.
        mirrored, mirrored_tilt = _inner(function, -x, features, shared, own)
    else:
        mirrored, mirrored_tilt = smoothed, tilted
    return PairExpectation(
        float(np.sum(weights * smoothed * mirrored)), float(np.sum(weights * tilted * mirrored_tilt)) / own**2
    )


def _fully_correlated(
    function: ArrayFunction, same_sign: bool, kinks: Sequence[float], tolerance: float
) -> PairExpectation:
    """At c = 1 the moments of one Gaussian; at c = −1 those of the even part less those of the odd."""
    if same_sign:
        whole = integrate(function, kinks, tolerance)
        return PairExpectation(whole.second, whole.derivative_second)
    both = [*kinks, *(-kink for kink in kinks)]
    even = integrate(lambda z: 0.5 * (function(z) + function(-z)), both, tolerance)
    odd = integrate(lambda z: 0.5 * (function(z) - function(-z)), both, tolerance)
    return PairExpectation(even.second - odd.second, odd.derivative_second - even.derivative_second)


def _features(function: ArrayFunction, kinks: Sequence[float], tolerance: float) -> Array:
    """Kinks, and the panel edges that adaptive halving puts around sharp but smooth places."""
    panels = resolve(function, grid(kinks, _REACH, _WIDTH), tolerance)
    inside = [kink for kink in kinks if abs(kink) < _REACH]
    return np.union1d(np.setdiff1d(panels.left, grid((), _REACH, _WIDTH)), np.asarray(inside, dtype=np.float64))


def _outer_edges(features: Array, kinks: Sequence[float], shared: float, own: float) -> Array:
    """Regular panels, cut where the smoothed function is sharp: about the kinks, on the scale of the smoothing."""
    if shared == 0.0:
        return grid((), _REACH, _WIDTH)
    blur = own / shared
    steps = blur * np.array([-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0])
    near = np.add.outer(np.asarray(kinks, dtype=np.float64) / shared, steps).ravel()
    return grid([*(features / shared), *near], _REACH, _WIDTH)


def _inner(function: ArrayFunction, x: Array, features: Array, shared: float, own: float) -> tuple[Array, Array]:
    """``E_y f(shared·x + own·y)`` and ``E_y y·f(…)`` for each x."""
    regular = grid((), _REACH, _WIDTH)
    per_row = 16 * (regular.size + features.size)
    rows = max(1, _CHUNK // per_row)
    smoothed, tilted = np.empty_like(x), np.empty_like(x)
    for start in range(0, x.size, rows):
        part = slice(start, start + rows)
        centre = shared * x[part, None]
        edges = regular[None, :]
        if features.size:
            cuts = np.clip((features - centre) / own, -_REACH, _REACH)
            edges = np.sort(np.concatenate([np.broadcast_to(regular, (cuts.shape[0], regular.size)), cuts], axis=1))
        y, weights = composite_rule(edges)
        weights = weights * density(y)
        values = function((centre + own * y).ravel()).reshape(centre.shape[0], -1)
        smoothed[part] = np.sum(weights * values, axis=1)
        tilted[part] = np.sum(weights * y * values, axis=1)
    return smoothed, tilted
