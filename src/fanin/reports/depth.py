"""What happens through depth, drawn: lines and marks as paths that stretch to any width.

One unit of width is half a layer, so that every layer's middle has a whole number; the height is `TALL`. The drawings
are stretched by the page, with strokes that are not, and with no text inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fanin.observations import Kind, LayerSignal
from fanin.reports.columns import Column
from fanin.reports.scales import Scale, log_scale

TALL = 1000
"""The height of a chart, in its own units."""
SHADES = 8
"""The steps of colour in a heat map."""

CARRIERS = frozenset({Kind.WEIGHT, Kind.EMBEDDING, Kind.RECURRENT})
"""The kinds whose outputs are joined by a line: what weights put out."""


@dataclass(frozen=True, slots=True)
class Stroke:
    """A path and the class that the style sheet knows it by."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A profile through depth.

    Args:
        name: for the page's anchors.
        title: what is drawn.
        ticks: height from the top in percent, and words.
        strokes: grid, lines, marks; in the order of drawing.
        zeros: how many layers are exactly 0, and lie on the lower edge.
        predicted: a prediction is among the strokes.
        parted: so is what differs between inputs, which is less than the whole somewhere.
    """

    name: str
    title: str
    ticks: tuple[tuple[float, str], ...]
    strokes: tuple[Stroke, ...]
    zeros: int
    predicted: bool
    parted: bool

    def has(self, mark: str) -> bool:
        """Whether layers of this kind are marked."""
        return any(stroke.name == f"mark {mark}" for stroke in self.strokes)


def profile_chart(
    name: str,
    title: str,
    layers: Sequence[LayerSignal],
    values: Sequence[float | None],
    predicted: dict[int, float],
    marked: dict[str, set[int]],
    varying: Sequence[float | None] = (),
) -> Chart | None:
    """One number a layer on a logarithmic axis; None where no layer has it.

    Args:
        name, title: of the chart.
        layers: in execution order; what follows speaks of them by their places here.
        values: one a layer; None where there is none, 0 on the lower edge.
        predicted: by layer, what theory says.
        marked: severity → the layers that findings concern.
        varying: of the values, the part that differs between inputs; drawn where it is half of one at most.
    """
    parted = any(part is not None and value and part < value / 2 for part, value in zip(varying, values, strict=False))
    parts = list(varying) if parted else []
    known = [value for value in (*values, *predicted.values(), *parts) if value]
    if not known:
        return None
    scale = log_scale(known)
    at = {index: _high(scale, value) for index, value in enumerate(values) if value is not None}
    strokes = [Stroke("grid", "".join(f"M0 {_high(scale, value)}H{2 * len(layers)}" for value, _ in scale.ticks))]
    strokes += [Stroke(f"ring {severity}", marks(at, sorted(found))) for severity, found in marked.items()]
    carriers = [place for place, layer in enumerate(layers) if layer.kind in CARRIERS]
    strokes += [Stroke("stream", line(at, stream)) for stream in _streams(layers)]
    differing = {place: _high(scale, part) for place, part in enumerate(parts) if part}
    strokes.append(Stroke("differing", line(differing, carriers)))
    strokes.append(Stroke("carried", line(at, [place for place in carriers if values[place]])))
    summed = [place for place, layer in enumerate(layers) if layer.stream is not None]
    others = sorted(set(range(len(layers))) - {*carriers, *summed})
    strokes += [Stroke("mark other", marks(at, others)), Stroke("mark summed", marks(at, summed))]
    strokes.append(Stroke("mark carrier", marks(at, carriers)))
    strokes.append(Stroke("predicted", line({i: _high(scale, v) for i, v in predicted.items() if v}, predicted)))
    ticks = tuple((100 * (1 - scale.share(value)), words) for value, words in scale.ticks)
    zeros = sum(value == 0 for value in values)
    return Chart(name, title, ticks, tuple(s for s in strokes if s.path), zeros, bool(predicted), parted)


def marks(at: dict[int, int], chosen: Iterable[int]) -> str:
    """Strokes of no length, which round ends make into dots: one a layer.

    >>> marks({0: 500, 2: 250}, [0, 1, 2])
    'M1 500h0M5 250h0'
    """
    return "".join(f"M{2 * index + 1} {at[index]}h0" for index in chosen if index in at)


def line(at: dict[int, int], chosen: Iterable[int]) -> str:
    """A line through layers, in their order.

    >>> line({0: 500, 2: 250}, [0, 1, 2])
    'M1 500L5 250'
    """
    points = [f"{2 * index + 1} {at[index]}" for index in chosen if index in at]
    return "M" + "L".join(points) if len(points) > 1 else ""


def _high(scale: Scale, value: float) -> int:
    return round(TALL * (1 - scale.share(value)))


def _streams(layers: Sequence[LayerSignal]) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for place, layer in enumerate(layers):
        if layer.stream is not None:
            found.setdefault(layer.stream, []).append(place)
    return list(found.values())


def heat_strip(column: Column) -> list[Stroke]:
    """One row of a heat map: a path for every shade, neighbours of one shade joined; ``zero`` for no size at all."""
    sizes = column.statistic.family == "size"
    scale = column.scale
    runs: dict[str, list[list[int]]] = {}
    for index, value in enumerate(column.values):
        if value is None:
            continue
        shade = "zero" if sizes and not value else f"s{min(int(scale.share(value) * SHADES), SHADES - 1)}"
        spans = runs.setdefault(shade, [])
        if spans and spans[-1][1] == index:
            spans[-1][1] = index + 1
        else:
            spans.append([index, index + 1])
    return [
        Stroke(shade, "".join(f"M{first} 0h{last - first}v1H{first}z" for first, last in spans))
        for shade, spans in sorted(runs.items())
    ]


@dataclass(frozen=True, slots=True)
class Section:
    """Neighbouring layers of one part of the model.

    Args:
        name: in short, for what stands along the axis.
        path: of the part.
        width: how many layers.
    """

    name: str
    path: str
    width: int


MOST_SECTIONS = 60


def sections(layers: Sequence[LayerSignal]) -> list[Section]:
    """The parts of the model along the axis of layers; empty where they are too many or one to say anything."""
    paths = [tuple(layer.module.split(".")) for layer in layers]
    shared = Counter(path[:length] for path in paths for length in range(1, len(path) + 1))
    found: list[tuple[tuple[str, ...], int]] = []
    for path in paths:
        part = _part(path, shared, len(paths) / 2)
        if found and found[-1][0] == part:
            found[-1] = (part, found[-1][1] + 1)
        else:
            found.append((part, 1))
    if not 1 < len(found) <= min(MOST_SECTIONS, len(paths) / 2):
        return []
    return [
        Section(_short(part, found[place - 1][0] if place else ()), ".".join(part), width)
        for place, (part, width) in enumerate(found)
    ]


def _part(path: tuple[str, ...], shared: Counter[tuple[str, ...]], most: float) -> tuple[str, ...]:
    """The shortest beginning of a path that no more than ``most`` paths share."""
    beginnings = (path[:length] for length in range(1, len(path) + 1))
    return next((part for part in beginnings if shared[part] <= most), path)


def _short(part: tuple[str, ...], before: tuple[str, ...]) -> str:
    """The name of a part without its parents; of a part that is counted on from the one before it, its number alone."""
    if not part[-1].isdigit():
        return part[-1]
    counted = bool(before) and part[:-1] == before[:-1] and before[-1].isdigit()
    return part[-1] if counted else ".".join(part[-2:])
