"""The laws that one element can follow, as data, and the constants that each precision draws them with."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import TypeAlias

from fanin.errors import SchemeError, compose
from fanin.sampling.polynomials import Precision

_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803")
_DIGITS = 80
_FARTHEST = 13
"""Beyond 13 standard deviations the tail's probability, 6e-39, is not a normal single-precision number: it is 0."""
_SMALLEST = 2.0**-126
"""The least normal single-precision number. Smaller tails count as 0: processors differ in what lies below."""
_LEAST_MASS = 1e-27
"""The least part of a normal that two cuts may leave: 2⁻³² of it is still a normal single-precision number."""


@dataclass(frozen=True)
class Constant:
    """Every element is `value`, and its imaginary part 0."""

    value: float

    def __post_init__(self) -> None:
        _require_finite(self, value=self.value)

    def parts(self) -> tuple[Constant, Constant]:
        """Return the laws of the real and of the imaginary part of a complex element."""
        return self, Constant(0.0)


@dataclass(frozen=True)
class Uniform:
    """U[low, high): low + (high − low) · u, u in {0, 1, …, 2²⁴ − 1} / 2²⁴ (2⁵³ in double precision).

    Standard deviation (high − low) / √12. `high` itself is never drawn in single or double precision; in a narrower
    dtype the largest values round to it.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_finite(self, low=self.low, high=self.high)
        if self.low > self.high:
            raise SchemeError(
                compose(given=f"{self}", needed="low ≤ high", instead=f"Uniform(low={self.high!r}, high={self.low!r})")
            )

    def parts(self) -> tuple[Uniform, Uniform]:
        """Return the laws of the real and the imaginary part: together they have this law's mean and variance."""
        center, reach = (self.low + self.high) / 2, (self.high - self.low) / 2 / math.sqrt(2)
        return Uniform(center - reach, center + reach), Uniform(-reach, reach)


@dataclass(frozen=True)
class Normal:
    """N(mean, std²): mean + std · z, with z from Box and Muller's transform, |z| ≤ 6.8 (8.7 in double precision)."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        _require_finite(self, mean=self.mean, std=self.std)
        _require_positive(self, self.std)

    def parts(self) -> tuple[Normal, Normal]:
        """Return the laws of the real and the imaginary part: together they have this law's mean and variance."""
        return Normal(self.mean, self.std / math.sqrt(2)), Normal(0.0, self.std / math.sqrt(2))


@dataclass(frozen=True)
class TruncatedNormal:
    """N(mean, std²) restricted to [low, high], drawn by the inverse of its distribution function, never by rejection.

    Args:
        mean: the mean of the parent normal.
        std: the standard deviation of the parent normal, before it is cut. The law itself has a smaller one.
        low, high: the cuts, as values of the element (not in standard deviations); ±inf for none.

    Raises:
        SchemeError: a number is not finite, std is negative, low is not below high, or the cuts leave less than
            1e-27 of the parent.

    >>> TruncatedNormal(mean=0.0, std=0.02, low=-0.04, high=0.04)
    TruncatedNormal(mean=0.0, std=0.02, low=-0.04, high=0.04)

    Differs from torch: `torch.nn.init.trunc_normal_` rejects and redraws; values here are a function of the word.
    """

    mean: float
    std: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _require_finite(self, mean=self.mean, std=self.std)
        _require_positive(self, self.std)
        if not self.low < self.high:
            raise SchemeError(
                compose(given=f"{self}", needed="low < high", instead="low=-2 * std, high=2 * std, around the mean")
            )
        if self.std == 0 and not self.low <= self.mean <= self.high:
            raise SchemeError(compose(given=f"{self}", needed="a mean between the cuts where std is 0"))
        mass = _masses(self).between
        if mass < _LEAST_MASS:
            raise SchemeError(
                compose(
                    given=f"{self}, which leaves {mass:.1e} of the normal",
                    needed=f"cuts that leave at least {_LEAST_MASS:.0e}",
                    why="beyond that a single-precision number cannot hold the probabilities",
                    instead="a mean that lies nearer to the cuts",
                )
            )

    def parts(self) -> tuple[TruncatedNormal, TruncatedNormal]:
        """Return the laws of the real and the imaginary part: together they have this law's mean and variance."""
        root = math.sqrt(2)
        low, high, std = (self.low - self.mean) / root, (self.high - self.mean) / root, self.std / root
        real = TruncatedNormal(self.mean, std, self.mean + low, self.mean + high)
        return real, TruncatedNormal(0.0, std, low, high)


RandomLaw: TypeAlias = Uniform | Normal | TruncatedNormal
"""What takes words of the stream."""

Law: TypeAlias = Constant | RandomLaw
"""What one element can follow."""


@dataclass(frozen=True)
class UniformConstants:
    """low + scale · u, at most `top`."""

    low: float
    scale: float
    top: float


@dataclass(frozen=True)
class NormalConstants:
    """mean + std · z."""

    mean: float
    std: float


