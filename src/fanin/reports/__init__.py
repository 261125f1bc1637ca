"""Pages and pictures of the records. Importing this draws nothing and loads nothing heavy."""

from fanin import race
from fanin.reports.html import write_page
from fanin.reports.pictures import write_picture

race.connect(html=write_page, svg=write_picture, png=write_picture)

__all__ = ["write_page", "write_picture"]
