"""The figures of a comparison, as charts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fanin.errors import MissingExtraError
from fanin.race import Comparison
from fanin.race.wording import enumerate_words, loss_text
from fanin.reports import palette
from fanin.reports.curves import Line, layer_lines, loss_lines, overlapping, rate_lines, spread_labels
from fanin.reports.scales import Scale, log_scale, power_text

WIDTH, HEIGHT = 270, 215
"""Of the plot alone, in pixels: small enough that its text can be read on a phone."""
LINE_OF_TEXT = 13
BESIDE = 1.2
"""How far a logarithmic axis of learning rates goes beyond them."""


@dataclass(frozen=True)
class Figure:
    """A chart with the words that stand around it."""

    name: str
    title: str
    caption: str
    chart: Any


def altair() -> Any:
    """The altair package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import altair
        import vl_convert  # noqa: F401 - without it altair can draw nothing
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "altair", "report", "charts") from error
    return altair


def figures(comparison: Comparison) -> list[Figure]:
    """All figures: what happened, then why."""
    return [loss_figure(comparison), rate_figure(comparison), *start_figures(comparison)]


def loss_figure(comparison: Comparison) -> Figure:
    """The training loss by step."""
    lines = loss_lines(comparison)
    scale = _loss_scale(comparison)
    alt = altair()
    chart = alt.layer(
        _band(lines, scale, "step", "training loss"),
        _path(lines, scale, "step", "training loss"),
        _chance(comparison),
        _labels(lines, scale, comparison.steps),
    )
    seeds = len(comparison.seeds)
    caption = "Each recipe at its own best learning rate; " + (
        f"the median over {seeds} seeds, the band from lowest to highest." if seeds > 1 else "one seed."
    )
    return Figure("loss", "Training loss", f"{caption} {_overlap(lines, scale)}".strip(), chart)


def rate_figure(comparison: Comparison) -> Figure:
    """The final loss by learning rate."""
    lines = rate_lines(comparison)
    scale = _loss_scale(comparison)
    title = ("learning rate", "final training loss")
    alt = altair()
    layers = [
        _path(lines, scale, *title, log_x=comparison.lrs),
        _ranges(lines, scale, log_x=comparison.lrs),
        _chance(comparison),
        _labels(lines, scale, max(comparison.lrs) * BESIDE),
    ]
    caption = "The same at every learning rate that was tried: points are medians, bars the range over seeds."
    if any(not math.isfinite(point.y) for line in lines for point in line.points):
        caption += " Points on the upper edge diverged."
    return Figure("rates", "Final loss by learning rate", caption, alt.layer(*layers))


_STARTS = (
    (
        "activation_rms",
        "Activations before the first step",
        "activation RMS",
        "Root mean square of each layer's output on the first batch.",
    ),
    (
        "signal_rms",
        "What they still know of the input",
        "RMS about the batch mean",
        "The same without what is common to all examples: biases keep activations alive, not the signal.",
    ),
    (
        "gradient_rms",
        "Gradients before the first step",
        "weight gradient RMS",
        "Root mean square of the loss gradient by each layer's weights: what the optimizer gets to see.",
    ),
)


def start_figures(comparison: Comparison) -> list[Figure]:
    """Activation, signal and gradient by layer before the first step: one line a recipe."""
    result = []
    for quantity, title, unit, caption in _STARTS:
        lines, remark = layer_lines(comparison, quantity)
        if not lines:
            continue
        scale = log_scale(point.y for line in lines for point in line.points)
        last = max(point.x for line in lines for point in line.points)
        axis = "layer, in order of execution"
        chart = altair().layer(_path(lines, scale, axis, unit), _labels(lines, scale, last))
        result.append(Figure(quantity, title, f"{caption} {remark}".strip(), chart))
    return result


def _loss_scale(comparison: Comparison) -> Scale:
    return Scale(0.0, 1.3 * comparison.chance if comparison.chance > 0 else 1.0)


def _overlap(lines: Sequence[Line], scale: Scale) -> str:
    together = overlapping(lines, scale.high - scale.low)
    words = [f"{enumerate_words(group)} end within the width of a line of each other" for group in together]
    return f"{'; '.join(words)}." if words else ""


def _rows(lines: Sequence[Line], scale: Scale) -> list[dict[str, Any]]:
    def inside(value: float) -> float:
        return min(max(value, scale.low), scale.high)

    return [
        {
            "recipe": line.recipe,
            "x": point.x,
            "y": inside(point.y),
            "low": inside(point.low),
            "high": inside(point.high),
        }
        for line in lines
        for point in line.points
    ]


