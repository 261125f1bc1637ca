"""A plan as few rows as it has decisions: parameters that differ only in a number of their names share one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fanin import tables
from fanin.diagnoses import Diagnosis
from fanin.errors import PlanError
from fanin.plans import Plan
from fanin.rows import Row
from fanin.signals import Signals


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Parameters of one shape that get the same for the same reason.

    Args:
        anchor: for links to it.
        name: of the parameter, or a glob for several.
        names: all of them.
        shape, scheme, std, reason: as words; of what it gets.
        found: the standard deviation that was measured, or its range.
        edited: the remedies of the findings changed it.
    """

    anchor: str
    name: str
    names: tuple[str, ...]
    shape: str
    scheme: str
    std: str
    found: str
    reason: str
    edited: bool


@dataclass(frozen=True, slots=True)
class PlanTable:
    """The plan that a page shows.

    Args:
        rows: those that the remedies change, then the others; both in the model's order.
        edits: how many parameters the remedies change.
        note: what a reader should know of it.
    """

    rows: tuple[PlanRow, ...]
    edits: int
    note: str = ""

    @property
    def anchors(self) -> dict[str, str]:
        """Parameter → the anchor of its row."""
        return {name: row.anchor for row in self.rows for name in row.names}


def plan_table(diagnosis: Diagnosis) -> PlanTable | None:
    """The plan with the remedies of the findings; None where only signals were judged."""
    plan = diagnosis.plan
    if plan is None:
        return None
    note = ""
    try:
        mended = diagnosis.fix()
    except PlanError as error:
        mended, note = plan, f"The remedies could not be put into this plan. {error}"
    edited = {row.name for row, before in zip(mended, plan, strict=True) if row != before}
    return PlanTable(tuple(_rows(mended, diagnosis.signals, edited)), len(edited), note)


def _rows(plan: Plan, signals: Signals, edited: set[str]) -> list[PlanRow]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in plan:
        pattern = re.sub(r"\d+", "*", row.name)
        key = (pattern, row.shape, row.scheme.label, row.std, row.reason, row.name in edited)
        groups.setdefault(key, []).append(row)
    ordered = sorted(groups.values(), key=lambda rows: rows[0].name not in edited)
    return [_row(f"P{place}", rows, signals, edited) for place, rows in enumerate(ordered)]


def _row(anchor: str, rows: Sequence[Row], signals: Signals, edited: set[str]) -> PlanRow:
    first = rows[0]
    measured = {fact.name: fact for fact in signals.parameters}
    stds = [measured[row.name].std for row in rows if row.name in measured and not measured[row.name].meta]
    return PlanRow(
        anchor=anchor,
        name=first.name if len(rows) == 1 else _glob([row.name for row in rows]),
        names=tuple(row.name for row in rows),
        shape=tables.shape_text(first.shape),
        scheme=first.scheme.label,
        std=tables.number(first.std, 3),
        found=_range(stds),
        reason=_newest(first.reason) if first.name in edited else first.reason,
        edited=first.name in edited,
    )


def _glob(names: Sequence[str]) -> str:
    """Names that differ in numbers, as one: a star for each number in which they do.

    >>> _glob(["h.0.fc1.weight", "h.1.fc1.weight"])
    'h.*.fc1.weight'
    """
    parts = [re.split(r"(\d+)", name) for name in names]
    return "".join(column[0] if len(set(column)) == 1 else "*" for column in zip(*parts, strict=True))


def _newest(reason: str) -> str:
    """The reason of the last edit, without those that it overrides."""
    return reason.partition(" (before: ")[0]


def _range(values: Sequence[float]) -> str:
    if not values:
        return tables.number(None)
    low, high = tables.number(min(values), 3), tables.number(max(values), 3)
    return low if low == high else f"{low}–{high}"
