"""Whether matrices that should be orthogonal are, which no mean and no standard deviation tells."""

from __future__ import annotations

import math

import torch

from fanin.matrices import centred_core, centred_scale, stack_of
from fanin.schemes import CentredOrthogonal, DeltaOrthogonal, LooksLinear, Orthogonal, ScaledOrthogonal, Scheme
from fanin.schemes.base import Matrix, matrix_of
from fanin.sites import Site

_ISOMETRIC = (Orthogonal, ScaledOrthogonal, CentredOrthogonal, DeltaOrthogonal, LooksLinear)

PROBES = 4
"""How many vectors each matrix is tried on. Two products a vector, so that a large matrix costs no more than a look."""


def stray(scheme: Scheme, site: Site, values: torch.Tensor) -> float:
    """How far values are from what an orthogonal scheme promises; 0 for any other scheme.

    With Q the matrix over its gain and x a vector of random signs along its shorter side: the largest
    ``‖Q Qᵀ x − x‖ / ‖x‖`` of all matrices in the weight. An r × c Gaussian matrix strays by about √(r/c).

    Args:
        scheme: of one block, with the fans put in.
        site: that block, as a weight of its own.
        values: all of it.

    >>> import fanin
    >>> from fanin.fans import Axes
    >>> site = Site((8, 16), Axes(), "w")
    >>> drawn = fanin.fill_(torch.empty(8, 16), Orthogonal(2.0))
    >>> round(stray(Orthogonal(2.0), site, drawn), 3), round(stray(Orthogonal(1.0), site, drawn), 3)
    (0.0, 3.0)
    """
    if not isinstance(scheme, _ISOMETRIC) or not scheme.gain:
        return 0.0
    matrix = matrix_of(site.axes.fans(site.shape), site.shape, site.axes)
    flat = _core(scheme, matrix, stack_of(values, site))
    flat = flat.to(torch.complex128 if flat.is_complex() else torch.float64) / _gain(scheme, site, matrix)
    short = flat if flat.shape[1] <= flat.shape[2] else flat.mT
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (short.shape[1], PROBES), generator=generator).to(short) * 2 - 1
    strayed = short @ (short.mH @ signs) - signs
    return float(strayed.abs().square().mean(1).sqrt().max()) if strayed.numel() else 0.0


def _core(scheme: Scheme, matrix: Matrix, stack: torch.Tensor) -> torch.Tensor:
    """The part of each matrix that is orthogonal, with the kernel flattened as the scheme does."""
    if isinstance(scheme, DeltaOrthogonal):
        return stack[..., matrix.kernel // 2]
    if isinstance(scheme, LooksLinear):
        half = scheme.half(matrix)
        stack = stack[:, : half.rows, : half.columns]
    flat = stack.transpose(2, 3).flatten(1, 2) if matrix.transposed else stack.flatten(2)
    return centred_core(flat) if isinstance(scheme, CentredOrthogonal) else flat


def _gain(scheme: Scheme, site: Site, matrix: Matrix) -> float:
    if isinstance(scheme, DeltaOrthogonal):
        return abs(scheme.gain)
    core = scheme.half(matrix) if isinstance(scheme, LooksLinear) else matrix
    entry = scheme.expected(site.axes.fans(site.shape), site.shape, site.axes).std
    if isinstance(scheme, CentredOrthogonal):
        return entry * centred_scale(matrix)
    return entry * math.sqrt(max(core.flat))
