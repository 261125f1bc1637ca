"""Element-wise distributions with a scale of their own: normal, uniform, truncated normal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

from fanin.errors import SchemeError, compose
from fanin.fans import Axes, Fans, Shape
from fanin.schemes.base import Expected, Scheme, register, require_choice, require_number

Bounds = Literal["sigma", "absolute"]
_STANDARD = NormalDist()


@register
@dataclass(frozen=True, slots=True)
class Normal(Scheme):
    """N(mean, std²) for every element, untruncated.

    A fixed small std (0.01, 0.02) ignores the fans: through L plain layers the signal shrinks like
    ``(std · √fan_in / gain)^L``. It suits networks whose norms restore the scale.

    >>> Normal(std=0.02).expected(Fans(768, 768))
    Expected(mean=0.0, std=0.02)
    """

    std: float = 1.0
    mean: float = 0.0

    def __post_init__(self) -> None:
        require_number("Normal", "std", self.std, minimum=0)
        require_number("Normal", "mean", self.mean)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        return Expected(self.mean, self.std)

    def scaled(self, factor: float) -> Normal:
        return Normal(self.std * abs(factor), self.mean * factor)

    @property
    def label(self) -> str:
        return f"normal {self.std:.4g}" + (f" around {self.mean:.4g}" if self.mean else "")


@register
@dataclass(frozen=True, slots=True)
class Uniform(Scheme):
    """U[low, high) for every element: mean ``(low + high)/2``, std ``(high − low)/√12``.

    >>> Uniform(-0.0625, 0.0625).label
    'uniform ±0.0625'
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require_number("Uniform", "low", self.low)
        require_number("Uniform", "high", self.high, minimum=self.low)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        return Expected((self.low + self.high) / 2, (self.high - self.low) / math.sqrt(12))

    def scaled(self, factor: float) -> Uniform:
        low, high = sorted((self.low * factor, self.high * factor))
        return Uniform(low, high)

    @property
    def label(self) -> str:
        if self.low == -self.high:
            return f"uniform ±{self.high:.4g}"
        return f"uniform [{self.low:.4g}, {self.high:.4g})"


@register
@dataclass(frozen=True, slots=True)
class TruncatedNormal(Scheme):
    """A normal distribution restricted to ``[low, high]``.

    Two conventions differ in every library, so both are said here:

    - ``bounds="sigma"``: low and high count standard deviations of the parent normal (JAX, TensorFlow, OLMo);
      ``bounds="absolute"``: they are values (torch, timm), where ``std=0.02`` with ±2 cuts at ±100σ: nothing.
    - ``corrected=False``: ``std`` is the parent's, and what comes out is narrower (±2σ: ×0.8796, so BERT's 0.02 is
      really 0.0176); ``corrected=True``: ``std`` is what comes out.

    Drawn from the inverse distribution function, never by rejection.

    >>> round(TruncatedNormal(std=0.02).expected(Fans(1, 1)).std, 7)
    0.0175925
    >>> TruncatedNormal(std=0.0625, corrected=True).parent_std
    0.07105295...

    Raises:
        SchemeError: low is not below high, or the interval is so far out that it holds nothing.

    Differs from ``torch.nn.init.trunc_normal_``, which is ``bounds="absolute", corrected=False``.
    """

    std: float = 1.0
    mean: float = 0.0
    low: float = -2.0
    high: float = 2.0
    bounds: Bounds = "sigma"
    corrected: bool = False

    def __post_init__(self) -> None:
        require_number("TruncatedNormal", "std", self.std, minimum=0)
        for field in ("mean", "low", "high"):
            require_number("TruncatedNormal", field, getattr(self, field))
        require_choice("TruncatedNormal", "bounds", self.bounds, get_args(Bounds))
        if self.low >= self.high:
            raise SchemeError(compose(f"TruncatedNormal(low={self.low}, high={self.high})", "low below high"))
        if self.corrected and self.bounds == "absolute":
            raise SchemeError(
                compose(
                    "TruncatedNormal(bounds='absolute', corrected=True)",
                    "bounds in σ for a corrected std",
                    "an absolute interval need not admit the std that is asked for",
                    "TruncatedNormal(std=…, low=-2, high=2, corrected=True)",
                )
            )
        if self.std and _mass(*self.sigmas) < 1e-6:
            raise SchemeError(
                compose(f"the interval [{self.low}, {self.high}]", "an interval that holds some of the normal's mass")
            )

    @property
    def sigmas(self) -> tuple[float, float]:
        """The bounds in standard deviations of the parent normal, around its mean."""
        if self.bounds == "sigma":
            return self.low, self.high
        return (self.low - self.mean) / self.std, (self.high - self.mean) / self.std

    @property
    def parent_std(self) -> float:
        """The standard deviation of the normal before it is truncated."""
        return self.std / truncated_moments(*self.sigmas).std if self.corrected else self.std

    @property
    def limits(self) -> tuple[float, float]:
        """The bounds as values."""
        if self.bounds == "absolute":
            return self.low, self.high
        return self.mean + self.low * self.parent_std, self.mean + self.high * self.parent_std

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        if not self.std:
            return Expected(self.mean, 0.0)
        inner = truncated_moments(*self.sigmas)
        return Expected(self.mean + self.parent_std * inner.mean, self.parent_std * inner.std)

    def scaled(self, factor: float) -> TruncatedNormal:
        low, high = (self.low, self.high) if factor >= 0 else (-self.high, -self.low)
        if self.bounds == "absolute":
            low, high = low * abs(factor), high * abs(factor)
        return TruncatedNormal(self.std * abs(factor), self.mean * factor, low, high, self.bounds, self.corrected)

    @property
    def label(self) -> str:
        unit = "σ" if self.bounds == "sigma" else ""
        cut = f"±{self.high:g}{unit}" if self.low == -self.high else f"[{self.low:g}, {self.high:g}]{unit}"
        return f"truncated normal {self.std:.4g} {cut}" + (" corrected" if self.corrected else "")


def truncated_moments(low: float, high: float) -> Expected:
    """Mean and std of N(0, 1) restricted to ``[low, high]``.

    With φ, Φ the normal density and distribution, Z = Φ(high) − Φ(low):
    mean ``(φ(low) − φ(high))/Z``, variance ``1 + (low·φ(low) − high·φ(high))/Z − mean²``.

    >>> truncated_moments(-2, 2).std
    0.87962566...
    """
    mass = _mass(low, high)
    at_low, at_high = _STANDARD.pdf(low), _STANDARD.pdf(high)
    mean = (at_low - at_high) / mass
    variance = 1 + (low * at_low - high * at_high) / mass - mean * mean
    return Expected(mean, math.sqrt(variance))


def _mass(low: float, high: float) -> float:
    """P(low ≤ z ≤ high), from the nearer tail so that it does not cancel."""
    return (
        (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2
        if low > 0
        else (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2))) / 2
    )
