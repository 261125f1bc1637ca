"""Numbers of tensors: exact where one pass gives them, from an even sample where more would be needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

SAMPLE = 16_384
"""Elements of a sample: enough for shares to within 0.004, few enough to be cheap beside the operation itself."""

MOST_UNITS = 512
_MOST_SAMPLES = 32
_SLOPE = 0.05
"""An activation is saturated where its slope is below this part of its largest."""
_NOTHING = 2.0**-23
"""ε of float32. A softplus is never zero; of one that is less, the slope is as small, and nothing passes."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What one pass over all values gives; over the finite ones where some are not."""

    mean: float
    rms: float
    max: float
    non_finite: float


def scale_of(values: torch.Tensor) -> Scale:
    """Mean, RMS and largest absolute value over everything.

    >>> scale_of(torch.tensor([3.0, -4.0, float("nan"), 0.0])).max
    4.0
    >>> round(scale_of(torch.tensor([3.0 + 4.0j, 3.0 - 4.0j])).rms, 3)  # of the absolute values
    5.0
    """
    if values.is_complex():
        parts = scale_of(real_parts(values))
        return Scale(parts.mean, parts.rms * math.sqrt(2), parts.max, parts.non_finite)
    count = values.numel()
    if not count:
        return Scale(0.0, 0.0, 0.0, 0.0)
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    total = values.sum(dtype=wide)
    norm = torch.linalg.vector_norm(values, dtype=wide)
    low, high = values.amin(), values.amax()  # aminmax is five times slower than both where strides are not plain
    found = torch.stack((total, norm, low.to(wide), high.to(wide))).tolist()
    if all(map(math.isfinite, found)):
        return Scale(found[0] / count, found[1] / math.sqrt(count), max(-found[2], found[3]), 0.0)
    return _finite_scale(values)


def real_parts(values: torch.Tensor) -> torch.Tensor:
    """Complex values as pairs of real ones along a new last axis; real values as they are."""
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def _finite_scale(values: torch.Tensor) -> Scale:
    finite = values[torch.isfinite(values)].double()
    share = 1 - finite.numel() / values.numel()
    if not finite.numel():
        return Scale(0.0, 0.0, 0.0, share)
    rms = torch.linalg.vector_norm(finite).item() / math.sqrt(finite.numel())
    return Scale(finite.mean().item(), rms, finite.abs().max().item(), share)


def sample_flat(values: torch.Tensor, most: int = SAMPLE) -> torch.Tensor:
    """At most so many values, evenly spaced over the first axes; in single precision."""
    return _thin(values, most).reshape(-1).to(_wide(values))


def zero_share(values: torch.Tensor) -> float:
    """The share of an even sample that is exactly 0."""
    sample = _thin(values, SAMPLE)
    return float((sample == 0).sum().item()) / max(sample.numel(), 1)


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _thin(values: torch.Tensor, most: int) -> torch.Tensor:
    """A strided view of at most about so many values: the longest axis is halved until they are few enough."""
    while values.numel() > most:
        axis = max(range(values.ndim), key=lambda index: values.shape[index])
        values = values[(slice(None),) * axis + (slice(None, None, 2),)]
    return values


