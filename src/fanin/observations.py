"""What was measured: one operation, one parameter, one buffer.

Every number is finite: it is taken over the finite values, and ``non_finite`` says how large a share is not. None
stands where there is nothing to measure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self

SIGMAS = 10.0
"""Beyond ten standard deviations a normal law has 1.5·10⁻²³ of its values: none in any model."""


ERASING = 2.0**23
"""1/ε of float32: whatever of unit size is added to such a number is lost."""
LOWEST = 3e38
"""The lowest number of float32 and bfloat16, which masks are filled with, and infinity, are beyond."""


class Kind(StrEnum):
    """What an operation does to the signal."""

    WEIGHT = "weight"
    """It contracts its input with a weight: linear, convolution, matrix product with a parameter."""
    EMBEDDING = "embedding"
    RECURRENT = "recurrent"
    ACTIVATION = "activation"
    NORM = "norm"
    ATTENTION = "attention"
    """A softmax over scores, or a fused attention; it carries the entropy."""
    SUM = "sum"
    """A sum of two signals; where one is computed from the other, the end of a residual branch."""
    PRODUCT = "product"
    """A product of two signals, element by element or as matrices."""
    POOLING = "pooling"
    OTHER = "other"


class Observation:
    """To and from JSON types, for flat frozen dataclasses; what equals its default is left out."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON types."""
        record: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, item.name)
            if value != item.default:
                record[item.name] = _plain(value)
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        if "kind" in values:
            values["kind"] = Kind(values["kind"])
        if "blocks" in values:
            values["blocks"] = tuple(BlockSignal.from_dict(block) for block in values["blocks"])
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Observation):
        return value.to_dict()
    if isinstance(value, StrEnum):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class LayerSignal(Observation):
    """One operation's output in the forward run, and the gradient that reached it.

    Args:
        index: its place in execution order, from 0.
        name: the place as findings print it, unique: the module's path where the module does nothing else,
            else ``module:target``, with ``#2`` from the second call.
        module: the path of the innermost module that ran it; empty for the root.
        target: the operation: ``linear``, ``conv2d``, ``relu``, ``softmax``, ``add``, …
        kind: what it does to the signal.
        shape: of its output.
        dtype: of its output, as torch prints it without the prefix.
        weights: the parameters that it reads, by their first names.
        behind: of an activation, the parameters that made what it takes in: of the weight before it, of a bias beside
            that and of norms between; from the nearest on.
        weight_depth: how many weights lie behind it on the longest path, itself included: the depth axis of profiles.
        tower: on which way through the model it lies: all that starts at one first weight has the same number, from 0;
            where ways join, the deepest goes on, of two the first. None before any weight.
        scores: it is a product of two signals, or made of one, since the last weight: masks may have filled it.
        mean: of all values.
        rms: root mean square of all values.
        max: the largest absolute value.
        offset: RMS over units of each unit's mean; near ``rms`` when the output hardly depends on the input. None where
            only one vector was seen.
        varying: RMS of what is left when each unit's mean is taken away: what differs from input to input;
            None with ``offset``.
        spread: standard deviation over units of each unit's RMS, over the mean of the units' RMS.
        zero: the share of values that are exactly 0.
        saturated: the share where the activation's slope is below a twentieth of its largest; None unless its range
            is bounded on a side.
        dead: the share of units that are exactly 0 for everything that was seen, of a softplus under ε of float32; None
            unless it is an activation.
        stuck: the share of units that are saturated for everything that was seen; None with ``saturated``.
        seen: how many values of each unit were seen (samples × positions, subsampled): with few of them a healthy
            unit may look dead.
        non_finite: the share of values that are infinite or not a number.
        sample_cosine: mean cosine between the outputs for two samples, in [-1, 1]; None for one sample.
        position_cosine: mean cosine between two positions of one sequence; None unless it is a sequence.
        entropy: mean entropy of attention over the entropy of uniform attention to what is visible: 1 uniform, 0
            one-hot.
        entropy_low, entropy_high: the same for the head with the lowest and the highest.
        keys: how many keys a query sees, on average.
        score_std: the standard deviation of a query's scores over the keys that it sees, RMS over queries.
        counted_spread: of a norm that counts running statistics, the running standard deviation over the nearest one
            that averaging over batches like this could have made of its start at 1; of the median channel.
        counted_shift: the distance of the running mean from the nearest such one, in running standard deviations.
        stream: which residual stream the sum belongs to, from 0; None unless it closes a branch.
        stream_depth: how many branches were added into that stream, this one included.
        branch_rms: of the branch that is added.
        stream_rms: of the stream before it is added.
        stream_start: of the stream before the first branch was added.
        steps: of one of torch's recurrences: over how many steps it ran.
        constant: of a sum of the first weight's output with what is no parameter and differs from place to place, as
            sinusoids do: the buffer's name, where it is one.
        constant_rms: of that constant; None of any other operation.
        signal_rms: of what it is added to, before it is.
        grad_rms: root mean square of the gradient of the loss with respect to this output; None where none came.
        grad_max: its largest absolute value.
        grad_zero: the share of it that is exactly 0.
        grad_non_finite: the share of it that is infinite or not a number.
    """

    index: int
    name: str
    module: str
    target: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str = "float32"
    weights: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    weight_depth: int = 0
    tower: int | None = None
    scores: bool = False
    mean: float = 0.0
    rms: float = 0.0
    max: float = 0.0
    offset: float | None = None
    varying: float | None = None
    spread: float | None = None
    zero: float = 0.0
    saturated: float | None = None
    dead: float | None = None
    stuck: float | None = None
    seen: int = 0
    non_finite: float = 0.0
    sample_cosine: float | None = None
    position_cosine: float | None = None
    entropy: float | None = None
    entropy_low: float | None = None
    entropy_high: float | None = None
    keys: float | None = None
    score_std: float | None = None
    counted_spread: float | None = None
    counted_shift: float | None = None
    stream: int | None = None
    stream_depth: int = 0
    branch_rms: float | None = None
    stream_rms: float | None = None
    stream_start: float | None = None
    steps: int | None = None
    constant: str = ""
    constant_rms: float | None = None
    signal_rms: float | None = None
    grad_rms: float | None = None
    grad_max: float | None = None
    grad_zero: float | None = None
    grad_non_finite: float = 0.0

    @property
    def branch_share(self) -> float | None:
        """The branch's part of the sum: RMS of the branch over that of branch and stream together, in [0, 1]."""
        if self.branch_rms is None or self.stream_rms is None:
            return None
        together = math.hypot(self.branch_rms, self.stream_rms)
        return self.branch_rms / together if together else 0.0

    @property
    def stream_growth(self) -> float | None:
        """How far the stream has grown since before its first branch: a ratio of RMS."""
        return self.rms / self.stream_start if self.stream_start else None


