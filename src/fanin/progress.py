"""A progress bar for what takes long, and nothing for what does not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
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
