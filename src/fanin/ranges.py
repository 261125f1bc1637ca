"""Whether a dtype holds what a scheme draws."""

from __future__ import annotations

import torch

from fanin import sampling
from fanin.errors import SchemeError, compose
from fanin.sampling.distributions import resolve
from fanin.sampling.polynomials import DOUBLE, SINGLE
from fanin.schemes import DeltaOrthogonal, Identity, Keep, Scheme
from fanin.sites import Site, law_of, parts

FARTHEST = 6.8
"""How many standard deviations from the mean a normal value lies at most, in single precision."""


def require_range(scheme: Scheme, site: Site, dtype: torch.dtype) -> None:
    """Raise unless every value that a fitting scheme can draw is a finite number of this dtype.

    Raises:
        SchemeError: the largest values would be written as infinite or, where a dtype has no infinity, as not a number.

    >>> from fanin.fans import Axes
    >>> from fanin.schemes import Normal
    >>> require_range(Normal(0.02), Site((8, 8), Axes(), "w"), torch.float16)
    """
    if isinstance(scheme, Keep):
        return
    most = torch.finfo(dtype).max
    for part, piece in parts(scheme, site):
        reach = _reach(part, piece)
        if not reach <= most:
            name = str(dtype).removeprefix("torch.")
            raise SchemeError(
                compose(
                    f"{part.label} for {site.name!r}, with values up to {reach:.3g}",
                    f"values that {name} holds, up to {most:.3g}",
                    "what is beyond would be written as infinite, or as not a number",
                    f"plan.scale({site.name!r}, {most / reach / 10:.0e}), or a model in a wider dtype",
                )
            )
        law = _law(part, piece)
        if law is not None and not isinstance(law, sampling.Constant):
            # A double takes its own numbers; all others are computed in single precision.
            resolve(law, DOUBLE if dtype in (torch.float64, torch.complex128) else SINGLE)


def _reach(scheme: Scheme, site: Site) -> float:
    """The largest magnitude that a scheme draws."""
    if isinstance(scheme, Identity | DeltaOrthogonal):
        return abs(scheme.gain)
    law = _law(scheme, site)
    if isinstance(law, sampling.Constant):
        return abs(law.value)
    if isinstance(law, sampling.Uniform):
        return max(abs(law.low), abs(law.high))
    if isinstance(law, sampling.TruncatedNormal):
        return min(max(abs(law.low), abs(law.high)), abs(law.mean) + FARTHEST * law.std)
    mean, std = scheme.expected(site.axes.fans(site.shape), site.shape, site.axes)
    return abs(mean) + FARTHEST * std


def _law(scheme: Scheme, site: Site) -> sampling.Law | None:
    """The law of each element; None for a matrix-wide scheme."""
    return law_of(scheme.resolve(site.axes.fans(site.shape))) if scheme.elementwise else None
