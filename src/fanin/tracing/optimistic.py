"""Answers for questions that fake tensors cannot answer: sizes and truths that depend on data.

A model that asks ``if mask.any()`` or takes the boxes above a threshold is run down one plausible path. Sizes are
capped, so that loops over detections stay short.
"""

from __future__ import annotations

import math
from typing import Any

import torch

QUESTIONS = frozenset({"item", "_local_scalar_dense", "is_nonzero", "equal", "allclose"})
"""Operations that turn a tensor into a Python number."""

SIZED = frozenset(
    {"nonzero", "nonzero_numpy", "masked_select", "unique", "_unique", "_unique2", "unique_dim", "unique_consecutive"}
    | {"torchvision::nms", "where", "index", "repeat_interleave", "bincount", "argwhere", "expand"}
    | {"split_with_sizes"}
)
"""Operations whose result has a size that depends on data, in some or all of their forms."""

VIEWS = frozenset({"expand", "split_with_sizes"})
"""Those of them that give views, with sizes that were guessed before."""

CAP = 4


class Guesses:
    """The answers of one run. Every second truth about the same kind of question is the other one after many."""

    def __init__(self) -> None:
        self._asked = 0

    def answer(self, target: str, named: dict[str, Any]) -> Any:
        """A plausible number: true, one, and after hundreds of questions false, so that no loop is endless."""
        self._asked += 1
        positive = self._asked <= 512
        if target in ("is_nonzero", "equal", "allclose"):
            return positive
        dtype = named["self"].dtype
        if dtype is torch.bool:
            return positive
        return int(positive) if not dtype.is_floating_point else float(positive)

    def sized(self, func: Any, target: str, named: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """The result of an operation whose size depends on data, with a small size."""
        given: Any = named.get("self", named.get("dets", named.get("condition")))
        if target in ("nonzero", "argwhere"):
            return _integers(given, _few(given), given.ndim)
        if target in ("nonzero_numpy",) or (target == "where" and "input" not in named and "self" not in named):
            return [_integers(given, _few(given)) for _ in range(max(given.ndim, 1))]
        if target == "masked_select":
            return torch.empty(_few(given), dtype=given.dtype, device=given.device)
        if target == "torchvision::nms":
            return _integers(given, min(CAP, given.shape[0]))
        if target == "bincount":
            return _integers(given, max(CAP, named.get("minlength", 0)))
        if target.startswith(("unique", "_unique")):
            return _unique(given, target, named)
        if target == "index":
            return _index(func, named)
        if target == "repeat_interleave":
            return _repeat(func, named, args, kwargs)
        if target == "expand":
            return _expanded(func, named)
        if target == "split_with_sizes":
            return func(given, _fitting(named["split_sizes"], given.shape[named.get("dim", 0)]), named.get("dim", 0))
        return func(*args, **kwargs)


def _few(tensor: torch.Tensor) -> int:
    return min(CAP, math.prod(tensor.shape))


def _integers(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=like.device)


def _unique(given: torch.Tensor, target: str, named: dict[str, Any]) -> Any:
    if target == "unique_dim":
        dim = named.get("dim", 0)
        shape = [*given.shape]
        shape[dim] = min(CAP, shape[dim])
        values, length = torch.empty(shape, dtype=given.dtype, device=given.device), given.shape[dim]
        return values, _integers(given, length), _integers(given, shape[dim])
    values = torch.empty(_few(given), dtype=given.dtype, device=given.device)
    parts = (values, _integers(given, *given.shape), _integers(given, _few(given)))
    return parts[:2] if target == "_unique" else parts


def _index(func: Any, named: dict[str, Any]) -> Any:
    """A boolean mask as an index keeps a few of the places that it covers."""
    indices: list[torch.Tensor | None] = []
    for index in named["indices"]:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            indices += [_integers(index, _few(index)) for _ in range(index.ndim)]
        else:
            indices.append(index)
    return func(named["self"], indices)


def _fitting(sizes: list[int], total: int) -> list[int]:
    """Sizes as given where they add up; as even as can be where they were guessed."""
    if sum(sizes) == total:
        return sizes
    return [total // len(sizes) + (place < total % len(sizes)) for place in range(len(sizes))]


def _expanded(func: Any, named: dict[str, Any]) -> Any:
    """Guessed bounds of a slice need not fit what is written there."""
    try:
        return func(**named)
    except RuntimeError:
        given, size = named["self"], list(named["size"])
        if -1 in size:
            raise
        return torch.empty(size, dtype=given.dtype, device=given.device)


def _repeat(func: Any, named: dict[str, Any], args: Any, kwargs: Any) -> Any:
    given, repeats = named.get("self"), named.get("repeats")
    if not isinstance(repeats, torch.Tensor) or named.get("output_size") is not None:
        return func(*args, **kwargs)
    if given is None:
        return _integers(repeats, repeats.shape[0])
    return given.clone()
