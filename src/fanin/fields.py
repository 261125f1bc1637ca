"""Records from files: a field that is unknown, or of another kind than its class says, is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from fanin.errors import PlanError, compose, nearest

_PLAIN = {float: (int, float), int: (int,), str: (str,), bool: (bool,), NoneType: (NoneType,)}


def require_fields(cls: type, record: object) -> Mapping[str, Any]:
    """The record, if it has only fields of a dataclass, each of the kind that the class declares.

    Numbers, texts, and lists of them are looked at; what has a class of its own is left to that class.

    Raises:
        PlanError: a field is unknown or of another kind.

    >>> from fanin.graph import Op
    >>> require_fields(Op, {"index": 0, "target": "linear"})["target"]
    'linear'
    """
    return require_kinds(_kinds(cls), record)


def require_kinds(kinds: Mapping[str, Any], record: object) -> Mapping[str, Any]:
    """The same for fields that are listed with their kinds: `require_fields` without a class."""
    if not isinstance(record, Mapping):
        raise PlanError(compose(_shown(record), f"an object with the fields {', '.join(kinds)}"))
    for name, value in record.items():
        if name not in kinds:
            raise PlanError(compose(f"a field {name!r}", "a field that is known", nearest(str(name), kinds)))
        if not _fits(value, kinds[name]):
            raise PlanError(compose(f"{name}: {_shown(value)}", _words(kinds[name])))
    return record


@lru_cache(maxsize=32)
def _kinds(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: object, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return isinstance(value, list | tuple) and all(_fits(item, inner) for item in value)
    if kind is dict:
        return isinstance(value, dict)
    if kind not in _PLAIN:
        return True
    # JSON's true is no number, though Python counts with it.
    return isinstance(value, _PLAIN[kind]) and (kind is bool or not isinstance(value, bool))


def _words(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_words(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, of {_words(get_args(kind)[0])} each"
    plain = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", NoneType: "null"}
    return plain.get(kind, "an object")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
