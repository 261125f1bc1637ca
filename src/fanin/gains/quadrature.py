"""Gaussian expectations of a function of one variable, and of the square of its derivative.

The line is cut into panels, each with 16 Gauss–Legendre nodes. A panel on which the function is not yet a polynomial
to working precision (its last Legendre coefficients are not negligible) is halved, again and again, so kinks and
jumps end up in panels too narrow to matter. The derivative is that of each panel's interpolating polynomial: it needs
no step size and never looks across a kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanin.errors import SchemeError, compose

Array = npt.NDArray[np.float64]
ArrayFunction = Callable[[Array], Array]

REACH = 12.0
"""Standard deviations on each side: what lies beyond has probability 4e-33."""

_ORDER = 16
_WIDTH = 0.5
_NARROWEST = 1e-11
_MOST_PANELS = 8192
_TOLERANCE = 1e-11
_KINK_WIDTH = 1e-4

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_ORDER)
_VANDERMONDE = np.polynomial.legendre.legvander(_NODES, _ORDER - 1)
_TO_COEFFICIENTS: Array = (np.arange(_ORDER)[:, None] + 0.5) * _VANDERMONDE.T * _WEIGHTS
_DERIVATIVE: Array = (
    np.polynomial.legendre.legval(_NODES, np.polynomial.legendre.legder(np.eye(_ORDER), axis=0)).T @ _TO_COEFFICIENTS
)
_DERIVATIVE -= np.diag(_DERIVATIVE.sum(axis=1))  # a constant has no slope, to the last bit


class Integrals(NamedTuple):
    """Expectations over z ~ N(0, 1) of f(z), f(z)², z²f(z)² and f'(z)²."""

    mean: float
    second: float
    weighted_second: float
    derivative_second: float


class Panels(NamedTuple):
    """A function on panels: its values at the nodes of each, and where halving had to stop."""

    left: Array
    width: Array
    values: Array
    rough: npt.NDArray[np.bool_]

    def nodes(self) -> Array:
        """The points at which `values` were taken, one row a panel."""
        return _nodes(self.left, self.width)


def density(z: Array) -> Array:
    """The density of N(0, 1)."""
    weight: Array = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return weight


def composite_rule(edges: Array) -> tuple[Array, Array]:
    """Gauss–Legendre nodes and weights on consecutive panels.

    Args:
        edges: ``(..., panels + 1)``, ascending along the last axis; a panel may have zero width.

    Returns:
        nodes and weights, each ``(..., panels · 16)``.
    """
    left, width = edges[..., :-1], np.diff(edges, axis=-1)
    shape = (*edges.shape[:-1], -1)
    weights = 0.5 * width[..., None] * _WEIGHTS
    return _nodes(left, width).reshape(shape), weights.reshape(shape)


def grid(breaks: Sequence[float], reach: float = REACH, width: float = _WIDTH) -> Array:
    """Panel edges that cover ``[-reach, reach]`` in steps of at most `width` and contain every break inside.

    >>> grid([0.2], reach=1.0, width=1.0).tolist()
    [-1.0, 0.0, 0.2, 1.0]
    """
    regular = np.linspace(-reach, reach, 2 * math.ceil(reach / width) + 1)
    inside = [point for point in breaks if -reach < point < reach]
    return np.unique(np.concatenate([regular, np.asarray(inside, dtype=np.float64)]))


def resolve(function: ArrayFunction, edges: Array, tolerance: float = _TOLERANCE) -> Panels:
    """Halve panels until the function is a polynomial on each, as far as the normal density lets it be seen.

    Args:
        function: of an array, element by element.
        edges: ascending panel edges, as from `grid`.
        tolerance: how much the last Legendre coefficients of a panel may change E f'², relative to E f².

    Raises:
        SchemeError: the function is nowhere smooth, or has thousands of kinks.
    """
    left, width = edges[:-1], np.diff(edges)
    rms = _rough_rms(function, left, width)
    done: list[Panels] = []
    while left.size:
        if left.size > _MOST_PANELS:
            raise SchemeError(
                compose(
                    f"a function that {_MOST_PANELS} panels of {_ORDER} nodes do not resolve",
                    "a piecewise smooth activation with at most some dozens of kinks",
                    why="its Gaussian moments are computed by quadrature",
                    instead="fanin.gains.from_callable(f, kinks=[...]) if you know where the kinks are",
                )
            )
        nodes = _nodes(left, width)
        values = _evaluate(function, nodes)
        smooth = _visible_tail(values, nodes, rms) <= tolerance * rms * rms
        narrow = width < _NARROWEST
        settled = smooth | narrow
        done.append(Panels(left[settled], width[settled], values[settled], (narrow & ~smooth)[settled]))
        half = 0.5 * width[~settled]
        left, width = np.concatenate([left[~settled], left[~settled] + half]), np.concatenate([half, half])
    return Panels(*(np.concatenate(parts) for parts in zip(*done, strict=True)))


