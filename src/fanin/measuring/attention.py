"""The entropy of attention, against that of uniform attention to the same keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

_MASKED = -1e8
"""Scores below this come from a mask: finite masks use the dtype's lowest number, or -1e9."""

_MOST_SAMPLES = 4
_MOST_QUERIES = 32


@dataclass(frozen=True, slots=True)
class Entropy:
    """Relative entropies, in [0, 1]: mean over all queries, and of the lowest and the highest head; and what made them.

    ``score_std`` is the standard deviation over the keys that a query sees, RMS over queries.
    """

    mean: float
    low: float
    high: float
    keys: float
    score_std: float


def entropy_of_scores(scores: torch.Tensor) -> Entropy | None:
    """Of the softmax over the last axis of ``([samples,] [heads,] queries, keys)`` scores, masks included.

    None where no query sees more than one key.

    >>> entropy_of_scores(torch.zeros(1, 1, 2, 4))
    Entropy(mean=1.0, low=1.0, high=1.0, keys=4.0, score_std=0.0)
    """
    if scores.ndim < 2:
        return None
    if scores.ndim == 2:
        scores = scores[None, None]
    elif scores.ndim == 3:
        scores = scores[:, None]
    elif scores.ndim > 4:
        scores = scores.flatten(0, scores.ndim - 4)
    chosen = scores[_some(scores.shape[0], _MOST_SAMPLES)][:, :, _some(scores.shape[2], _MOST_QUERIES)]
    return _entropy(chosen.float())


def entropy_of_fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Entropy | None:
    """Of a fused attention, whose scores are never formed: from some of its queries. Arguments as torch's."""
    if query.ndim < 2 or query.numel() == 0:
        return None
    if query.ndim == 2:  # one sequence without a batch
        query, key, value = query[None], key[None], value[None]
    queries = query.shape[-2]
    picked = torch.arange(queries, device=query.device)[_some(queries, _MOST_QUERIES)]
    groups = query.shape[-3] // key.shape[-3] if enable_gqa and query.ndim > 3 else 1
    full = (*query.shape[:-1], key.shape[-2])
    mask = None if attn_mask is None else attn_mask.expand(full)[..., picked, :]
    batch = _some(query.shape[0], _MOST_SAMPLES)
    some, keys = query[batch][..., picked, :].float(), key[batch].float()
    if groups > 1:
        keys = keys.repeat_interleave(groups, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = some @ keys.transpose(-2, -1) * factor
    if mask is not None:
        mask = mask[batch]
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()
    if is_causal:
        later = torch.arange(key.shape[-2], device=query.device)[None] > picked[:, None]
        scores = scores.masked_fill(later, -math.inf)
    return entropy_of_scores(scores)


def _some(length: int, most: int) -> Any:
    """An even choice of at most so many, the last one included: a causal first query has nothing to choose from."""
    step = max(math.ceil(length / most), 1)
    return slice((length - 1) % step, None, step)


def _entropy(scores: torch.Tensor) -> Entropy | None:
    visible = scores > _MASKED
    keys = visible.sum(-1)
    counted = keys > 1
    if not counted.any():
        return None
    logs = torch.log_softmax(scores.masked_fill(~visible, -math.inf), -1)
    terms = logs.exp() * torch.where(visible, logs, torch.zeros_like(logs))
    relative = torch.where(counted, -torch.nan_to_num(terms).sum(-1) / keys.clamp_min(2).log(), 0.0).clamp(0.0, 1.0)
    heads = relative.sum((0, 2)) / counted.sum((0, 2)).clamp_min(1)
    seen = heads[counted.any(0).any(-1)]
    mean = (relative.sum() / counted.sum()).item()
    known = scores.masked_fill(~visible, 0.0)
    centre = known.sum(-1, keepdim=True) / keys.clamp_min(1)[..., None]
    squares = (known - centre).masked_fill(~visible, 0.0).square().sum(-1) / keys.clamp_min(1)
    score_std = math.sqrt(torch.nan_to_num(squares[counted]).mean().item())
    return Entropy(mean, seen.min().item(), seen.max().item(), keys[counted].float().mean().item(), score_std)
