"""Values that no initialization draws: not finite, memory as it was found, outliers, parts never written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.depth import LINE
from fanin.findings.evidence import DRAWN, FAR, FORMING, Evidence
from fanin.findings.registry import finding, register
from fanin.findings.scales import LARGE, SMALL
from fanin.graph import ParameterNode, Role
from fanin.observations import ERASING, SIGMAS, Kind, ParameterSignal
from fanin.schemes import Normal, Packed, Scheme, Zeros

SUBNORMAL = 1e-3
"""A normal law of std 1e-30 has one in 10⁸ values below the smallest normal number; one in a thousand is no draw."""


@register(
    "F104",
    "values that are not finite",
    why="one such value makes the loss, and after a step every parameter, not a number",
    threshold="any: a NaN is never drawn",
    remedy="draw it anew; find out why initialization passed it by",
)
def not_finite(evidence: Evidence) -> Iterator[Finding]:
    """NaN or infinity in a parameter or in running statistics; NaN in another buffer, for masks hold infinities."""
    for node, signal in chain(evidence.parameters(), evidence.held()):
        if signal.non_finite:
            seen = f"{signal.non_finite:.2%} of the values are not finite"
            yield finding("F104", Severity.ERROR, node.name, seen, edits=_like_the_rest(evidence, node, signal))
    for buffer in evidence.signals.buffers:
        counted = buffer.name.split(".")[-1] in STATISTICS
        if counted and buffer.non_finite > buffer.not_a_number:
            yield finding("F104", Severity.ERROR, buffer.name, f"{buffer.non_finite:.2%} of a buffer is not finite")
        elif buffer.not_a_number:
            yield finding("F104", Severity.ERROR, buffer.name, f"{buffer.not_a_number:.2%} of a buffer is not a number")


def _like_the_rest(evidence: Evidence, node: ParameterNode, signal: ParameterSignal) -> tuple[Edit, ...]:
    """Edits that draw a weight by the scale of its finite values, as the rest of the model is used to.

    Where those are few, or of a scale that the rules on scales would find, by the recommended one. What is of no known
    role, such as logarithms of decay rates, by the mean of its values too.
    """
    if node.role is Role.OTHER and signal.non_finite <= HALF:
        return (Edit(node.name, Normal(signal.std, signal.mean)),)
    edits = evidence.redraw(node.name)
    want = edits[0].scheme.expected(node.fans, node.shape, node.axes).std if edits and edits[0].scheme else 0.0
    few = signal.non_finite > HALF or signal.elements < BULK
    if node.role not in DRAWN or node.axes.blocks or few or signal.outlier > SIGMAS or not want:
        return edits
    return (Edit(node.name, Normal(signal.rms)),) if SMALL < signal.rms / want < LARGE else edits


STATISTICS = ("running_mean", "running_var")
ASIDE = 5.0
"""Standard deviations: then what differs between inputs has under 4 % of the variance of what the norm puts out."""


@register(
    "F108",
    "running statistics that no data gave",
    why="a norm in evaluation subtracts and divides by them: what comes is magnified to 1/√ε of its size, shrunk to "
    "nothing, or put out beside a constant that drowns it",
    threshold="a running variance of zero or below; or one whose root is 20 times (an error: 400 times) off, or a mean "
    f"that is {ASIDE:g} (20) standard deviations aside, from all that averaging over batches like this one could have "
    "made of the constructor's 0 and 1",
    remedy="model.apply(lambda m: m.reset_running_stats() if hasattr(m, 'reset_running_stats') else None)",
)
def flat_variance(evidence: Evidence) -> Iterator[Finding]:
    """Running variances of zero, and statistics far from those of the batch."""
    for buffer in evidence.signals.buffers:
        finite = buffer.shape and not buffer.meta and not buffer.non_finite
        if buffer.name.split(".")[-1] == "running_var" and finite and buffer.min <= 0:
            yield finding("F108", Severity.ERROR, buffer.name, f"its smallest value is {buffer.min:.3g}")
    for layer in evidence.signals.of_kind(Kind.NORM) if evidence.finite else ():
        spread, shift = layer.counted_spread or 1.0, layer.counted_shift or 0.0
        off = max(spread, 1 / max(spread, 1e-30))
        if off > LINE or shift > ASIDE:
            severity = Severity.ERROR if off > FAR or shift > LINE else Severity.WARNING
            seen = f"the running std is {spread:.3g} times the nearest that data like this could have given"
            if off <= LINE:
                seen = f"the running mean is {shift:.3g} running stds from any that data like this could have given"
            name = f"{layer.module}.{STATISTICS[off > LINE]}"
            known = any(buffer.name == name for buffer in evidence.signals.buffers)
            yield finding("F108", severity, name if known else layer.name, seen)


@register(
    "F109",
    "a parameter that has no values",
    why="it was built on the meta device and nothing has made it since, so that nothing could be run or judged",
    threshold="any parameter on the meta device",
    remedy='give it memory and values: fanin.apply(diagnosis.fix(), model, device="cpu"); buffers on the meta device, '
    "such as the frequencies of rotary positions, no plan can fill: build the model on a device that has memory, or "
    "under fanin.deferred()",
)
def without_values(evidence: Evidence) -> Iterator[Finding]:
    """Parameters on the meta device."""
    names = [signal.name for signal in evidence.signals.parameters if signal.meta]
    if names:
        seen = "it is on the meta device" + (f", as are {len(names) - 1} more" if len(names) > 1 else "")
        buffers = [buffer.name for buffer in evidence.signals.buffers if buffer.meta]
        seen += f"; so are buffers, which no plan fills: {', '.join(buffers[:3])}" if buffers else ""
        yield finding("F109", Severity.ERROR, names[0], seen, edits=evidence.redraw(*names), places=names[1:])


OVERFLOWING = 2.0**64
"""Its square is over the highest number of float32: no norm, no loss and no optimizer can take it in."""


@register(
    "F105",
    "uninitialized memory",
    why="the values are what the memory held before: a different model on every run",
    threshold=f"a value over 2²³ (it erases what of unit size is added to it), or over {SUBNORMAL:.1%} subnormal, "
    f"unless it is frozen; in a buffer, both, or values over {OVERFLOWING:.2g}, whose squares float32 cannot hold, and "
    "which no mask is: those are filled with what is far under zero",
    remedy="draw it anew",
)
def uninitialized(evidence: Evidence) -> Iterator[Finding]:
    """Absurdly large values, or subnormal ones."""
    for node, signal in chain(evidence.parameters(), evidence.held()):
        largest = max(abs(signal.min), abs(signal.max))
        # Decay shrinks what died in training until it is subnormal.
        wide = signal.dtype != "float16" and not node.frozen
        if largest > ERASING:
            seen = f"values up to {largest:.3g}"
        elif wide and signal.subnormal > SUBNORMAL:
            seen = f"{signal.subnormal:.1%} of the values are subnormal; the largest is {largest:.3g}"
        else:
            continue
        yield finding("F105", Severity.ERROR, node.name, seen, edits=evidence.redraw(node.name))
    for buffer in evidence.signals.buffers:
        # Each alone may be meant in a buffer: a mask of the lowest number, a window's far end.
        if buffer.subnormal > SUBNORMAL and buffer.erasing and buffer.dtype != "float16":
            seen = f"a buffer: {buffer.subnormal:.1%} of its values are subnormal, others up to {buffer.erasing:.3g}"
            yield finding("F105", Severity.ERROR, buffer.name, seen)
        elif buffer.highest > OVERFLOWING and math.prod(buffer.shape) > 1:  # a single number may stand for none as yet
            yield finding("F105", Severity.ERROR, buffer.name, f"a buffer: values up to {buffer.highest:.3g}")


BULK = 64
"""Of fewer values the quartiles say little of the standard deviation: with 64 it is off by a fifth at two sigma."""
HALF, QUARTER = 0.5, 0.25
"""Of the sum of squares: from half on, the outliers are the weight; under a quarter they raise its
standard deviation by less than 15 %."""


@register(
    "F106",
    "outliers",
    why="single weights outweigh the rest of their unit, and quantization and low precision lose the others",
    threshold=f"{SIGMAS:g} standard deviations from the median, where a normal law has 1.5·10⁻²³; a note as long as "
    f"outliers hold under {QUARTER:.0%} of the tensor's power, an error when they hold over half",
    remedy="draw it anew by a law without such tails",
    source="pytorch/pytorch#155588",
)
def outliers(evidence: Evidence) -> Iterator[Finding]:
    """Values far outside of the bulk."""
    for node, signal in _drawn(evidence):
        # Zeros and few values leave no bulk.
        judged = signal.zero <= 0.25 and not signal.constant and signal.elements >= BULK
        if judged and signal.outlier > SIGMAS and max(abs(signal.min), abs(signal.max)) <= ERASING:
            power, away = signal.tail_power, signal.outlier
            severity = Severity.ERROR if power > HALF else Severity.WARNING if power > QUARTER else Severity.NOTE
            seen = f"a value {away:.0f} standard deviations from the median; outliers hold {power:.1%} of the power"
            yield finding("F106", severity, node.name, seen, edits=(Edit(node.name, _without_tails(signal)),))


def _without_tails(signal: ParameterSignal) -> Scheme:
    """A normal law as wide as the bulk; each block's own, where there are blocks."""
    if not signal.blocks:
        return Normal(max(abs(signal.min), abs(signal.max)) / signal.outlier)
    return Packed.of({block.name: Normal(block.bulk or block.std) if block.std else Zeros() for block in signal.blocks})


