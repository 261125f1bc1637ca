"""The record of one publication, and how it is written down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """One publication: what a docstring, a reason or `Plan.cite` refers to."""

    key: str
    authors: str
    title: str
    venue: str
    year: int
    arxiv: str = ""

    @property
    def label(self) -> str:
        """The short form for a table: one author, two, or the first of more, and the year."""
        first, *others = (author.split(",")[0] for author in self.authors.split(" and "))
        if len(others) > 1 or others == ["others"]:
            return f"{first} et al. {self.year}"
        return f"{' & '.join((first, *others))} {self.year}"

    def bibtex(self) -> str:
        """The entry in BibTeX."""
        kind, where = (
            ("misc", "howpublished") if self.venue.startswith(("arXiv", "Software")) else ("inproceedings", "booktitle")
        )
        lines = [
            f"  author = {{{self.authors}}}",
            f"  title = {{{self.title}}}",
            f"  {where} = {{{self.venue}}}",
            f"  year = {{{self.year}}}",
        ]
        if self.arxiv:
            lines.append(f"  eprint = {{{self.arxiv}}}")
        return f"@{kind}{{{self.key},\n" + ",\n".join(lines) + "\n}"