def _data(lines: Sequence[Line], scale: Scale) -> Any:
    return altair().Data(values=_rows(lines, scale))


def _colors(lines: Sequence[Line]) -> Any:
    ordered = sorted(lines, key=lambda line: line.index)
    names = [line.recipe for line in ordered]
    shades = [palette.color(line.index) for line in ordered]
    return altair().Color("recipe:N", scale=altair().Scale(domain=names, range=shades), legend=None)


def _dashes(lines: Sequence[Line]) -> Any:
    ordered = sorted(lines, key=lambda line: line.index)
    names = [line.recipe for line in ordered]
    patterns = [list(palette.dash(line.index)) for line in ordered]
    return altair().StrokeDash("recipe:N", scale=altair().Scale(domain=names, range=patterns), legend=None)


def _x(title: str, log_x: Sequence[float] = ()) -> Any:
    alt = altair()
    if log_x:
        near, far = min(log_x) / BESIDE, max(log_x) * BESIDE
        scale = alt.Scale(type="log", domain=[near, far], nice=False)
        return alt.X("x:Q", title=title, scale=scale, axis=alt.Axis(values=list(log_x), format="~g", grid=False))
    return alt.X("x:Q", title=title, scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=6, grid=False))


def _y(title: str, scale: Scale, field: str = "y") -> Any:
    alt = altair()
    domain = alt.Scale(type="log" if scale.log else "linear", domain=[scale.low, scale.high], nice=False)
    if not scale.log:
        return alt.Y(f"{field}:Q", title=title, scale=domain, axis=alt.Axis(tickCount=6))
    # Powers of ten as such: Vega's own labels give up on ranges of this size.
    low, high = round(math.log10(scale.low)), round(math.log10(scale.high))
    ticks = [value for value, _ in scale.ticks]
    words = {str(power): power_text(power) for power in range(low, high + 1)}
    label = f"{json.dumps(words)}['' + round(log(datum.value) / LN10)]"
    return alt.Y(f"{field}:Q", title=title, scale=domain, axis=alt.Axis(values=ticks, labelExpr=label))


def _path(lines: Sequence[Line], scale: Scale, x: str, y: str, log_x: Sequence[float] = ()) -> Any:
    alt = altair()
    chart = alt.Chart(_data(lines, scale)).mark_line(strokeWidth=2, strokeJoin="round", clip=True)
    return chart.encode(
        x=_x(x, log_x), y=_y(y, scale), color=_colors(lines), strokeDash=_dashes(lines), detail="recipe:N"
    )


def _band(lines: Sequence[Line], scale: Scale, x: str, y: str) -> Any:
    chart = altair().Chart(_data(lines, scale)).mark_area(opacity=0.18, clip=True)
    return chart.encode(x=_x(x), y=_y(y, scale, "low"), y2="high:Q", color=_colors(lines))


def _ranges(lines: Sequence[Line], scale: Scale, log_x: Sequence[float]) -> Any:
    alt = altair()
    base = alt.Chart(_data(lines, scale)).encode(x=_x("learning rate", log_x), color=_colors(lines))
    bars = base.mark_rule(strokeWidth=1.2, opacity=0.6).encode(y=_y("final training loss", scale, "low"), y2="high:Q")
    return bars + base.mark_circle(size=36, opacity=1).encode(y=_y("final training loss", scale))


def _chance(comparison: Comparison) -> Any:
    alt = altair()
    base = alt.Chart(alt.Data(values=[{"y": comparison.chance}])).encode(y=alt.Y("y:Q"))
    text = f"chance {loss_text(comparison.chance, comparison.chance)}"
    rule = base.mark_rule(color=palette.MUTED, strokeDash=[3, 3], strokeWidth=1)
    words = base.mark_text(align="right", baseline="bottom", dx=-4, dy=-3, color=palette.MUTED, text=text, fontSize=11)
    return rule + words.encode(x=alt.value(WIDTH))


def _labels(lines: Sequence[Line], scale: Scale, right: float) -> Any:
    alt = altair()
    wanted = [HEIGHT * (1 - scale.share(line.points[-1].y)) for line in lines]
    placed = spread_labels(wanted, LINE_OF_TEXT, HEIGHT)
    rows = [
        {"recipe": line.recipe, "x": right, "y": scale.value(1 - pixel / HEIGHT)}
        for line, pixel in zip(lines, placed, strict=True)
    ]
    base = alt.Chart(alt.Data(values=rows)).mark_text(align="left", dx=10, fontSize=12, fontWeight=600)
    return base.encode(x="x:Q", y="y:Q", text="recipe:N", color=_colors(lines))
