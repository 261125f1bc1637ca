"""The laws: approximations, constants, cuts, errors, and the distributions themselves.

Statistical tests draw 2²⁰ values and allow five standard errors. The standard error of a standard deviation is then
0.07 %, so that a gain wrong by √2 lies 600 standard errors away.
"""

import math

import mpmath
import numba
import numpy as np
import pytest
import torch
from scipy import stats

from fanin.errors import SchemeError
from fanin.sampling import Constant, Normal, TruncatedNormal, Uniform, cpu, device, fill_, key, variates
from fanin.sampling.distributions import resolve
from fanin.sampling.polynomials import DOUBLE, SINGLE

INFINITY = float("inf")
COUNT = 2**20
LAWS = [
    Uniform(-0.3, 0.7),
    Normal(0.5, 2.0),
    TruncatedNormal(0.0, 1.0, -2.0, 2.0),
    TruncatedNormal(0.0, 1.0, -3.0, 3.0),
    TruncatedNormal(0.0, 1.0, -0.01, 0.01),
    TruncatedNormal(1.0, 0.5, 0.9, 4.0),
    TruncatedNormal(0.0, 1.0, -INFINITY, INFINITY),
    TruncatedNormal(0.0, 1.0, 2.0, INFINITY),
    TruncatedNormal(0.0, 1.0, -9.0, -6.0),
]


def theory(law):
    if isinstance(law, Uniform):
        return stats.uniform(law.low, law.high - law.low)
    if isinstance(law, Normal):
        return stats.norm(law.mean, law.std)
    cuts = ((cut - law.mean) / law.std for cut in (law.low, law.high))
    return stats.truncnorm(*cuts, law.mean, law.std)


