"""Charts as pictures: SVG text for pages, files for papers and READMEs."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from fanin.race import Comparison
from fanin.reports import palette
from fanin.reports.figures import HEIGHT, WIDTH, Figure, altair, figures

PICTURED = ("loss", "signal_rms", "gradient_rms")
"""The figures that stand side by side in a picture of a comparison."""


def svg_of(figure: Figure) -> str:
    """One figure as SVG to stand in a page: in the page's colours, with words for those who cannot see it."""
    drawing = render(_styled(figure.chart.properties(width=WIDTH, height=HEIGHT)), "svg").decode()
    drawing = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawing)
    words = escape(f"{figure.title}. {figure.caption}", quote=True)
    return palette.themed(drawing).replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one SVG or PNG: the loss curves, and the signal and gradient before the first step.

    Raises:
        MissingExtraError: altair or vl-convert is not installed.
    """
    alt = altair()
    chosen = [figure for figure in figures(comparison) if figure.name in PICTURED]
    panels = [figure.chart.properties(width=WIDTH, height=HEIGHT, title=figure.title) for figure in chosen]
    chart = alt.hconcat(*panels, spacing=24).resolve_scale(color="independent")
    path.write_bytes(render(_styled(chart).properties(background="#ffffff"), path.suffix.removeprefix(".")))


def render(chart: Any, kind: str) -> bytes:
    """A chart as the bytes of an ``svg`` or ``png`` file."""
    import vl_convert

    specification = chart.to_dict()
    if kind == "svg":
        return bytes(vl_convert.vegalite_to_svg(specification).encode())
    return bytes(vl_convert.vegalite_to_png(specification, scale=2))


def _styled(chart: Any) -> Any:
    axis: dict[str, Any] = {"labelColor": palette.TEXT, "titleColor": palette.TEXT, "gridColor": palette.GRID}
    axis |= {"domainColor": palette.GRID, "tickColor": palette.GRID}
    axis |= {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 6}
    return chart.configure(
        font="sans-serif",
        background="transparent",
        padding={"left": 4, "right": 4, "top": 6, "bottom": 4},
        view={"stroke": None},
        axis=axis,
        title={"fontSize": 14, "color": palette.TEXT, "anchor": "start", "offset": 10},
    )
