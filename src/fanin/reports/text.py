"""What is registered, as rows to print."""

from __future__ import annotations

import inspect
from typing import Any

from fanin import schemes
from fanin.citations import source
from fanin.schemes import REGISTRY, Constant, Packed, Scheme


def scheme_rows() -> list[dict[str, Any]]:
    """Every registered scheme and every named form once, with the other names of the same thing."""
    rows: dict[int, dict[str, Any]] = {}
    for name in sorted(schemes.__all__, key=lambda name: (name not in REGISTRY, name)):
        form = getattr(schemes, name)
        made = _example(form)
        if id(form) in rows:
            rows[id(form)]["also"].append(name)
        elif made is not None:
            summary = (inspect.getdoc(form) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "")
            labels = [source(key).label for key in made.sources]
            signature = f"{name}{inspect.signature(form)}".replace("'", "").partition(" -> ")[0]
            rows[id(form)] = {"scheme": name, "signature": signature, "summary": summary, "sources": labels, "also": []}
    return list(rows.values())


def _example(form: Any) -> Any:
    """A scheme made by this form with stand-ins for what has no default; None when the form makes no scheme."""
    stand_ins = {"value": 0.0, "std": 1.0, "low": -1.0, "high": 1.0}
    if form is Packed:
        return Packed.of({"q": Constant(0.0)})
    try:
        needed = [p.name for p in inspect.signature(form).parameters.values() if p.default is p.empty]
        made = form(**{name: stand_ins[name] for name in needed})
    except (KeyError, TypeError, ValueError):
        return None
    return made if isinstance(made, Scheme) else None
