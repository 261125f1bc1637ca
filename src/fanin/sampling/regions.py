"""Regions: which elements of a global tensor a local one holds, as runs of consecutive flat indices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fanin.errors import SchemeError, compose
from fanin.sampling.philox import GROUP

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """A hyper-rectangle of a global tensor, as `rows` runs of `length` consecutive elements each.

    A region of whole rows is one run; a column shard is a run for each row.

    Attributes:
        first: flat index of the first element, in C order of the global tensor.
        length: elements in one run.
        sizes, strides: the loops over the runs, the outermost first, with their strides in the global tensor.
    """

    first: int
    length: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many runs there are."""
        return math.prod(self.sizes)

    def starts(self, begin: int, end: int) -> Int64Array:
        """Return the flat indices at which the runs begin … end − 1 start."""
        row = np.arange(begin, end, dtype=np.int64)
        start = np.full(end - begin, self.first, np.int64)
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            start += (row % size) * stride
            row //= size
        return start

    def pieces(self, most: int) -> Iterator[Piece]:
        """Cut the region into pieces of about `most` elements or fewer, in the order of the local tensor.

        Long runs are cut where groups begin, so that no group is drawn twice.
        """
        if self.length >= most:
            for row in range(self.rows):
                yield from self._cut(row, most)
            return
        at_once = max(most // (self.length + 2 * GROUP), 1)  # a short run may touch a group more at either end
        for row in range(0, self.rows, at_once):
            end = min(row + at_once, self.rows)
            yield Piece(self.starts(row, end), self.length, row * self.length)

    def _cut(self, row: int, most: int) -> Iterator[Piece]:
        start = int(self.starts(row, row + 1)[0])
        at, stop = start, start + self.length
        while at < stop:
            end = min(max((at + most) // GROUP * GROUP, at + 1), stop)
            yield Piece(np.array([at], np.int64), end - at, row * self.length + at - start)
            at = end


@dataclass(frozen=True)
class Piece:
    """Some runs of a region that are drawn in one go.

    Attributes:
        starts: the flat index, in the global tensor, at which each run starts.
        length: elements in each run.
        at: where the first of these elements lies in the local tensor, in C order.
    """

    starts: Int64Array
    length: int
    at: int

    @property
    def size(self) -> int:
        """How many elements the piece holds."""
        return len(self.starts) * self.length


def region(shape: Sequence[int], global_shape: Sequence[int] | None, offset: Sequence[int] | None) -> Region:
    """Find the runs of a local tensor of `shape` that begins at `offset` in a tensor of `global_shape`.

    Args:
        shape: the local shape.
        global_shape: the whole tensor's shape; None where the local tensor is the whole.
        offset: the index of the local tensor's first element in the whole; None for zeros.

    Raises:
        SchemeError: the numbers of dimensions differ or the region leaves the tensor.

    >>> region((4, 2), (4, 8), (0, 6))
    Region(first=6, length=2, sizes=(4,), strides=(8,))
    """
    whole = tuple(shape) if global_shape is None else tuple(global_shape)
    begin = (0,) * len(whole) if offset is None else tuple(offset)
    if not len(shape) == len(whole) == len(begin) or any(
        at < 0 or size < 0 or at + size > most for at, size, most in zip(begin, shape, whole, strict=True)
    ):
        raise SchemeError(
            compose(
                given=f"a region of shape {tuple(shape)} at offset {begin} in a tensor of shape {whole}",
                needed="as many numbers in each, and a region inside the tensor",
                instead="offset=(0, ...), global_shape=tensor.shape for the whole",
            )
        )
    strides = [math.prod(whole[axis + 1 :]) for axis in range(len(whole))]
    first = sum(at * stride for at, stride in zip(begin, strides, strict=True))
    inner = len(whole)
    while inner > 0 and shape[inner - 1] == whole[inner - 1]:
        inner -= 1
    inner = max(inner - 1, 0)
    outer = [(size, stride) for size, stride in zip(shape[:inner], strides, strict=False) if size != 1]
    return Region(
        first=first,
        length=math.prod(shape[inner:]),
        sizes=tuple(size for size, _ in outer),
        strides=tuple(stride for _, stride in outer),
    )
