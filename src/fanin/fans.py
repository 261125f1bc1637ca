"""Fans: how many weights reach an output element, and how many output elements an input element reaches.

Under independent, centred weights of variance s² and inputs of unit second moment, an output element has variance
``fan_in · s²``, and with unit output gradients an input element has gradient variance ``fan_out · s²``. That law
defines both fans here; the shape alone does not (grouped, strided, transposed, packed and stacked weights all differ
from what their shapes suggest), so a weight is described by the parts that its axes play.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fanin.errors import SchemeError, compose

Shape = tuple[int, ...]


class Fans(NamedTuple):
    """The two fans of one weight (or of one block of a packed weight).

    >>> Fans(256, 512).fan_avg
    384.0
    """

    fan_in: float
    fan_out: float

    @property
    def fan_avg(self) -> float:
        """The arithmetic mean, Glorot's choice: ``(fan_in + fan_out) / 2``."""
        return (self.fan_in + self.fan_out) / 2

    @property
    def fan_geo_avg(self) -> float:
        """The geometric mean ``√(fan_in · fan_out)``."""
        return math.sqrt(self.fan_in * self.fan_out)


@dataclass(frozen=True, slots=True)
class Block:
    """A named set of rows of a packed weight: ``q``, ``k``, ``v``, ``gate``, ``up``, a recurrent gate, …

    Args:
        name: what the rows compute.
        rows: indices along the out axis, as ranges; several ranges when heads are interleaved, a step when rows
            alternate.
        activation: the first non-linearity that this block's output reaches, as in ``ParameterNode.activation``;
            None where it is not known.

    >>> Block("gate", (range(0, 8, 2),)).size
    4
    """

    name: str
    rows: tuple[range, ...]
    activation: str | None = None

    @property
    def size(self) -> int:
        """The number of rows."""
        return sum(len(part) for part in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The block as JSON types: each range as ``[start, stop, step]``."""
        rows = [[part.start, part.stop, part.step] for part in self.rows]
        return {"name": self.name, "rows": rows, "activation": self.activation}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Block:
        """The inverse of `to_dict`."""
        rows = tuple(range(*(int(bound) for bound in part)) for part in record["rows"])
        return cls(str(record["name"]), rows, record.get("activation"))


def even_blocks(names: Sequence[str], length: int, activations: Sequence[str | None] = ()) -> tuple[Block, ...]:
    """Blocks of equal size, one behind the other, along an axis of the given length.

    >>> [block.rows for block in even_blocks("qkv", 12)]
    [(range(0, 4),), (range(4, 8),), (range(8, 12),)]
    """
    if length % len(names):
        raise SchemeError(compose(f"{length} rows", f"a multiple of {len(names)} for the blocks {', '.join(names)}"))
    size = length // len(names)
    acts = tuple(activations) or (None,) * len(names)
    return tuple(
        Block(name, (range(i * size, (i + 1) * size),), act)
        for i, (name, act) in enumerate(zip(names, acts, strict=True))
    )


@dataclass(frozen=True, slots=True)
class Axes:
    """Which axis of a weight plays which part.

    Every axis that is named neither in, out nor batch is a kernel axis (the receptive field).

    Args:
        in_axis: the contracted axes. Empty for an element-wise parameter (a norm's scale, a bias).
        out_axis: the axes that index output features.
        batch_axis: stacks of independent weights: experts, heads with matrices of their own.
        groups: of a grouped convolution; the weight then holds ``in/groups`` on its in axis (``out/groups`` on its
            out axis when transposed).
        stride: the product of the strides over all kernel axes.
        transposed: a transposed convolution: the stride then thins what reaches an output, not what leaves an input.
        one_hot: the in axis is indexed, not contracted, as in an embedding.
        factors: each in axis takes an input of its own, as in a bilinear form.
        blocks: the named row ranges of a packed weight, along the (single) out axis.

    A linear weight, a depthwise 3×3 convolution over 96 channels, and a stack of 8 experts in ``(in, out)`` layout:

    >>> Axes().fans((512, 256))
    Fans(fan_in=256, fan_out=512)
    >>> Axes(groups=96).fans((96, 1, 3, 3))
    Fans(fan_in=9, fan_out=9)
    >>> Axes(in_axis=(1,), out_axis=(2,), batch_axis=(0,)).fans((8, 64, 256))
    Fans(fan_in=64, fan_out=256)

    Differs from torch, whose fans come from the shape: it overestimates a grouped fan_out by ``groups``, swaps the
    fans of transposed convolutions, and takes packed, stacked and embedding weights for plain matrices.
    """

    in_axis: tuple[int, ...] = (1,)
    out_axis: tuple[int, ...] = (0,)
    batch_axis: tuple[int, ...] = ()
    groups: int = 1
    stride: int = 1
    transposed: bool = False
    one_hot: bool = False
    factors: bool = False
    blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        named = (*self.in_axis, *self.out_axis, *self.batch_axis)
        if len(set(named)) != len(named) or any(axis < 0 for axis in named):
            raise SchemeError(
                compose(
                    f"in_axis={self.in_axis}, out_axis={self.out_axis}, batch_axis={self.batch_axis}",
                    "distinct axes, counted from 0",
                )
            )
        if self.groups < 1 or self.stride < 1:
            raise SchemeError(compose(f"groups={self.groups}, stride={self.stride}", "both at least 1"))
        if self.blocks and len(self.out_axis) != 1:
            raise SchemeError(compose(f"blocks with out_axis={self.out_axis}", "one out axis to divide"))

    def kernel_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes that are neither in, out nor batch."""
        named = {*self.in_axis, *self.out_axis, *self.batch_axis}
        return tuple(axis for axis in range(ndim) if axis not in named)

    def fans(self, shape: Sequence[int], *, stride: bool = True) -> Fans:
        """The fans of a weight of this shape; for a packed weight the mean over its rows.

        Args:
            shape: the weight's shape.
            stride: False gives the count of the papers (Glorot & Bengio 2010, He et al. 2015), which ignores stride.

        Raises:
            SchemeError: the shape has fewer axes than named here, or groups do not divide it.
        """
        self._check(shape)
        if not self.blocks:
            return self._fans(shape, _product(shape, self.out_axis), self.groups, stride)
        each = self.block_fans(shape, stride=stride)
        sizes = {block.name: block.size for block in self.blocks}
        rows = sum(sizes.values())
        fan_out = sum(each[name].fan_out * size for name, size in sizes.items()) / rows
        return Fans(next(iter(each.values())).fan_in, _whole(fan_out))

    def block_fans(self, shape: Sequence[int], *, stride: bool = True) -> dict[str, Fans]:
        """The fans of each block of a packed weight, as if it were a weight of its own.

        >>> Axes(blocks=even_blocks("qkv", 12)).block_fans((12, 4))["q"]
        Fans(fan_in=4, fan_out=4)
        """
        self._check(shape)
        return {
            block.name: self._fans(shape, block.size, self._groups_of(block, shape), stride) for block in self.blocks
        }

    def of_block(self, block: Block, shape: Sequence[int]) -> tuple[Shape, Axes]:
        """The shape and axes of a block as a weight of its own; of a grouped convolution it lies in some of the groups.

        A block with more rows in one group than in another is taken for a matrix without groups.

        >>> axes = Axes(groups=12, blocks=even_blocks("qkv", 12))
        >>> shape, of_q = axes.of_block(axes.blocks[0], (12, 1, 3, 3))
        >>> shape, of_q.groups
        ((4, 1, 3, 3), 4)
        """
        groups = self.groups if self.transposed else self._groups_of(block, shape)
        even = self.transposed or block.size % groups == 0
        rows = tuple(block.size if axis in self.out_axis else length for axis, length in enumerate(shape))
        return rows, replace(self, blocks=(), groups=groups if even else 1)

    def _groups_of(self, block: Block, shape: Sequence[int]) -> int:
        """In how many groups a block has rows."""
        per_group = max(_product(shape, self.out_axis) // self.groups, 1)
        return len({row // per_group for part in block.rows for row in part}) if self.groups > 1 else 1

    def _fans(self, shape: Sequence[int], out: int, out_groups: int, stride: bool) -> Fans:
        kernel = _product(shape, self.kernel_axes(len(shape)))
        step = self.stride if stride else 1
        inward = _product(shape, self.in_axis)
        if self.one_hot:
            return Fans(1, out)
        if not self.in_axis:
            return Fans(1, 1)
        if self.factors:
            # y_o = Σ_ij W_oij a_i b_j: element i of `a` enters out·in/in_a products; the mean is over all inputs.
            entered = len(self.in_axis) * out * inward / sum(shape[axis] for axis in self.in_axis)
            return Fans(inward * kernel, _whole(entered * kernel))
        if self.transposed:
            return Fans(_whole(inward / self.groups * kernel / step), out * kernel)
        return Fans(inward * kernel, _whole(out / out_groups * kernel / step))

    def _check(self, shape: Sequence[int]) -> None:
        needed = max((*self.in_axis, *self.out_axis, *self.batch_axis), default=-1) + 1
        if len(shape) < needed:
            raise SchemeError(
                compose(
                    f"a weight of shape {tuple(shape)}",
                    f"at least {needed} axes",
                    f"in_axis={self.in_axis}, out_axis={self.out_axis}, batch_axis={self.batch_axis} name them",
                    "fanin.Axes(in_axis=…, out_axis=…) with the axes that this weight has",
                )
            )
        grouped = self.in_axis if self.transposed else self.out_axis
        if self.groups > 1 and _product(shape, grouped) % self.groups:
            raise SchemeError(
                compose(f"groups={self.groups} for shape {tuple(shape)}", "groups that divide the channels")
            )

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from a plain matrix, as JSON types."""
        record: dict[str, Any] = {}
        for field in ("in_axis", "out_axis", "batch_axis"):
            if getattr(self, field) != getattr(_MATRIX, field):
                record[field] = list(getattr(self, field))
        for field in ("groups", "stride", "transposed", "one_hot", "factors"):
            if getattr(self, field) != getattr(_MATRIX, field):
                record[field] = getattr(self, field)
        if self.blocks:
            record["blocks"] = [block.to_dict() for block in self.blocks]
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Axes:
        """The inverse of `to_dict`."""
        fields = dict(record)
        for field in ("in_axis", "out_axis", "batch_axis"):
            if field in fields:
                fields[field] = tuple(int(axis) for axis in fields[field])
        fields["blocks"] = tuple(Block.from_dict(block) for block in fields.get("blocks", ()))
        return cls(**fields)

    def with_blocks(self, blocks: Iterable[Block]) -> Axes:
        """The same axes with the out axis divided into these blocks."""
        return replace(self, blocks=tuple(blocks))


def _product(shape: Sequence[int], axes: Iterable[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _whole(value: float) -> float:
    """An int where the value is one, so that fans print as the counts they are."""
    return int(value) if value == int(value) else value


_MATRIX = Axes()
ELEMENTWISE = Axes(in_axis=(), out_axis=())
EMBEDDING = Axes(in_axis=(0,), out_axis=(1,), one_hot=True)
IN_OUT = Axes(in_axis=(0,), out_axis=(1,))