def sample_units(values: torch.Tensor, axis: int) -> torch.Tensor:
    """An even sample with the unit axis last and the batch first: ``(samples, …, units)``.

    Every unit keeps at least as many values as `SAMPLE` allows; units are thinned first where there are many.
    """
    moved = values.movedim(axis, -1)
    if moved.ndim == 1:
        moved = moved[None]
    step = max(math.ceil(moved.shape[-1] / MOST_UNITS), 1)
    moved = moved[..., ::step]
    if moved.ndim > 2:
        moved = moved[:: max(math.ceil(moved.shape[0] / _MOST_SAMPLES), 1)]
    while moved.numel() > SAMPLE:
        # Positions are thinned before samples, of which there are fewer.
        inner = max(range(moved.ndim - 1), key=lambda index: moved.shape[index] if index else moved.shape[0] / 4)
        if moved.shape[inner] == 1:
            break
        moved = moved[(slice(None),) * inner + (slice(None, None, 2),)]
    return torch.nan_to_num(moved.to(_wide(values)).contiguous(), 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Units:
    """What the sample says about units."""

    offset: float  # as a share of the sample's RMS, which differs from that of the whole
    varying: float  # as such a share too; not by way of the offset, from which a small one cannot be told
    spread: float
    zero: float
    dead: float
    seen: int
    saturated: float | None = None
    stuck: float | None = None


def units_of(sample: torch.Tensor, activation: str = "") -> Units:
    """Shares and spreads over units, of a sample as `sample_units` takes it.

    >>> units_of(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).dead
    0.5
    """
    rows = sample.reshape(-1, sample.shape[-1])
    count = rows.shape[0]
    zeros = (rows == 0).sum(0)
    idle = (rows < _NOTHING).sum(0) if activation == "softplus" else zeros
    rms = rows.square().mean(0).sqrt()
    mean = rows.mean(0)
    whole = torch.linalg.vector_norm(rms).clamp_min(torch.finfo(rms.dtype).tiny)
    parts = [
        torch.linalg.vector_norm(mean) / whole,
        torch.linalg.vector_norm(rows - mean) / math.sqrt(count) / whole,
        rms.std(correction=0) / rms.mean().clamp_min(torch.finfo(rms.dtype).tiny),
        zeros.sum() / rows.numel(),
        (idle == count).sum() / zeros.numel(),
    ]
    saturation = SATURATED.get(activation)
    if saturation is not None:
        flat = saturation(rows)
        live = rows != 0 if activation == "sigmoid" else torch.ones_like(flat)  # exactly 0: a score masked by −∞
        parts += [(flat & live).sum() / live.sum().clamp_min(1), flat.all(0).sum() / zeros.numel()]
    offset, varying, spread, zero, dead, *flat_shares = torch.stack(parts).tolist()
    saturated, stuck = flat_shares if flat_shares else (None, None)
    return Units(offset, varying, spread, zero, dead, count, saturated, stuck)


def cosine_between(sample: torch.Tensor) -> float | None:
    """Mean cosine between the rows of a matrix, each a vector; None for fewer than two rows that are not zero.

    The mean over pairs is ``(‖Σ x̂‖² − n) / (n (n − 1))`` with ``x̂`` the normalised rows, so no pair is formed.

    >>> cosine_between(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    1.0
    """
    vectors = sample.reshape(sample.shape[0], -1)
    return _mean_cosine(vectors[None])


def cosine_within(sample: torch.Tensor) -> float | None:
    """Mean cosine between the positions of each sequence of a ``(samples, positions, units)`` sample."""
    return _mean_cosine(sample)


def _mean_cosine(groups: torch.Tensor) -> float | None:
    lengths = torch.linalg.vector_norm(groups, dim=-1, keepdim=True)
    alive = (lengths[..., 0] > 0).sum(1)
    directions = groups / lengths.clamp_min(torch.finfo(groups.dtype).tiny)
    total = directions.sum(1).square().sum(-1)
    pairs = alive * (alive - 1)
    kept = pairs > 0
    if not kept.any():
        return None
    cosine = float(((total - alive)[kept] / pairs[kept]).mean().item())
    return min(max(cosine, -1.0), 1.0)


def _above(limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda y: y >= limit


SATURATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # Slopes as functions of the output: 1 − y² for tanh, y(1 − y) for the logistic, (1 − |y|)² for softsign.
    "tanh": lambda y: 1 - y.square() < _SLOPE,
    "sigmoid": lambda y: y * (1 - y) < _SLOPE / 4,
    "softsign": lambda y: (1 - y.abs()).square() < _SLOPE,
    "hardtanh": lambda y: y.abs() >= 1,
    "hardsigmoid": lambda y: (y <= 0) | (y >= 1),
    "relu6": _above(6.0),
    "elu": lambda y: y < -(1 - _SLOPE),
    "selu": lambda y: y < -1.7580993408473766 * (1 - _SLOPE),
    "celu": lambda y: y < -(1 - _SLOPE),
}
"""Activation → where an output is saturated, for those whose range is bounded by more than zero."""
