"""Threads that share out pieces of work which release the GIL: as many as torch uses."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Piece = TypeVar("Piece")


class _Shared(Generic[Piece]):
    """An iterator that several threads may take from."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = iter(pieces)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._lock:
            return next(self._pieces)

    def stop(self) -> None:
        """Give out no more."""
        with self._lock:
            self._pieces = iter(())


_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _forget_pools() -> None:
    """A forked child inherits the pools without their threads, and perhaps a lock that nobody will release."""
    global _pools_lock
    _pools.clear()
    _pools_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def share(work: Callable[[Piece], None], pieces: Iterable[Piece], helpers: bool = True) -> None:
    """Do the work for every piece, in this thread and in `torch.get_num_threads() − 1` helpers.

    Pieces are taken one by one, so that an iterable that makes them as it goes holds few at a time.

    Args:
        work: must release the GIL to gain from it, and must not mind the order.
        pieces: what to call it with.
        helpers: False to do everything in this thread.

    Raises:
        Exception: whatever `work` raised; the other threads finish the piece they hold and take no more.
    """
    count = torch.get_num_threads() - 1 if helpers else 0
    queue = _Shared(pieces)

    def labour() -> None:
        try:
            for piece in queue:
                work(piece)
        except BaseException:
            queue.stop()
            raise

    futures = [_pool(count).submit(labour) for _ in range(count)]
    try:
        labour()
    finally:
        for future in futures:
            future.result()


def _pool(count: int) -> ThreadPoolExecutor:
    with _pools_lock:
        if count not in _pools:
            _pools[count] = ThreadPoolExecutor(count, thread_name_prefix="fanin")
        return _pools[count]