def integrate(function: ArrayFunction, breaks: Sequence[float] = (), tolerance: float = _TOLERANCE) -> Integrals:
    """The four Gaussian integrals that a gain needs.

    ``E f'²`` is taken almost everywhere: at a jump, where it does not exist, the jump is left out, as automatic
    differentiation leaves it out.

    >>> round(integrate(np.tanh).second, 6)
    0.394294
    """
    panels = resolve(function, grid(breaks), tolerance)
    z = panels.nodes()
    weights = 0.5 * panels.width[:, None] * _WEIGHTS * density(z)
    slopes = panels.values @ _DERIVATIVE.T * (2.0 / panels.width)[:, None]
    slopes[panels.rough] = 0.0
    squares = panels.values**2
    integrals = (panels.values, squares, z * z * squares, slopes**2)
    return Integrals(*(float(np.sum(weights * values)) for values in integrals))


def find_kinks(function: ArrayFunction, tolerance: float = _TOLERANCE) -> tuple[tuple[float, ...], bool]:
    """Where in ``[-12, 12]`` a function is not smooth, and whether it is continuous there.

    >>> find_kinks(lambda x: np.clip(x, -1.0, 2.0))
    ((-1.0, 2.0), True)
    """
    # Shifted edges: a kink that falls on an edge, as one at 0 would, is never seen.
    edges = np.concatenate([[-REACH], grid(())[1:-1] + 0.1234567, [REACH]])
    panels = resolve(function, edges, tolerance)
    narrow = panels.width < _KINK_WIDTH
    order = np.argsort(panels.left[narrow])
    centres = (panels.left + 0.5 * panels.width)[narrow][order]
    widths = panels.width[narrow][order]
    if not centres.size:
        return (), True
    jumps = panels.rough & (np.ptp(panels.values, axis=1) > 1e-6)
    clusters = np.split(np.arange(centres.size), np.flatnonzero(np.diff(centres) > 2 * _KINK_WIDTH) + 1)
    kinks = (centres[cluster][np.argmin(widths[cluster])] for cluster in clusters)
    return tuple(_neat(float(kink)) for kink in kinks), not bool(jumps.any())


def _neat(point: float) -> float:
    """A kink is found to 1e-5 or better; people put them at short decimals."""
    short = round(point, 3)
    return short + 0.0 if abs(point - short) < 2e-5 else point


def _nodes(left: Array, width: Array) -> Array:
    nodes: Array = left[..., None] + width[..., None] * (0.5 * (_NODES + 1.0))
    return nodes


def _rough_rms(function: ArrayFunction, left: Array, width: Array) -> float:
    """The scale that makes tolerances relative: 1000·f needs the panels that f needs."""
    nodes = _nodes(left, width)
    weights = 0.5 * width[:, None] * _WEIGHTS * density(nodes)
    return math.sqrt(float(np.sum(weights * _evaluate(function, nodes) ** 2)))


def _visible_tail(values: Array, nodes: Array, rms: float) -> Array:
    """What the last two Legendre coefficients of each panel can change in ``E f'²``."""
    coefficients = np.abs(values @ _TO_COEFFICIENTS.T)
    tail = np.maximum(coefficients[:, -1], coefficients[:, -2])
    scale = rms + np.abs(values).max(axis=1)
    nearest = np.where(np.sign(nodes[:, 0]) == np.sign(nodes[:, -1]), np.abs(nodes).min(axis=1), 0.0)
    visible: Array = tail * scale * density(nearest) * _ORDER**2
    return visible


def _evaluate(function: ArrayFunction, nodes: Array) -> Array:
    with np.errstate(all="ignore"):
        values = np.asarray(function(nodes.ravel()), dtype=np.float64)
    if not np.isfinite(values).all():
        where = float(nodes.ravel()[~np.isfinite(values)][0])
        raise SchemeError(
            compose(
                f"an activation that is not finite at {where:.4g}",
                f"finite values on [-{REACH:g}, {REACH:g}] standard deviations",
                why="its Gaussian moments would not exist or could not be computed",
            )
        )
    return values.reshape(nodes.shape)
