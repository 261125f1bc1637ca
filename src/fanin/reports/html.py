"""What the pages share: the template room, the style sheet, and that a page needs nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fanin.errors import MissingExtraError
from fanin.reports import palette

TEMPLATES = Path(__file__).parent / "templates"


def render(name: str, **values: Any) -> str:
    """A template's text; what is put into it is escaped, unless it is marked as markup.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "report", "pages") from error
    loader = FileSystemLoader(TEMPLATES)
    room = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return str(room.get_template(name).render(palette=palette.style_sheet(), **values))
