"""Where benchmarks put what they printed: between two marks of a page, and nowhere else."""

from __future__ import annotations

from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: the page lacks one of the marks.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page.name} has no {start} … {end}")
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
