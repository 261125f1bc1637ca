"""Matrix products whose every bit is decided: the order of the sums is part of the value contract.

A library's product sums in an order that depends on the processor and on the number of threads. Here
(A·B)[i, j] = Σ over chunks of 256 k, in ascending order, of Σ over the chunk's k, in ascending order, of
A[i, k] · B[k, j]; each product and each sum is rounded, and both kinds of sum begin at 0.
"""

from __future__ import annotations

import torch

CHUNK = 256


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a · b for a of shape (m, k) and b of shape (k, n), in the dtype of both.

    >>> multiply(torch.ones(2, 3), torch.ones(3, 1)).flatten().tolist()
    [3.0, 3.0]
    """
    total = a.new_zeros(a.shape[0], b.shape[1])
    for begin in range(0, a.shape[1], CHUNK):
        partial = torch.zeros_like(total)
        for k in range(begin, min(begin + CHUNK, a.shape[1])):
            partial = partial + a[:, k : k + 1] * b[k]
        total = total + partial
    return total