def draw(law, count=COUNT, name="w", seed=0, dtype=torch.float32):
    return fill_(torch.empty(count, dtype=dtype), law, key(seed, name)).double().numpy()


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kolmogorov_smirnov(law, dtype):
    assert stats.kstest(draw(law, COUNT // 4, dtype=dtype), theory(law).cdf).pvalue > 1e-3


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_moments_to_the_fourth(law):
    expected = theory(law)
    center, scale = expected.mean(), expected.std()
    drawn = (draw(law) - center) / scale
    # Moments of the standardised law, up to the eighth, by quadrature over its quantiles.
    grid = (expected.ppf((np.arange(400_000) + 0.5) / 400_000) - center) / scale
    for power in (1, 2, 3, 4):
        moment, square = (grid**power).mean(), (grid ** (2 * power)).mean()
        error = math.sqrt((square - moment**2) / COUNT)
        assert abs((drawn**power).mean() - moment) < 5 * error + 1e-4


@pytest.mark.parametrize("law", [Normal(0.0, 1.0), TruncatedNormal(0.0, 1.0, -INFINITY, INFINITY)], ids=str)
def test_tails(law):
    drawn = np.abs(draw(law, 2**24, name="tails"))
    for bound in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(bound) * drawn.size
        assert abs((drawn > bound).sum() - expected) < 5 * math.sqrt(expected)
    assert drawn.max() > 5


@pytest.mark.parametrize(("cut", "ratio"), [(1.0, 0.5395600604), (2.0, 0.8796256610), (3.0, 0.9865783926)])
def test_truncation_takes_the_stated_part_of_the_std(cut, ratio):
    drawn = draw(TruncatedNormal(0.0, 0.02, -0.02 * cut, 0.02 * cut))
    assert drawn.std() == pytest.approx(0.02 * ratio, rel=5 / math.sqrt(2 * COUNT))
    corrected = draw(TruncatedNormal(0.0, 0.02 / ratio, -0.02 * cut / ratio, 0.02 * cut / ratio))
    assert corrected.std() == pytest.approx(0.02, rel=5 / math.sqrt(2 * COUNT))


@pytest.mark.parametrize("law", [law for law in LAWS if not isinstance(law, Normal)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_lies_outside(law, dtype):
    drawn = draw(law, dtype=dtype)
    assert law.low <= drawn.min()
    assert drawn.max() < law.high if isinstance(law, Uniform) else drawn.max() <= law.high
    if dtype is torch.float64:
        assert len(np.unique(drawn)) > 0.999 * COUNT


@pytest.mark.parametrize("law", [law for law in LAWS if isinstance(law, TruncatedNormal)], ids=str)
@pytest.mark.parametrize("precision", [SINGLE, DOUBLE], ids=lambda precision: precision.name)
def test_extreme_words(law, precision):
    """The words at both ends and around the turn: finite, inside, monotonous, and alike in kernel and torch."""
    turn = resolve(law, precision).turn
    ends = [0, 1, 2, max(turn - 1, 0), turn, min(turn + 1, precision.last), precision.last - 1, precision.last]
    words = torch.tensor(sorted(ends) * 8).view(1, 64)
    values = device._truncated(words, resolve(law, precision), precision).numpy()
    assert np.isfinite(values).all()
    assert law.low <= values.min()
    assert values.max() <= law.high
    direction = -1 if resolve(law, precision).side < 0 else 1
    assert (np.diff(values[0, :8]) * direction >= 0).all()

    kernel = numba.njit(lambda words, values, numbers: variates.draw_values(words, values, numbers))
    drawn = np.empty(64, precision.scalar)
    kernel(words.numpy().astype(precision.word).reshape(64), drawn, cpu._prepare(law, precision))
    assert np.array_equal(drawn, values.reshape(64))


def test_extreme_radii():
    words = torch.zeros(1, 64, dtype=torch.int64)
    words[0, 1] = SINGLE.last
    values = device._normal(words, resolve(Normal(0.0, 1.0), SINGLE), SINGLE)[0]
    assert values[0] == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)
    assert values[1] == 0
    assert values[32] == 0


def test_uniform_words_are_uniform():
    counts = np.bincount((draw(Uniform(0.0, 256.0))).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3
    low_bits = np.bincount((draw(Uniform(0.0, 2.0**24)) % 256).astype(int), minlength=256)
    assert stats.chisquare(low_bits).pvalue > 1e-3


NEIGHBOURS = {
    "names": lambda: (draw(Normal(0, 1), name="blocks.0.weight"), draw(Normal(0, 1), name="blocks.1.weight")),
    "seeds": lambda: (draw(Normal(0, 1), seed=0), draw(Normal(0, 1), seed=1)),
    "rows": lambda: (draw(Normal(0, 1))[:-1024], draw(Normal(0, 1))[1024:]),
    "columns": lambda: (draw(Normal(0, 1))[:-1], draw(Normal(0, 1))[1:]),
    "pairs": lambda: tuple(draw(Normal(0, 1)).reshape(-1, 2, 32).transpose(1, 0, 2).reshape(2, -1)),
    "words": lambda: tuple(draw(Uniform(0, 1)).reshape(-1, 4, 16).transpose(1, 0, 2).reshape(4, -1)[:2]),
    "groups": lambda: (draw(Uniform(0, 1))[:-64], draw(Uniform(0, 1))[64:]),
    "laws": lambda: (draw(Normal(0, 1), seed=3), draw(Uniform(0, 1), seed=4)),
}


@pytest.mark.parametrize("which", NEIGHBOURS)
def test_neighbours_are_uncorrelated(which):
    a, b = ((sample - sample.mean()) / sample.std() for sample in NEIGHBOURS[which]())
    for first, second in ((a, b), (a**2, b**2), (a, b**2), (np.abs(a), np.sign(b))):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(a))


@pytest.mark.parametrize("law", [*LAWS[:4], LAWS[5]], ids=str)
def test_complex_parts_share_the_variance(law):
    drawn = fill_(torch.empty(COUNT, dtype=torch.complex64), law, key(0, "w")).numpy()
    expected = theory(law)
    spread = np.abs(drawn - law.mean if not isinstance(law, Uniform) else drawn - expected.mean()) ** 2
    if not isinstance(law, TruncatedNormal) or law.low == -law.high:  # otherwise the mean is not the law's parameter
        error = spread.std() / math.sqrt(COUNT)
        assert abs(spread.mean() - expected.var()) < 5 * error
        assert abs(drawn.mean() - expected.mean()) < 5 * expected.std() / math.sqrt(COUNT)
    assert abs(np.corrcoef(drawn.real, drawn.imag)[0, 1]) < 5 / math.sqrt(COUNT)


def horner(coefficients, x):
    return mpmath.polyval([mpmath.mpf(c) for c in reversed(coefficients)], x)


@pytest.mark.parametrize(("precision", "column"), [(SINGLE, 0), (DOUBLE, 1)], ids=["single", "double"])
def test_approximations_are_as_good_as_they_say(precision, column):
    with mpmath.workdps(40):
        grid = [mpmath.mpf(i) / 100 for i in range(101)]
        for part in grid:
            m = 2 ** (part - mpmath.mpf("0.5"))
            s = (m - 1) / (m + 1)
            if s != 0:
                assert abs(s * horner(precision.logarithm, s**2) / mpmath.log(m) - 1) < (2e-9, 7e-19)[column]
            x = part - mpmath.mpf("0.5")
            if x != 0:
                exact = mpmath.sin(mpmath.pi / 2 * x)
                assert abs(x * horner(precision.sine, x**2) / exact - 1) < (4e-8, 5e-17)[column]
            assert abs(horner(precision.cosine, x**2) / mpmath.cos(mpmath.pi / 2 * x) - 1) < (9e-9, 3e-17)[column]
        start = mpmath.mpf(precision.tail_start)
        for part in grid:
            q = start * (mpmath.mpf("0.4999") / start) ** part
            x = (1 - 2 * q) * horner(precision.middle, -mpmath.log(4 * q * (1 - q)))
            assert abs(relative_error(x, q)) < (3e-8, 8e-17)[column]
            q = mpmath.mpf("1e-37") * (start / mpmath.mpf("1e-37")) ** part
            r = mpmath.sqrt(-mpmath.log(q))
            x = horner(precision.tail, r) / horner(precision.tail_below, r)
            assert abs(relative_error(x, q)) < (2e-8, 2e-17)[column]


def relative_error(x, q):
    """How far, in parts of x, x is from the point whose upper tail is q: one step of Newton's."""
    tail, density = mpmath.erfc(x / mpmath.sqrt(2)) / 2, mpmath.exp(-(x**2) / 2) / mpmath.sqrt(2 * mpmath.pi)
    return (q - tail) / density / x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant(math.nan), "needed: a finite number"),
        (lambda: Uniform(1.0, 0.0), "write instead: Uniform\\(low=0.0, high=1.0\\)"),
        (lambda: Uniform(0.0, INFINITY), "needed: a finite number"),
        (lambda: Normal(0.0, -1.0), "write instead: std=1.0"),
        (lambda: TruncatedNormal(0.0, 1.0, 2.0, 2.0), "needed: low < high"),
        (lambda: TruncatedNormal(0.0, 1.0, math.nan, 2.0), "needed: low < high"),
        (lambda: TruncatedNormal(0.0, 1.0, 20.0, 30.0), "cuts that leave at least 1e-27"),
        (lambda: TruncatedNormal(3.0, 0.0, 0.0, 1.0), "a mean between the cuts"),
        (lambda: draw(Normal(0.0, 1e39), 1), "numbers within the range of float32"),
        (lambda: draw(Uniform(-3e38, 3e38), 1), "numbers within the range of float32"),
    ],
)
def test_impossible_laws_are_refused(build, message):
    with pytest.raises(SchemeError, match=message):
        build()


def test_degenerate_laws():
    assert (draw(Uniform(0.25, 0.25), 100) == 0.25).all()
    assert (draw(Normal(0.25, 0.0), 100) == 0.25).all()
    assert (draw(TruncatedNormal(0.25, 0.0, 0.25, 1.0), 100) == 0.25).all()
    assert (draw(TruncatedNormal(0.25, 0.0, -1.0, 0.25), 100) == 0.25).all()
    assert draw(Normal(0.0, 1e39), 1, dtype=torch.float64).item() != 0
