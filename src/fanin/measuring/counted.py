"""What a norm has counted of former batches, against the batch at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fanin.measuring.statistics import MOST_UNITS, sample_units

_TAKES = ("input", "running_mean", "running_var")

DOUBTLESS = 1e5
"""Of one channel alone: in evaluation it puts out 10⁻⁵ of what it should. That many times less than the batches that
were counted, no batch has by chance."""


@dataclass(frozen=True, slots=True)
class Counted:
    """How far the running statistics are from anything that averaging could have made of their start and this batch.

    ``spread`` is the running standard deviation over the nearest plausible one, ``shift`` the distance of the running
    mean from the nearest plausible one in running standard deviations; both of the median channel, or the spread of the
    worst one where that is beyond every doubt.
    """

    spread: float
    shift: float


def counted_by(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Counted | None:
    """Of a call of ``batch_norm`` or ``instance_norm``, before it updates what it counts; None where it counts nothing.

    Running averages start at mean 0 and variance 1 and move towards the batches': what lies between those is plausible.

    >>> x = torch.tensor([[-1.0], [1.0]])
    >>> counted_by("batch_norm", (x, torch.zeros(1), torch.full((1,), 400.0)), {})
    Counted(spread=20.0, shift=0.0)
    """
    if name not in ("batch_norm", "instance_norm"):
        return None
    given = dict(zip(_TAKES, args, strict=False)) | kwargs
    values, mean, variance = (given.get(key) for key in _TAKES)
    if not (isinstance(values, torch.Tensor) and isinstance(mean, torch.Tensor) and isinstance(variance, torch.Tensor)):
        return None
    if values.ndim < 2 or not values.numel() or values.shape[1] != variance.numel():
        return None
    with torch.no_grad(), torch.autocast(values.device.type, enabled=False):
        chosen = slice(None, None, math.ceil(variance.numel() / MOST_UNITS))  # a sample keeps all of these
        sample = sample_units(values.detach()[:, chosen], 1)
        return _compared(sample.reshape(-1, sample.shape[-1]), mean[chosen].float(), variance[chosen].float())


def _compared(rows: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> Counted | None:
    if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()) or bool((variance <= 0).any()):
        return None  # a fault of its own
    centre, spread = rows.mean(0), rows.var(0, correction=0)
    one = torch.ones_like(spread)
    nearest = variance.clamp(torch.minimum(spread, one), torch.maximum(spread, one))
    zero = torch.zeros_like(centre)
    aside = (mean - mean.clamp(torch.minimum(centre, zero), torch.maximum(centre, zero))).abs()
    tiny = torch.finfo(variance.dtype).tiny
    ratio = (variance / nearest.clamp_min(tiny)).sqrt()
    worst = float(ratio.max())
    return Counted(worst if worst > DOUBTLESS else float(ratio.median()), float((aside / variance.sqrt()).median()))
