"""Deep plain nets of rectifiers, which start as linear maps where their weights are mirrored.

Random layers of rectifiers lose what tells samples apart: after 30 of them all samples look alike, and their gradients
no longer do (Balduzzi et al. 2017). With mirrored weights (`LooksLinear`) every activation is met by its mirror image,
and φ(z) − φ(−z) is z itself for ReLU, GELU, SiLU, hardswish and softplus, a multiple of it for leaky ones, and nearly
so for mish. The net then hands on every difference and every gradient, and bends as it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from fanin import gains
from fanin.errors import FaninError
from fanin.gains.quadrature import integrate
from fanin.graph import ParameterNode
from fanin.recipes.following import LINEAR

UNEVEN = 0.2
"""By how much the slope of the odd part may vary: mish's falls from 1.2 to 1, ELU's from 2 to 1."""
_POINTS = np.geomspace(1e-2, 4.0, 50)
_LEAKY = ("leaky_relu", "prelu", "rrelu")


def common_slope(nodes: Iterable[ParameterNode], *, stem: bool = False) -> float | None:
    """The c of φ(z) − φ(−z) ≈ c·z in a traced net; None where an activation has no such c, or weights have groups.

    Of several activations it is the geometric mean. With a stem, first layers may be linear. Where nothing was
    traced, what a weight takes in is not known.
    """
    slopes = set()
    for node in nodes:
        if not node.is_weight:
            continue
        if node.axes.groups > 1 or node.axes.blocks or not node.weight_depth:
            return None
        if not (node.output or (stem and is_linear_stem(node))):
            slopes.add(slope_behind(node))
    known = [math.log(slope) for slope in slopes if slope]
    return math.exp(sum(known) / len(known)) if known and len(known) == len(slopes) else None


def is_linear_stem(node: ParameterNode) -> bool:
    """Whether a weight is a first layer that nothing bends, as a projection of the inputs."""
    return node.is_weight and node.weight_depth == 1 and node.activation == "none" and not node.output


def slope_behind(node: ParameterNode) -> float | None:
    """The c of the activation that follows a weight; None where it has none."""
    if node.activation is None or node.activation in LINEAR:
        return None
    if node.captured is None:
        return odd_slope(node.activation)
    # A leaky rectifier of another slope than the usual: E[φ(z)²] = (1 + slope²) / 2.
    return 1 + math.sqrt(max(2 * node.captured.second_moment - 1, 0)) if node.captured.name in _LEAKY else None


@lru_cache(maxsize=256)
def odd_slope(activation: str) -> float | None:
    """The c of φ(z) − φ(−z) ≈ c·z: √E[(φ(z) − φ(−z))²]; None where the odd part is not nearly linear.

    >>> round(odd_slope("gelu"), 4), round(odd_slope("leaky_relu"), 4), odd_slope("tanh"), odd_slope("elu")
    (1.0, 1.01, None, None)
    """
    try:
        function = gains.resolve_activation(activation)
    except FaninError:
        return None
    if function.gated:
        return None
    slopes = (function(_POINTS) - function(-_POINTS)) / _POINTS
    if slopes.min() <= 0 or slopes.max() - slopes.min() > UNEVEN * slopes.max():
        return None
    return math.sqrt(integrate(lambda z: function(z) - function(-z)).second)