@register(
    "F107",
    "a part that was never written",
    why="units whose weights are zero compute nothing, and learn late or never",
    threshold="at least 2 whole rows are zero while others are drawn, and they are no named block; or 2 positions of a "
    "table. At least 2 whole columns are a warning: what they read is left out at first; and a note where they read "
    "the model's inputs, of which new ones may be meant to come in later",
    remedy="draw the whole tensor",
    source="mosaicml/llm-foundry#1820",
)
def partly_written(evidence: Evidence) -> Iterator[Finding]:
    """Rows or columns of zeros beside those that were drawn."""
    for node, signal in _drawn(evidence):
        if FORMING.intersection(node.reparametrized):
            continue
        seen = f"{signal.zero:.0%} of the values are exactly zero, in whole "
        if zero_rows(node, signal) >= 2 or _zero_places(node, signal) >= 2:
            yield finding("F107", Severity.ERROR, node.name, f"{seen}rows", edits=evidence.redraw_alike(node.name))
        elif zero_columns(node, signal) >= 2:
            inner = node.weight_depth > 1
            edits = evidence.redraw_alike(node.name) if inner else ()
            severity = Severity.WARNING if inner else Severity.NOTE
            yield finding("F107", severity, node.name, f"{seen}columns (inputs)", edits=edits)


