"""Orthogonal matrices: orthonormal, Haar, and the same for every way of asking."""

import pytest
import torch

from fanin.errors import SchemeError
from fanin.sampling import Normal, fill_, haar, orthogonal_rows, philox
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


# Statistics of the Haar measure on O(n), each allowed five standard errors over 4000 matrices. Without the signs of
# R's diagonal the first entry would be negative in every matrix: its mean would lie 50 standard errors from 0.
SIZE = 4
MATRICES = 4000


@pytest.fixture(scope="module")
def matrices():
    return torch.stack([orthogonal_rows(SIZE, SIZE, key) for key in range(MATRICES)]).double()


def agrees(samples, expected):
    """Whether a mean over the first axis is within five standard errors of what is expected, element by element."""
    error = samples.std(dim=0) / len(samples) ** 0.5
    return bool(((samples.mean(dim=0) - expected).abs() < 5 * error).all())


def test_entries_have_haar_moments(matrices):
    n = SIZE
    assert agrees(matrices, 0)
    assert agrees(matrices**2, 1 / n)
    assert agrees(matrices**4, 3 / (n * (n + 2)))
    first, diagonal = matrices[:, 0, 0] ** 2, matrices[:, 1, 1] ** 2
    assert agrees(first * diagonal, (n + 1) / ((n - 1) * n * (n + 2)))
    assert agrees(first * matrices[:, 0, 1] ** 2, 1 / (n * (n + 2)))
    cycle = matrices[:, 0, 0] * matrices[:, 1, 1] * matrices[:, 0, 1] * matrices[:, 1, 0]
    assert agrees(cycle, -1 / ((n - 1) * n * (n + 2)))


def test_traces_have_haar_moments(matrices):
    # Diaconis and Shahshahani 1994: traces of powers of a Haar matrix have the moments of independent Gaussians.
    trace, of_square = matrices.diagonal(dim1=1, dim2=2).sum(1), (matrices @ matrices).diagonal(dim1=1, dim2=2).sum(1)
    assert agrees(trace, 0)
    assert agrees(trace**2, 1)
    assert agrees(trace**4, 3)
    assert agrees(of_square, 1)
    assert agrees((of_square - 1) ** 2, 2)
    assert agrees(trace * of_square, 0)


def test_reflections_and_rotations_are_equally_likely(matrices):
    assert agrees(torch.linalg.det(matrices), 0)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)])
def test_rectangles_are_haar(shape):
    drawn = torch.stack([orthogonal_rows(*shape, key, part=1) for key in range(MATRICES)]).double()
    assert agrees(drawn, 0)
    assert agrees(drawn**2, 1 / 5)
    assert agrees(drawn**4, 3 / 35)


def test_large_matrices_are_orthonormal():
    q = orthogonal_rows(1000, 1100, key=1)
    assert (q.double() @ q.double().T - torch.eye(1000)).abs().max() < 1e-5
    assert q.std() == pytest.approx(1100**-0.5, rel=1e-3)
