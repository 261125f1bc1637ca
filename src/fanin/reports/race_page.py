"""A comparison as one page that needs nothing but itself: no script, no font, no address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fanin.race import Comparison, Standing
from fanin.race.wording import loss_text, percent, scientific
from fanin.reports import palette
from fanin.reports.curves import rate_lines
from fanin.reports.figures import figures
from fanin.reports.html import render
from fanin.reports.pictures import svg_of


def write_race(comparison: Comparison, path: Path) -> None:
    """Write a comparison as a self-contained HTML page.

    Raises:
        MissingExtraError: jinja2, altair or vl-convert is not installed.
    """
    path.write_text(page(comparison), encoding="utf-8")


def page(comparison: Comparison) -> str:
    """The page's text."""
    drawn = [
        {"name": figure.name, "title": figure.title, "caption": figure.caption, "svg": svg_of(figure)}
        for figure in figures(comparison)
    ]
    places = {recipe: index % len(palette.LIGHT) for index, recipe in enumerate(comparison.recipes)}
    return render(
        "race.html",
        comparison=comparison,
        places=places,
        standings=[_cells(comparison, standing) for standing in comparison.standings],
        results=[figure for figure in drawn if figure["name"] in ("loss", "rates")],
        reasons=[figure for figure in drawn if figure["name"] not in ("loss", "rates")],
        legend=[_entry(line) for line in comparison.legend()],
        rates=_rates(comparison),
        starts=_starts(comparison),
    )


def _cells(comparison: Comparison, standing: Standing) -> dict[str, str]:
    start = comparison.start(standing.recipe)
    low, high = (loss_text(value, comparison.chance) for value in (standing.low, standing.high))
    return {
        "recipe": standing.recipe,
        "verdict": str(standing.verdict),
        "loss": loss_text(standing.loss, comparison.chance),
        "range": f"{low}–{high}",
        "accuracy": percent(standing.accuracy),
        "lr": f"{standing.lr:g}",
        "signal": scientific(start.signal_ratio if start else None),
    }


def _rates(comparison: Comparison) -> list[tuple[str, list[str]]]:
    rows = []
    for line in rate_lines(comparison):
        by_lr = {point.x: loss_text(point.y, comparison.chance) for point in line.points}
        rows.append((line.recipe, [by_lr.get(lr, "–") for lr in comparison.lrs]))
    return rows


def _starts(comparison: Comparison) -> list[dict[str, Any]]:
    quantities = ("activation_rms", "signal_rms", "gradient_rms")
    return [
        {
            "recipe": start.recipe,
            "rows": [
                (layer, *(_number(getattr(start, quantity)[place]) for quantity in quantities))
                for place, layer in enumerate(start.layers)
            ],
        }
        for start in comparison.starts
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _entry(line: str) -> tuple[str, str]:
    """A line of the legend as a term and its words; what has no term is about the race."""
    term, colon, words = line.partition(": ")
    return (term, words) if colon else ("race", line)
