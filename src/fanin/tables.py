"""How records print themselves: a plain table that fits the terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a printed table.

    Args:
        title: the head.
        right: align numbers to the right.
        wrap: break long cells over lines; other columns keep theirs whole and take their width first.
    """

    title: str
    right: bool = False
    wrap: bool = False


def render(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    footer: str = "",
    width: int | None = None,
    color: bool = False,
) -> str:
    """Lay rows out as text, no wider than the terminal.

    >>> print(render([Column("name"), Column("std", right=True)], [("fc.weight", "0.02")], width=40))
    name         std
    ────────────────
    fc.weight   0.02
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), header_style="bold" if color else ""
    )
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=False,
            ratio=1 if column.wrap else None,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(
        file=io.StringIO(),
        width=width or shutil.get_terminal_size((100, 24)).columns,
        force_terminal=color,
        no_color=not color,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    text = "\n".join(line.rstrip() for line in capture.get().splitlines())
    return "\n".join(part for part in (title, text, footer) if part)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a cell; ``–`` where there is none.

    >>> number(0.0883883), number(None)
    ('0.08839', '–')
    """
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def shape_text(shape: Sequence[int]) -> str:
    """``512×256``; ``scalar`` for no axes."""
    return "×".join(map(str, shape)) or "scalar"