@dataclass(frozen=True)
class TruncatedConstants:
    """mean + std · x between low and high, where x has the nearer tail probability q.

    A word W below `turn` lies under the mean: q = below + step · (W + ½), x = Φ⁻¹(q). The others count from the other
    end, W' = 2^bits − 1 − W: q = above + step · (W' + ½), x = −side · Φ⁻¹(q). `side` is −1 when both cuts lie below
    the mean: the law is then drawn as the mirror image of one above it. `turn` is 0 where no word lies under the mean.
    """

    mean: float
    std: float
    low: float
    high: float
    turn: int
    below: float
    above: float
    step: float
    side: float
    middle_only: bool
    """No word reaches the tail's formula: the cuts lie within three standard deviations."""


Constants: TypeAlias = UniformConstants | NormalConstants | TruncatedConstants


@functools.lru_cache(maxsize=1024)
def resolve(law: RandomLaw, precision: Precision) -> Constants:
    """Round a law's numbers to the precision that draws it.

    Raises:
        SchemeError: a number of the law is beyond the precision's range.
    """
    if isinstance(law, Uniform):
        low = precision.at_least(law.low)
        uniform = UniformConstants(low, precision.round(law.high - law.low), max(low, precision.below(law.high)))
        return _require_range(law, precision, uniform, uniform.low, uniform.scale)
    if isinstance(law, Normal):
        normal = NormalConstants(precision.round(law.mean), precision.round(law.std))
        return _require_range(law, precision, normal, normal.mean, normal.std)
    truncated = _resolve_truncated(law, precision)
    return _require_range(law, precision, truncated, truncated.mean, truncated.std)


def _resolve_truncated(law: TruncatedNormal, precision: Precision) -> TruncatedConstants:
    masses = _masses(law)
    below, above = (precision.round(tail) if tail >= _SMALLEST else 0.0 for tail in (masses.below, masses.above))
    turn = min(round(masses.under_mean * 2**precision.bits), 2**precision.bits - 1)
    low, high = precision.at_least(law.low), precision.at_most(law.high)
    ends = [above] if turn == 0 else [below, above]
    return TruncatedConstants(
        mean=precision.round(law.mean),
        std=precision.round(law.std),
        low=low,
        high=max(low, high),
        turn=turn,
        below=below,
        above=above,
        step=precision.round(masses.between / 2**precision.bits),
        side=-1.0 if masses.mirrored else 1.0,
        middle_only=min(ends) >= precision.tail_start,
    )


@dataclass(frozen=True)
class _Masses:
    """P(z < a), P(z > b), P(a ≤ z ≤ b), the share of the last with z < 0, and whether a, b stand for −b, −a."""

    below: float
    above: float
    between: float
    under_mean: float
    mirrored: bool


@functools.lru_cache(maxsize=1024)
def _masses(law: TruncatedNormal) -> _Masses:
    """Split a standard normal at the two cuts.

    Computed in decimal with 80 digits, so that no system's `erfc` has a say in the values.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        a, b = (_standardize(cut, law) for cut in (law.low, law.high))
        mirrored = b <= 0
        if mirrored:
            a, b = -b, -a
        above = _upper_tail(b)
        if a >= 0:
            return _Masses(0.0, float(above), float(_upper_tail(a) - above), 0.0, mirrored)
        below = _upper_tail(-a)
        between = 1 - below - above
        under_mean = (Decimal("0.5") - below) / between
        return _Masses(float(below), float(above), float(between), float(under_mean), mirrored)


def _standardize(cut: float, law: TruncatedNormal) -> Decimal:
    distance = Decimal(cut) - Decimal(law.mean)
    if law.std == 0:
        return distance * Decimal("Infinity") if distance else distance
    return distance / Decimal(law.std)


def _upper_tail(z: Decimal) -> Decimal:
    """Return P(Z > z) for z ≥ 0, by ½ − φ(z) · Σ z²ⁿ⁺¹ / (2n + 1)!!, all of whose terms are positive."""
    if z > _FARTHEST:
        return Decimal(0)
    term, total, odd = z, z, 1
    while term > total.scaleb(-_DIGITS):
        odd += 2
        term = term * z * z / odd
        total += term
    return Decimal("0.5") - total * (-z * z / 2).exp() / (2 * _PI).sqrt()


def _require_finite(law: object, **numbers: float) -> None:
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise SchemeError(compose(given=f"{name}={number!r} in {law}", needed="a finite number"))


def _require_positive(law: object, std: float) -> None:
    if std < 0:
        raise SchemeError(compose(given=f"{law}", needed="a standard deviation of at least 0", instead=f"std={-std!r}"))


def _require_range(law: Law, precision: Precision, constants: Constants, *numbers: float) -> Constants:
    if all(math.isfinite(number) for number in numbers):
        return constants
    raise SchemeError(
        compose(
            given=f"{law}",
            needed=f"numbers within the range of {precision.name}",
            why="values are computed in that precision before they are rounded to the tensor's dtype",
            instead="a smaller standard deviation, or ends that lie nearer to each other",
        )
    )
