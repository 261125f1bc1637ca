"""How records print themselves: a plain table that fits the terminal."""

from __future__ import annotations

import importlib
import io
import random
import shutil
import sys
import textwrap
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
    load_rich()
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), header_style="bold" if color else ""
    )
    total = width or shutil.get_terminal_size((100, 24)).columns
    cells = [tuple(map(printable, row)) for row in rows]
    for index, column in enumerate(columns):
        # Names are searched for and copied: they stay whole unless they would take more than half of the line.
        whole = index == 0 and not column.wrap and max((len(row[0]) for row in cells), default=0) <= total // 2
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=whole,
            ratio=1 if column.wrap else None,
        )
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(
        file=io.StringIO(),
        width=total,
        force_terminal=color,
        no_color=not color,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    text = "\n".join(line.rstrip() for line in capture.get().splitlines())
    return "\n".join(part for part in (title, text, footer) if part)


def render_annotated(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    notes: Iterable[str],
    *,
    footer: str = "",
    width: int | None = None,
) -> str:
    """Lay rows out as text with a sentence under each, for what a narrow column would break into pieces.

    A first cell that is too long for its column gets a line of its own.

    >>> columns = [Column("name"), Column("std", right=True)]
    >>> print(render_annotated(columns, [("fc", "0.02")], ["a small start"], width=30))
    name   std
    ──────────
    fc    0.02
        a small start
    """
    total = width or shutil.get_terminal_size((100, 24)).columns
    cells = [tuple(column.title for column in columns), *(tuple(map(printable, row)) for row in rows)]
    sizes = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    sizes[0] = min(sizes[0], max(total - sum(sizes[1:]) - 2 * (len(columns) - 1), 12))

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(size) if column.right else cell.ljust(size)
            for cell, size, column in zip(row, sizes, columns, strict=True)
        ]
        return "  ".join(parts).rstrip()

    lines = [line(cells[0]), "─" * min(sum(sizes) + 2 * (len(columns) - 1), total)]
    for row, note in zip(cells[1:], notes, strict=True):
        if len(row[0]) > sizes[0]:
            lines.append(row[0])
            row = ("", *row[1:])
        lines.append(line(row))
        lines.extend(textwrap.wrap(printable(note), total, initial_indent="    ", subsequent_indent="    "))
    return "\n".join([*lines, *([printable(footer)] if footer else [])])


def printable(text: str) -> str:
    """The text without what a terminal would obey: names and reasons may come from a file of somebody else's.

    >>> printable("fc" + chr(27) + "[2J.weight")
    'fc�[2J.weight'
    """
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in text)


def load_rich() -> None:
    """Import rich without its mark on the global random state, from which it draws an identifier when imported."""
    if "rich.console" not in sys.modules:
        state = random.getstate()
        importlib.import_module("rich.console")
        random.setstate(state)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a cell; ``–`` where there is none.

    >>> number(0.0883883), number(None)
    ('0.08839', '–')
    """
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def counted(count: int, noun: str) -> str:
    """A number of things, in words that agree.

    >>> counted(1, "parameter"), counted(2, "parameter"), counted(12000, "layer")
    ('1 parameter', '2 parameters', '12,000 layers')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shape_text(shape: Sequence[int]) -> str:
    """``512×256``; ``scalar`` for no axes."""
    return "×".join(map(str, shape)) or "scalar"
