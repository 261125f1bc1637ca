"""What two plans do differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fanin import tables
from fanin.rows import Row


@dataclass(frozen=True)
class Difference:
    """Rows that only one plan has, and rows that the two fill differently; false when there are none."""

    removed: tuple[Row, ...] = ()
    added: tuple[Row, ...] = ()
    changed: tuple[tuple[Row, Row], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)

    def __len__(self) -> int:
        return len(self.removed) + len(self.added) + len(self.changed)

    def to_dict(self) -> dict[str, object]:
        """The difference as JSON types."""
        return {
            "removed": [row.to_dict() for row in self.removed],
            "added": [row.to_dict() for row in self.added],
            "changed": [{"before": old.to_dict(), "after": new.to_dict()} for old, new in self.changed],
        }

    def __str__(self) -> str:
        if not self:
            return "no difference"
        columns = [tables.Column(""), tables.Column("parameter"), tables.Column("before", wrap=True)]
        columns.append(tables.Column("after", wrap=True))
        cells = [("-", row.name, _cell(row), "") for row in self.removed]
        cells += [("+", row.name, "", _cell(row)) for row in self.added]
        cells += [("~", old.name, _cell(old), _cell(new)) for old, new in self.changed]
        verb = "differs" if len(self) == 1 else "differ"
        return tables.render(columns, cells, footer=f"{tables.counted(len(self), 'parameter')} {verb}")


def compare_rows(before: Sequence[Row], after: Sequence[Row]) -> Difference:
    """Match rows by name and report what differs in shape or scheme; reasons alone do not count."""
    old = {row.name: row for row in before}
    new = {row.name: row for row in after}
    return Difference(
        removed=tuple(row for name, row in old.items() if name not in new),
        added=tuple(row for name, row in new.items() if name not in old),
        changed=tuple(
            (row, new[name])
            for name, row in old.items()
            if name in new and (row.scheme, row.shape) != (new[name].scheme, new[name].shape)
        ),
    )


def _cell(row: Row) -> str:
    return f"{tables.shape_text(row.shape)} {row.scheme.label}, std {row.std_text}"
