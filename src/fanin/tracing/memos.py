"""What functions under ``functools.lru_cache`` keep of a run: tensors without data must not stay behind in them."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from fanin.tracing import compatibility

_Remembering: Any = type(lru_cache(maxsize=1)(id))
_known: tuple[int, list[weakref.ref[Any]]] = (-1, [])


@contextlib.contextmanager
def without_fake_memos() -> Iterator[None]:
    """Clear, at the end, the cache of every function that remembers a fake tensor of this run.

    Position tables and relative indices are often made once for each shape and cached: a model that runs for real
    afterwards, with the same shape, would get what the fake run left there.
    """
    before = {id(function): function.cache_info().misses for function in _remembering()}
    try:
        yield
    finally:
        for function in _remembering():
            learnt = function.cache_info().misses != before.get(id(function), 0)
            if learnt and any(map(_is_fake, gc.get_referents(function))):
                function.cache_clear()


def _is_fake(kept: object) -> bool:
    if isinstance(kept, tuple | list):
        return any(map(_is_fake, kept))
    if isinstance(kept, dict):
        return any(map(_is_fake, kept.values()))
    return isinstance(kept, torch.Tensor) and compatibility.is_fake(kept)


def _remembering() -> list[Any]:
    """The functions with a cache; looked for anew only when modules were imported: it takes 0.1 s."""
    global _known
    if _known[0] != len(sys.modules):
        found = [weakref.ref(thing) for thing in gc.get_objects() if type(thing) is _Remembering]
        _known = (len(sys.modules), found)
    return [function for reference in _known[1] if (function := reference()) is not None]