def _drawn(evidence: Evidence) -> Iterator[tuple[ParameterNode, ParameterSignal]]:
    """What is drawn at random, and tables of positions, which may be written, but whole and without outliers."""
    for node, signal in evidence.parameters():
        if node.role in DRAWN or (node.role is Role.POSITION and len(node.shape) > 1):
            yield node, signal


def _zero_places(node: ParameterNode, signal: ParameterSignal) -> int:
    """How many positions of a table are zero, if not all."""
    places = round(signal.zero_vectors * math.prod(node.shape[:-1]))
    return places if node.role is Role.POSITION and signal.rms else 0


def zero_columns(node: ParameterNode, signal: ParameterSignal) -> int:
    """How many columns of a weight are zero, when these explain all columns that are equal, and are not all; else 0."""
    columns = math.prod(node.shape[axis] for axis in (*node.axes.batch_axis, *node.axes.in_axis))
    zeros = round(signal.zero_columns * columns)
    explained = abs(signal.duplicate_columns * columns - (zeros - 1)) < 0.5
    return zeros if node.is_weight and 2 <= zeros < columns and explained else 0


def zero_rows(node: ParameterNode, signal: ParameterSignal) -> int:
    """How many rows are zero, when rows of zeros explain both the zeros and the duplicates; else 0."""
    rows = math.prod(node.shape[axis] for axis in (*node.axes.out_axis, *node.axes.batch_axis)) if node.shape else 0
    if node.role == Role.EMBEDDING:
        rows = node.shape[0]
    zeros = round(signal.zero * rows)
    if (
        not 2 <= zeros < rows
        or abs(signal.zero * rows - zeros) > 0.02
        or any(block.std == 0 for block in signal.blocks)
    ):
        return 0
    # The rows of an embedding are what it takes in, one at a time.
    duplicates = max(signal.duplicate_rows, signal.duplicate_columns if node.role == Role.EMBEDDING else 0.0)
    return zeros if abs(duplicates * rows - (zeros - 1)) < 0.5 else 0
