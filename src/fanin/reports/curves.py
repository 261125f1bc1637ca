"""The numbers behind the figures of a comparison: plain lists of points, and where the labels go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from fanin.race import Comparison, Standing
from fanin.race.wording import enumerate_words

BUCKETS = 60
"""Points of a loss curve; each is the mean over a stretch of steps."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a line, with the range over seeds where there is one."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """A recipe's line in a figure."""

    recipe: str
    index: int
    points: tuple[Point, ...]


def loss_lines(comparison: Comparison) -> list[Line]:
    """The training loss by step, of every recipe at its best learning rate: median and range over seeds."""
    places = {recipe: index for index, recipe in enumerate(comparison.recipes)}
    return [
        Line(standing.recipe, places[standing.recipe], _curve(standing, comparison.steps))
        for standing in comparison.standings
    ]


def _curve(standing: Standing, steps: int) -> tuple[Point, ...]:
    width = max(steps // BUCKETS, 1)
    points = []
    for first in range(0, steps, width):
        means = [fmean(part) for run in standing.runs if (part := run.losses[first : first + width])]
        if not means:
            break
        middle = first + (min(width, steps - first) + 1) / 2
        points.append(Point(middle, median(means), min(means), max(means)))
    return tuple(points)


def rate_lines(comparison: Comparison) -> list[Line]:
    """The final loss by learning rate, of every recipe; infinite where the median run diverged."""
    lines = []
    for index, recipe in enumerate(comparison.recipes):
        points = []
        for lr in comparison.lrs:
            finals = [run.final for run in comparison.runs if run.recipe == recipe and run.lr == lr]
            if finals:
                points.append(Point(lr, median(finals), min(finals), max(finals)))
        if points:
            lines.append(Line(recipe, index, tuple(points)))
    return lines


def layer_lines(comparison: Comparison, quantity: str) -> tuple[list[Line], str]:
    """A quantity of the starts by layer, from 1, and a sentence on what a logarithmic axis cannot show.

    Args:
        comparison: with its starts.
        quantity: ``activation_rms``, ``signal_rms`` or ``gradient_rms``.
    """
    lines, zero, infinite = [], [], []
    for index, recipe in enumerate(comparison.recipes):
        start = comparison.start(recipe)
        if start is None:
            continue
        values: tuple[float | None, ...] = getattr(start, quantity)
        points = tuple(Point(layer, y, y, y) for layer, y in enumerate(values, 1) if y)
        if points:
            lines.append(Line(recipe, index, points))
        elif any(value == 0 for value in values):
            zero.append(recipe)
        else:
            infinite.append(recipe)
    remarks = [f"{enumerate_words(zero)}: exactly 0 in every layer, below any logarithmic axis."] if zero else []
    remarks += [f"{enumerate_words(infinite)}: not a number in any layer."] if infinite else []
    return lines, " ".join(remarks)


def overlapping(lines: Iterable[Line], span: float) -> list[list[str]]:
    """The recipes whose lines end on top of each other, within a hundredth of the axis of the next: in groups."""
    ends = {line.recipe: line.points[-1].y for line in lines if line.points and math.isfinite(line.points[-1].y)}
    groups: list[list[str]] = []
    for recipe in sorted(ends, key=ends.__getitem__):
        if groups and ends[recipe] - ends[groups[-1][-1]] < span / 100:
            groups[-1].append(recipe)
        else:
            groups.append([recipe])
    return [group for group in groups if len(group) > 1]


def spread_labels(positions: Sequence[float], gap: float, height: float) -> list[float]:
    """Move labels apart along an axis, as little as it takes, so that neighbours are at least ``gap`` apart.

    Args:
        positions: where each label wants to be, in pixels from the top.
        gap: the height of a line of text.
        height: of the axis; labels stay within it while there is room.

    >>> spread_labels([10, 12, 90], gap=12, height=100)
    [5.0, 17.0, 90.0]
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    clusters: list[tuple[float, list[int]]] = []
    for index in order:
        clusters.append((positions[index], [index]))
        while len(clusters) > 1 and _bottom(clusters[-2], gap) + gap > _top(clusters[-1], gap) + 1e-9:
            _, above = clusters[-2]
            _, below = clusters[-1]
            members = above + below
            centre = fmean(positions[member] for member in members)
            half = (len(members) - 1) * gap / 2
            clusters[-2:] = [(min(max(centre, half), max(height - half, half)), members)]
    result = [0.0] * len(positions)
    for cluster in clusters:
        for place, index in enumerate(cluster[1]):
            result[index] = float(_top(cluster, gap) + place * gap)
    return result


def _top(cluster: tuple[float, list[int]], gap: float) -> float:
    return cluster[0] - (len(cluster[1]) - 1) * gap / 2


def _bottom(cluster: tuple[float, list[int]], gap: float) -> float:
    return cluster[0] + (len(cluster[1]) - 1) * gap / 2