@dataclass(frozen=True, slots=True)
class BlockSignal(Observation):
    """One named block of a packed weight or bias: ``q``, ``gate``, ``forget``, …

    Args:
        name: what its rows compute.
        mean, std: of its values.
        bulk: its standard deviation, taken from the interquartile range: outliers do not raise it. 0 where over a
            quarter are zero, or values are too few for quartiles.
        grad_rms: root mean square of its gradient; None unless all its values are zero and a gradient arrived.
        blocked: of a block that is all zero and whose gradient is: as of a parameter; else None.
    """

    name: str
    mean: float
    std: float
    bulk: float = 0.0
    grad_rms: float | None = None
    blocked: bool | None = None

    @property
    def zero(self) -> bool:
        """Whether all its values are zero."""
        return self.std == 0 == self.mean


@dataclass(frozen=True, slots=True)
class ParameterSignal(Observation):
    """One parameter's values, and its gradient. What the parameter *is* stands in the graph: ``signals.node(name)``.

    Args:
        name: its first name in the module tree.
        shape: its size along each axis.
        dtype: as torch prints it without the prefix.
        meta: it has no values: it is on the meta device.
        mean, std, rms: of all values.
        min, max: the smallest and largest value.
        zero: the share of values that are exactly 0.
        non_finite: the share of values that are infinite or not a number.
        outlier: the largest distance from the median, in standard deviations; these are taken from the interquartile
            range, so outliers do not hide themselves. √(2 ln n) is expected of n normal values, √3 of uniform ones. Of
            a packed weight, that of the block in which it is largest.
        tail_power: the share of the sum of squares in values over ten such standard deviations from the median.
        subnormal: the share of values that are too small to be normal numbers of its dtype.
        effective_std: of the weight that the layer computed with, where a parametrization makes it from this one.
        effective_duplicates: of that weight: the share of units along one of its axes that equal an earlier one, of the
            axis with the most; where it is 0, all units compute something else, whatever this parameter holds.
        duplicate_rows: the share of rows (output units) that equal an earlier row bit for bit; over all experts.
        duplicate_columns: the share of columns (input units) that equal an earlier column.
        zero_columns: the share of columns that are zero throughout.
        zero_vectors: the share of vectors along the last axis that are.
        constant_rows: whether columns repeat because each unit's weights, its kernel included, are one number.
        equal_vectors: whether the vectors along the last axis are all the same along the axis before it, bit for bit:
            the tokens of a set, the rows of a matrix.
        duplicate_slices: the share of slices along the batch axis (experts, heads) that equal an earlier one.
        repeats: the largest k such that the tensor is the same block k times along its first axis; 1 if there is none.
        side_repeats: the same along another axis of its inputs or outputs, of the axis with the most.
        blocks: mean and standard deviation of each named block.
        padding_rms: of the padding row; None without one.
        reached: a gradient arrived; None where no backward ran or it does not require one.
        influential: where no gradient arrived, or one that is zero: whether what the model returns changes when this
            parameter, and the others of which the same is true, do; else None.
        blocked: of a weight that is all zero and whose gradient is: whether both are so still when what is zero and
            does receive a gradient has moved, several times over; else None.
        grad_rms: root mean square of the gradient.
        grad_max: its largest absolute value.
        grad_zero: the share of it that is exactly 0.
        grad_non_finite: the share of it that is infinite or not a number.
        grad_along: the sum of products of its values and gradient: how much the loss grows with its scale, by e-folds.
            0 where a normalization takes its scale away; None without a gradient.
        grad_duplicate_rows: as ``duplicate_rows``, of the gradient: rows that equal each other in both stay equal.
        grad_duplicate_columns: the share of columns that equal an earlier one and whose gradient equals that one's, to
            within the rounding of its sums: these stay equal. None where no column repeats, or no gradient came.
        grad_groups, grad_group_size: of a weight that is all zero: into how many groups of how many rows those rows
            fall that have a gradient, alike within a group: these stay equal. 0 where the groups are not of one size,
            or a row stands alone.
        grad_equal_vectors: as ``equal_vectors``, of the gradient, to within the rounding of its sums: what is equal in
            both stays equal. False where it is zero.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    meta: bool = False
    mean: float = 0.0
    std: float = 0.0
    rms: float = 0.0
    min: float = 0.0
    max: float = 0.0
    zero: float = 0.0
    non_finite: float = 0.0
    outlier: float = 0.0
    tail_power: float = 0.0
    subnormal: float = 0.0
    effective_std: float | None = None
    effective_duplicates: float | None = None
    duplicate_rows: float = 0.0
    duplicate_columns: float = 0.0
    zero_columns: float = 0.0
    zero_vectors: float = 0.0
    constant_rows: bool = False
    equal_vectors: bool = False
    duplicate_slices: float = 0.0
    repeats: int = 1
    side_repeats: int = 1
    blocks: tuple[BlockSignal, ...] = ()
    padding_rms: float | None = None
    reached: bool | None = None
    influential: bool | None = None
    blocked: bool | None = None
    grad_rms: float | None = None
    grad_max: float | None = None
    grad_zero: float | None = None
    grad_non_finite: float = 0.0
    grad_along: float | None = None
    grad_duplicate_rows: float = 0.0
    grad_duplicate_columns: float | None = None
    grad_equal_vectors: bool = False
    grad_groups: int = 0
    grad_group_size: int = 0

    @property
    def constant(self) -> bool:
        """Whether all values are one number, as in zeros, ones and biases."""
        return not self.meta and self.min == self.max and self.non_finite == 0.0

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def grad_ratio(self) -> float | None:
        """RMS of the gradient over RMS of the values: the relative change that a step of size 1 would make."""
        return None if self.grad_rms is None or not self.rms else self.grad_rms / self.rms

    def block(self, name: str) -> BlockSignal | None:
        """One named block."""
        return next((block for block in self.blocks if block.name == name), None)


@dataclass(frozen=True, slots=True)
class BufferSignal(Observation):
    """One buffer's values.

    Args:
        name: its name in the module tree.
        shape: its size along each axis.
        dtype: as torch prints it without the prefix.
        meta: it has no values.
        max: the largest absolute value.
        min: the smallest value.
        non_finite: the share of values that are infinite or not a number, masks' infinities included.
        not_a_number: the share of values that are not a number.
        subnormal: the share of values that are too small to be normal numbers of its dtype.
        erasing: the largest absolute value over 1/ε that is no lowest number, with which masks are filled; 0 without.
        highest: the same of the values over zero alone.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    meta: bool = False
    max: float = 0.0
    min: float = 0.0
    non_finite: float = 0.0
    not_a_number: float = 0.0
    subnormal: float = 0.0
    erasing: float = 0.0
    highest: float = 0.0
