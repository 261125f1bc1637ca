"""Uniformly distributed orthogonal matrices, as products of random reflections.

The QR decomposition of a Gaussian matrix, with the signs of R's diagonal made positive, has the Haar distribution
(Mezzadri 2007). Its Householder vectors are themselves independent Gaussian vectors of falling length (Stewart 1980),
so they can be drawn at once and multiplied together; nothing is decomposed. Blocks of 64 reflections are applied as
I − V·T·Vᵀ (Schreiber and Van Loan 1989), which makes the work matrix products.

The values follow `products`: they are the same on every processor and for every number of threads.
"""

from __future__ import annotations

import torch

from fanin.errors import SchemeError, compose
from fanin.sampling import philox
from fanin.sampling.device import square_root
from fanin.sampling.distributions import Normal
from fanin.sampling.filling import compiled, fill_
from fanin.sampling.products import multiply

BLOCK = 64
"""Reflections that are applied together. Part of the value contract: it decides the order of the sums."""


def orthogonal_rows(
    rows: int, cols: int, key: int, *, part: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Draw a (rows, cols) matrix uniformly from those with orthonormal rows, or columns where rows > cols.

    Q·Qᵀ = I for rows ≤ cols, Qᵀ·Q = I for rows ≥ cols; the distribution is invariant under rotation from either side.

    Args:
        rows, cols: the shape, each at least 0.
        key: the tensor's key, `philox.key(seed, name)`.
        part: which matrix, where one parameter holds several; 0 ≤ part < 2³².
        dtype: torch.float32, or torch.float64 for a matrix drawn and multiplied in double precision. Round the
            former once for narrower dtypes.

    Returns:
        A new contiguous tensor on the CPU.

    Raises:
        SchemeError: another dtype, or a negative size.

    >>> q = orthogonal_rows(3, 5, key=1)
    >>> torch.allclose(q @ q.T, torch.eye(3), atol=1e-6)
    True

    Source: Stewart, "The efficient generation of random orthogonal matrices", SIAM J. Numer. Anal. 17 (1980).
    Differs from torch: `torch.nn.init.orthogonal_` decomposes a Gaussian matrix, on one processor's library.
    """
    if dtype not in (torch.float32, torch.float64) or min(rows, cols) < 0:
        raise SchemeError(
            compose(
                given=f"an orthogonal matrix of shape ({rows}, {cols}) and dtype {dtype}",
                needed="sizes of at least 0, and torch.float32 or torch.float64",
                instead="orthogonal_rows(rows, cols, key).to(dtype)",
            )
        )
    q = torch.empty(rows, cols, dtype=dtype, device="cpu")
    tall = q if rows >= cols else q.T
    cpu = compiled()
    if cpu is None:
        tall.copy_(_orthogonal_columns(max(rows, cols), min(rows, cols), key, part, dtype))
    elif q.numel() > 0:
        cpu.fill_orthogonal(tall.numpy(), key, part)
    return q


def _orthogonal_columns(length: int, count: int, key: int, part: int, dtype: torch.dtype) -> torch.Tensor:
    """Multiply H₁ ⋯ H_count into the first `count` columns of the identity, and give the columns their signs."""
    q = torch.eye(length, count, dtype=dtype, device="cpu")
    for first in reversed(range(0, count, BLOCK)):
        vectors = _gaussian_rows(length, count, first, key, part, dtype)
        signs = _normalize(vectors)
        corner = q[first:, first:]
        corner -= multiply(vectors.T, multiply(_triangle(vectors), multiply(vectors, corner)))
        # QR with a positive diagonal is unique, and only its signs make Q uniform. Column j is complete up to the
        # reflections before it, which do not care for its sign.
        corner[:, : len(signs)] *= -signs
    return q


def _gaussian_rows(length: int, count: int, first: int, key: int, part: int, dtype: torch.dtype) -> torch.Tensor:
    """Draw the Gaussian vectors of reflections `first` … `first + 63`: row j is zero up to its own column j."""
    rows = torch.empty(min(BLOCK, count - first), length - first, dtype=dtype, device="cpu")
    where = {"global_shape": (count, length), "offset": (first, first)}
    return fill_(rows, Normal(0.0, 1.0), key, lane=philox.MATRIX, part=part, **where).triu_()


def _normalize(rows: torch.Tensor) -> torch.Tensor:
    """Turn Gaussian vectors x into Householder vectors x / ‖x‖ ± e, in place, and return the signs of x₀.

    The squares are summed as a tree: element i and element i + ⌈width / 2⌉, until one is left.
    """
    total = rows * rows
    while total.shape[1] > 1:
        half = (total.shape[1] + 1) // 2
        rest = total[:, half:]
        total = total[:, :half].clone()
        total[:, : rest.shape[1]] += rest
    norm = square_root(total)
    head = rows.diagonal()
    head.masked_fill_(norm[:, 0] == 0, 1.0)  # a vector of length 1 can be drawn as 0, which has no direction
    signs = torch.ones_like(head).masked_fill_(head < 0, -1.0)
    rows /= norm.masked_fill(norm == 0, 1.0)
    head += signs
    return signs


def _triangle(vectors: torch.Tensor) -> torch.Tensor:
    """Return T of H₁ ⋯ H_b = I − Vᵀ·T·V for the rows of V: the inverse of triu(V·Vᵀ) with half its diagonal."""
    gram = multiply(vectors, vectors.T)
    rest = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for row in reversed(range(len(gram))):
        rest[row] /= gram[row, row] * 0.5
        rest[:row] -= gram[:row, row : row + 1] * rest[row]
    return rest
