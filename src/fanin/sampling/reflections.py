"""The kernels behind `haar`: blocks of reflections, prepared and applied; bit for bit what `haar` does without them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fanin.sampling.instructions import constant, kernel
from fanin.sampling.products import CHUNK
from fanin.sampling.tiles import ROWS, tile, tile_columns

BLOCK = 64
"""Reflections in a block, and the size of its square matrices; every tile's rows and columns divide it."""
PANEL = 2 * BLOCK
"""Columns of Q that a thread carries through all blocks, while they stay in its cache."""


def padded(length: int) -> int:
    """Round a number of rows up to whole tiles. Rows and reflections of zeros change nothing."""
    return -(-length // 8) * 8


@kernel
def prepare_block(gaussians: Any, vectors: Any, triangle: Any, signs: Any) -> None:
    """Turn the Gaussian rows of a block into Householder vectors and the triangle that joins them.

    Args:
        gaussians: (size, length); what lies below the diagonal is not looked at; overwritten.
        vectors: receives the Householder vectors as columns, flat (padded(length), BLOCK).
        triangle: receives T, flat (BLOCK, BLOCK).
        signs: receives the sign of each vector's first Gaussian.
    """
    size, length = gaussians.shape
    squares = np.empty(length, gaussians.dtype)
    for row in range(size):
        x = gaussians[row]
        zero, one = constant(x[0], "0"), constant(x[0], "1")
        x[:row] = zero
        norm = np.sqrt(sum_of_squares(x, squares))
        if norm == zero:
            x[row], norm = one, one
        signs[row] = -one if x[row] < zero else one
        for i in range(row, length):
            x[i] = x[i] / norm
        x[row] += signs[row]
    vectors[:] = constant(vectors[0], "0")
    for i in range(length):
        for row in range(size):
            vectors[i * BLOCK + row] = gaussians[row, i]
    gram = np.zeros(BLOCK * BLOCK, gaussians.dtype)
    multiply_transposed(gram, vectors, vectors, BLOCK)
    invert_triangle(gram, triangle, size)


@kernel
def sum_of_squares(x: Any, squares: Any) -> Any:
    """Sum as a tree: element i and element i + ⌈width / 2⌉, until one is left."""
    width = len(x)
    for i in range(width):
        squares[i] = x[i] * x[i]
    while width > 1:
        half = (width + 1) // 2
        for i in range(width - half):
            squares[i] = squares[i] + squares[half + i]
        width = half
    return squares[0]


@kernel
def invert_triangle(gram: Any, inverse: Any, size: Any) -> None:
    """Invert the upper triangle of a Gram matrix with half its diagonal, from the last row up."""
    inverse[:] = constant(inverse[0], "0")
    for row in range(size):
        inverse[row * BLOCK + row] = constant(inverse[0], "1")
    for row in range(size - 1, -1, -1):
        pivot = gram[row * BLOCK + row] * constant(gram[0], "0.5")
        for column in range(BLOCK):
            inverse[row * BLOCK + column] /= pivot
        for above in range(row):
            factor = gram[above * BLOCK + row]
            for column in range(BLOCK):
                inverse[above * BLOCK + column] -= factor * inverse[row * BLOCK + column]


@kernel
def apply_blocks(panel: Any, first_column: Any, vectors: Any, starts: Any, triangles: Any) -> None:
    """Multiply a panel of Q's columns, flat (rows, PANEL), by the blocks that reach it, the last block first.

    Args:
        panel: columns `first_column` … of the identity; becomes those of H₁ ⋯ Hₙ times it.
        first_column: a multiple of PANEL.
        vectors: the Householder vectors of all blocks, one block behind the other.
        starts: where each block begins in `vectors`, and where the last ends.
        triangles: (blocks, BLOCK · BLOCK).
    """
    weights, joined = np.empty(BLOCK * PANEL, panel.dtype), np.empty(BLOCK * PANEL, panel.dtype)
    last = min(first_column // BLOCK + PANEL // BLOCK, len(triangles)) - 1
    for block in range(last, -1, -1):
        corner = panel[block * BLOCK * PANEL :]
        v = vectors[starts[block] : starts[block + 1]]
        weights[:] = constant(panel[0], "0")
        multiply_transposed(weights, v, corner, PANEL)
        joined[:] = constant(panel[0], "0")
        multiply_rows(joined, triangles[block], weights)
        subtract_rows(corner, v, joined)


@kernel
def multiply_transposed(c: Any, a: Any, b: Any, width: Any) -> None:
    """Add aᵀ · b to c, for a of (depth, BLOCK), b of (depth, width) and c of (BLOCK, width)."""
    depth = len(a) // BLOCK
    for k in range(0, depth, CHUNK):
        size = min(CHUNK, depth - k)
        for j in range(0, width, tile_columns(c)):
            for i in range(0, BLOCK, ROWS):
                tile(1, c, i * width + j, width, a, k * BLOCK + i, 1, BLOCK, b, k * width + j, width, size)


@kernel
def multiply_rows(c: Any, a: Any, b: Any) -> None:
    """Add a · b to c, for a of (BLOCK, BLOCK), b and c of (BLOCK, PANEL)."""
    for j in range(0, PANEL, tile_columns(c)):
        for i in range(0, BLOCK, ROWS):
            tile(1, c, i * PANEL + j, PANEL, a, i * BLOCK, BLOCK, 1, b, j, PANEL, BLOCK)


@kernel
def subtract_rows(c: Any, a: Any, b: Any) -> None:
    """Subtract a · b from c, for a of (rows, BLOCK), b of (BLOCK, PANEL) and c of (rows, PANEL)."""
    for i in range(0, len(a) // BLOCK, ROWS):
        for j in range(0, PANEL, tile_columns(c)):
            tile(-1, c, i * PANEL + j, PANEL, a, i * BLOCK, BLOCK, 1, b, j, PANEL, BLOCK)
