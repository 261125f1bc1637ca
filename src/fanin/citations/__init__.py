"""The publications behind schemes, gains and recipes, as BibTeX, by key."""

from __future__ import annotations

from collections.abc import Iterable

from fanin.citations.architectures import ARCHITECTURES
from fanin.citations.foundations import FOUNDATIONS
from fanin.citations.record import Source
from fanin.errors import FaninError, nearest

__all__ = ["Source", "bibliography", "source"]


def source(key: str) -> Source:
    """The publication with this key.

    >>> source("he2015").label
    'He et al. 2015'
    """
    try:
        return _SOURCES[key]
    except KeyError:
        raise FaninError(f"no source is known as {key!r}; {nearest(key, _SOURCES)}") from None


def bibliography(keys: Iterable[str]) -> str:
    """The BibTeX entries of these keys, sorted and each once."""
    return "\n\n".join(source(key).bibtex() for key in sorted(set(keys)))


_SOURCES = {entry.key: entry for entry in (*FOUNDATIONS, *ARCHITECTURES)}
