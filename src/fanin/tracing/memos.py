"""What functions under ``functools.lru_cache`` keep of a run: tensors without data must not stay behind in them."""

from __future__ import annotations

import contextlib
import gc
import math
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from fanin.tracing import compatibility
from fanin.tracing.records import Run

_Remembering: Any = type(lru_cache(maxsize=1)(id))


@dataclass
class Memos:
    """How the run went that may have left something."""

    failed: bool = False


@dataclass
class _Found:
    """The functions that were found, and when."""

    functions: list[weakref.ref[Any]] = field(default_factory=list)
    time: float = -math.inf


_FOUND = _Found()
_RECENT = 1.0
"""Seconds in which nobody writes a new function."""


def _remembering(*, fresh: bool) -> list[Any]:
    if fresh or time.monotonic() - _FOUND.time > _RECENT:
        _FOUND.functions = [weakref.ref(thing) for thing in gc.get_objects() if type(thing) is _Remembering]
        _FOUND.time = time.monotonic()
    return [function for found in _FOUND.functions if (function := found()) is not None]


@contextlib.contextmanager
def without_fake_memos(run: Run) -> Iterator[Memos]:
    """Clear, at the end, the cache of every function that remembers a fake tensor of this run.

    Position tables and relative indices are often made once for each shape and cached: a model that runs for real
    afterwards, with the same shape, would get what the fake run left there. Functions are looked for among all objects,
    which may take 0.1 s, and so only where a tensor outlived its run; after one that failed, whose frames hold on to
    tensors, only where the last look was longer ago than the attempts at one model are apart.
    """
    memos = Memos()
    try:
        yield memos
    finally:
        if any(made() is not None for made in run.made):
            for function in _remembering(fresh=not memos.failed):
                if any(map(_is_fake, gc.get_referents(function))):
                    function.cache_clear()


def _is_fake(kept: object) -> bool:
    if isinstance(kept, tuple | list):
        return any(map(_is_fake, kept))
    if isinstance(kept, dict):
        return any(map(_is_fake, kept.values()))
    return isinstance(kept, torch.Tensor) and compatibility.is_fake(kept)
