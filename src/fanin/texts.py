"""JSON texts that say what they are: read back into the value that wrote them, or refused as none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from fanin.errors import InputsError, compose

Made = TypeVar("Made")


def read(text: str, kind: str, schema: int, build: Callable[[dict[str, Any]], Made]) -> Made:
    """What a text describes. Nothing in it is executed.

    Args:
        text: JSON whose field ``fanin`` names the kind, and ``schema`` its form.
        kind: what it should be: ``graph``.
        schema: the one form that is known.
        build: makes the value of the record.

    Raises:
        InputsError: it is no JSON, something else, or lacks a field.
    """
    try:
        record = json.loads(text)
        if record.get("fanin") != kind or record.get("schema") != schema:
            raise ValueError(f"it says {record.get('fanin')!r}, schema {record.get('schema')!r}")
        return build(record)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else "; ".join(str(error).splitlines())
        needed = f"what {kind.capitalize()}.to_json writes, of schema {schema}"
        raise InputsError(compose(f"text that is no {kind} ({reason})", needed)) from None
