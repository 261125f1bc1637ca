"""Where compiled kernels are kept: a directory of their own for each state of the sources.

numba compares only the file of the kernel that is called with what it compiled before. Kernels here call each other
across files and read coefficients from others, and a kernel that outlives a change of those would draw other values.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numba import config

_SOURCES = Path(__file__).parent


@contextmanager
def kept() -> Iterator[bool]:
    """Direct numba's cache to the directory for these sources; yield whether there is one that can be written."""
    place = directory(config.CACHE_DIR)
    before = config.CACHE_DIR
    config.CACHE_DIR = "" if place is None else str(place)
    try:
        yield place is not None
    finally:
        config.CACHE_DIR = before


@functools.cache
def directory(chosen: str) -> Path | None:
    """Return the directory that kernels are kept in, or None where nothing can be written.

    Args:
        chosen: the user's directory for numba (NUMBA_CACHE_DIR); where it is empty, beside the sources, or among the
            user's caches where those cannot be written.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    bases = [Path(chosen)] if chosen else [_SOURCES / "__pycache__", home / "fanin"]
    for base in bases:
        place = base / f"kernels-{_digest()}"
        if _can_write(place):
            return place
    return None


def _digest() -> str:
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(_SOURCES.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _can_write(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False
