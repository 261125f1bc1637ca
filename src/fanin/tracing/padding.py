"""How much of a convolution's kernel lies inside of its input, where zeros pad it."""

from __future__ import annotations

import math
from typing import Any

from fanin.tracing.records import Operation

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


def covered(operation: Operation) -> float:
    """The share of a kernel's taps that meet the input and no zeros of the padding, averaged over the outputs.

    1 without padding, and for all other operations; (1 − 2/3n)² for a 3×3 kernel on n×n pixels padded to their size.
    """
    axes = _CONVOLUTIONS.get(operation.target, 0)
    given, weight = operation.of("input"), operation.of("weight")
    if not axes or given is None or weight is None or len(given.shape) < axes:
        return 1.0
    padding = _each(operation.arguments.get("padding", 0), axes)
    sizes, made = given.shape[-axes:], operation.output.shape[-axes:]
    kernel = weight.shape[-axes:]
    stride, dilation = (_each(operation.arguments.get(name, 1), axes) or [1] * axes for name in ("stride", "dilation"))
    shares = []
    for axis, (size, out, taps) in enumerate(zip(sizes, made, kernel, strict=True)):
        before = dilation[axis] * (taps - 1) // 2 if padding is None else padding[axis]
        places = (place * stride[axis] + tap * dilation[axis] - before for place in range(out) for tap in range(taps))
        shares.append(sum(0 <= place < size for place in places) / max(out * taps, 1))
    return math.prod(shares)


def _each(given: Any, axes: int) -> list[int] | None:
    """An argument for each axis; None for padding that keeps the size."""
    if isinstance(given, str):
        return None if given == "same" else [0] * axes
    numbers = [int(number) for number in given] if isinstance(given, list | tuple) else [int(given)]
    return numbers if len(numbers) == axes else numbers[:1] * axes
