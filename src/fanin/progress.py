"""Signs of life from what takes long, and none from what does not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from fanin.tables import load_rich

T = TypeVar("T")
PATIENCE = 2.0
"""Seconds after which a person wants to see that something is going on."""


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Iterate, with a bar on the terminal's standard error once it has taken two seconds."""
    if not sys.stderr.isatty():
        yield from items
        return
    load_rich()
    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task(label, total=len(items))
    shown = False
    try:
        for item in items:
            if not shown and time.monotonic() - started > PATIENCE:
                progress.start()
                shown = True
            yield item
            progress.advance(task)
    finally:
        if shown:
            progress.stop()


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Say on the terminal's standard error what is going on, once it has taken two seconds, and for how long."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    # No rich here: importing it restores the global random state, which a model may be drawing from meanwhile.
    teller = threading.Thread(target=_tell, args=(label, done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _tell(label: str, done: threading.Event) -> None:
    started, pause = time.monotonic(), PATIENCE
    while not done.wait(pause):
        pause = 1.0
        print(f"\r» {label}: {time.monotonic() - started:.0f} s", end="", file=sys.stderr, flush=True)
    if pause != PATIENCE:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
