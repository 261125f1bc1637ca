"""The statistics of a page: what each layer is shown by, in charts and table alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fanin.observations import LayerSignal
from fanin.reports.scales import Scale, log_scale, power_text
from fanin.signals import Signals

Getter = Callable[[Signals, LayerSignal], float | None]


@dataclass(frozen=True, slots=True)
class Statistic:
    """One number of every layer.

    Args:
        name: as a head or a label.
        family: ``size`` (drawn on a logarithmic scale), ``share`` (from 0 to 1) or ``likeness`` (the same of cosines).
        words: what it is, in a sentence.
        get: reads it.
    """

    name: str
    family: str
    words: str
    get: Getter


@dataclass(frozen=True)
class Column:
    """A statistic with its numbers, one a layer; None where there is nothing to measure."""

    statistic: Statistic
    values: tuple[float | None, ...]

    @cached_property
    def scale(self) -> Scale:
        """The axis that its colours stand for."""
        if self.statistic.family != "size":
            return Scale(0.0, 1.0)
        return log_scale([value for value in self.values if value] or [1.0])

    @property
    def range_text(self) -> str:
        """The ends of its scale, in words."""
        if self.statistic.family != "size":
            return "0–1"
        low, high = (round(math.log10(end)) for end in (self.scale.low, self.scale.high))
        return f"{power_text(low)}–{power_text(high)}"


def columns(signals: Signals, layers: Sequence[LayerSignal]) -> list[Column]:
    """Every statistic that says something about these layers: some layer has it, and not all shares are 0."""
    read = [Column(item, tuple(item.get(signals, layer) for layer in layers)) for item in STATISTICS]
    return [
        column
        for column in read
        if any(value if column.statistic.family == "share" else value is not None for value in column.values)
    ]


def _offset_share(_: Signals, layer: LayerSignal) -> float | None:
    return None if layer.offset is None or not layer.rms else min(layer.offset / layer.rms, 1.0)


def _gradient_ratio(signals: Signals, layer: LayerSignal) -> float | None:
    """Of the largest parameter that it reads: a weight rather than its bias."""
    read = [signals.parameter(name) for name in layer.weights]
    return max(read, key=lambda parameter: parameter.elements).grad_ratio if read else None


STATISTICS: tuple[Statistic, ...] = (
    Statistic("RMS", "size", "root mean square of the output", lambda _, layer: layer.rms),
    Statistic(
        "spread",
        "size",
        "how much units differ in size: standard deviation over units of their RMS, relative to its mean",
        lambda _, layer: layer.spread,
    ),
    Statistic("offset", "share", "the part of the RMS that is the same for every input", _offset_share),
    Statistic("zero", "share", "values that are exactly 0", lambda _, layer: layer.zero),
    Statistic("dead", "share", "units that are 0 for everything that was seen", lambda _, layer: layer.dead),
    Statistic("saturated", "share", "values where the activation is all but flat", lambda _, layer: layer.saturated),
    Statistic("stuck", "share", "units that are saturated for everything that was seen", lambda _, layer: layer.stuck),
    Statistic("not finite", "share", "values that are infinite or not a number", lambda _, layer: layer.non_finite),
    Statistic(
        "samples alike",
        "likeness",
        "mean cosine between the outputs for two samples",
        lambda _, layer: layer.sample_cosine,
    ),
    Statistic(
        "positions alike",
        "likeness",
        "mean cosine between two positions of one sequence",
        lambda _, layer: layer.position_cosine,
    ),
    Statistic(
        "entropy",
        "likeness",
        "of attention, relative to uniform attention: 1 uniform, 0 one-hot",
        lambda _, layer: layer.entropy,
    ),
    Statistic("branch share", "likeness", "the branch's part of a residual sum", lambda _, layer: layer.branch_share),
    Statistic(
        "stream growth",
        "size",
        "the residual stream's RMS relative to before its first branch",
        lambda _, layer: layer.stream_growth,
    ),
    Statistic(
        "gradient RMS", "size", "root mean square of the loss gradient at the output", lambda _, layer: layer.grad_rms
    ),
    Statistic("gradient zero", "share", "gradients that are exactly 0", lambda _, layer: layer.grad_zero),
    Statistic("weight gradient", "size", "RMS of the weight's gradient relative to the weight's own", _gradient_ratio),
)
"""In the order in which they are shown."""
