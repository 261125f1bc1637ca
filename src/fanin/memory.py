"""Large pages for the memory of new weights."""

from __future__ import annotations

import ctypes
import functools
import mmap
import time
from collections.abc import Callable
from typing import Any

import torch

PAGE = 2**21
"""Bytes of a large page on most systems."""
LARGE = 4 * PAGE
"""Bytes of the smallest tensor that is worth a question to the system."""
SLOW = 1e-3
"""Seconds after which a large page has come late. Where this was measured it took 0.2 ms, and 4 ms from a host."""
REST = 100
"""For how many times as long as the late page took nothing more is asked, so that asking costs a hundredth at most."""

_asked_again_at = 0.0


def prefer_large_pages(tensor: torch.Tensor) -> None:
    """Let the system back a tensor's memory by large pages, where that is quicker; before anything is written there.

    A system hands out memory page by page when it is first written, which for pages of 4 KiB takes longer than drawing
    the values that go there. Linux leaves larger pages to programs that ask for them, unless its administrator decided
    otherwise. A virtual machine may have to fetch them from its host, piece by piece; so the first is timed, and if it
    is late, the rest are small. Where the system has none, or the tensor is no plain one on the CPU, nothing happens.
    """
    global _asked_again_at
    if tensor.device.type != "cpu" or type(tensor) is not torch.Tensor:
        return
    storage, advise = tensor.untyped_storage(), _advise()
    begin = time.perf_counter()
    if advise is None or storage.nbytes() < LARGE or begin < _asked_again_at:
        return
    first = -(-storage.data_ptr() // PAGE) * PAGE
    size = (storage.data_ptr() + storage.nbytes() - first) // PAGE * PAGE
    advise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)  # a refusal changes nothing
    ctypes.memset(first, 0, 1)
    taken = time.perf_counter() - begin
    if taken > SLOW:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_NOHUGEPAGE)
        _asked_again_at = begin + REST * taken


@functools.cache
def _advise() -> Callable[..., Any] | None:
    """The system's `madvise`, or None where it has none that knows large pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
