"""Orthogonal matrices: orthonormal, Haar, and the same for every way of asking."""

import pytest
import torch

from fanin.errors import SchemeError
from fanin.sampling import haar, orthogonal_rows
from fanin.sampling.products import CHUNK, multiply

SHAPES = [(1, 1), (2, 2), (3, 7), (7, 3), (64, 64), (65, 65), (64, 200), (200, 130), (1, 50), (50, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
def test_rows_or_columns_are_orthonormal(shape, dtype, error):
    q = orthogonal_rows(*shape, key=5, dtype=dtype)
    short = q if shape[0] <= shape[1] else q.T
    assert q.shape == shape
    assert q.is_contiguous()
    assert q.dtype is dtype
    assert (short.double() @ short.double().T - torch.eye(min(shape), dtype=torch.float64)).abs().max() <= error


def test_wide_is_tall_transposed():
    assert torch.equal(orthogonal_rows(30, 90, key=1), orthogonal_rows(90, 30, key=1).T)


def test_double_agrees_with_single():
    single, double = orthogonal_rows(100, 80, key=1), orthogonal_rows(100, 80, key=1, dtype=torch.float64)
    assert (single - double).abs().max() < 2e-6


@pytest.mark.parametrize("shape", [*SHAPES, (300, 70)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_are_the_definition_bit_for_bit(shape, dtype, threads, monkeypatch):
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    drawn = orthogonal_rows(*shape, key=8, part=3, dtype=dtype)
    torch.set_num_threads(kept)
    monkeypatch.setattr(haar, "compiled", lambda: None)
    assert torch.equal(drawn, orthogonal_rows(*shape, key=8, part=3, dtype=dtype))


def test_parts_and_keys_differ():
    matrices = [orthogonal_rows(8, 8, key=key, part=part) for key in (1, 2) for part in (0, 1)]
    assert len({tuple(matrix.flatten().tolist()) for matrix in matrices}) == 4


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty(shape):
    assert orthogonal_rows(*shape, key=1).shape == shape


def test_refuses_half_precision():
    with pytest.raises(SchemeError, match="needed: sizes of at least 0, and torch"):
        orthogonal_rows(4, 4, key=1, dtype=torch.bfloat16)


def test_is_qr_of_a_gaussian_with_a_positive_diagonal():
    # Undo the reflections of the first column: QR's Q is unique given that R's diagonal is positive, so the first
    # column of Q must be the first Gaussian vector itself, normalised, with its own sign.
    from fanin.sampling import Normal, fill_, philox

    gaussian = fill_(torch.empty(6, 9, dtype=torch.float64), Normal(0.0, 1.0), key=4, lane=philox.MATRIX)[0]
    column = orthogonal_rows(9, 6, key=4, dtype=torch.float64)[:, 0]
    assert torch.allclose(column, gaussian / gaussian.norm(), atol=1e-14)


def test_product_sums_in_the_stated_order():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, CHUNK + 44, generator=generator), torch.randn(CHUNK + 44, 2, generator=generator)
    expected = torch.zeros(3, 2)
    for chunk in (range(CHUNK), range(CHUNK, CHUNK + 44)):
        partial = torch.zeros(3, 2)
        for k in chunk:
            partial = partial + a[:, k, None] * b[None, k]
        expected = expected + partial
    assert torch.equal(multiply(a, b), expected)
    assert torch.allclose(expected, a @ b, atol=1e-4)
