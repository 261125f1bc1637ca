"""Weights that are mostly zero: identity maps and sparse connections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fanin.fans import Axes, Fans, Shape
from fanin.schemes.base import Expected, Scheme, matrix_of, register, require_number


@register
@dataclass(frozen=True, slots=True)
class Identity(Scheme):
    """Output i of every group is ``gain`` times input i: a diagonal, for kernels at position ``(k//2, …)``.

    For recurrent ReLU networks (IRNN: Le, Jaitly & Hinton 2015). In a rectangular weight the outputs beyond
    min(in, out) are zero, as in ``torch.nn.init.eye_`` and ``dirac_``.

    >>> Identity().expected(Fans(4, 4))
    Expected(mean=0.25, std=0.4330127018922193)
    """

    gain: float = 1.0
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number("Identity", "gain", self.gain)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        matrix = matrix_of(fans, shape, axes)
        share = min(matrix.rows, matrix.columns) / matrix.entries
        return Expected(self.gain * share, abs(self.gain) * math.sqrt(share * (1 - share)))

    def scaled(self, factor: float) -> Identity:
        return Identity(self.gain * factor)

    @property
    def label(self) -> str:
        return "identity" + ("" if self.gain == 1 else f" × {self.gain:.4g}")

    @property
    def sources(self) -> tuple[str, ...]:
        return ("le2015", "zagoruyko2017")


def Dirac(gain: float = 1.0) -> Identity:
    """The identity as a convolution is written (Zagoruyko & Komodakis 2017): a centre tap for each channel.

    Groups come from the layer, so unlike in ``torch.nn.init.dirac_`` they need not be given.

    >>> round(Dirac().expected(Fans(36, 36), (8, 4, 3, 3), Axes(groups=2)).mean, 4)
    0.0278
    """
    return Identity(gain)


@register
@dataclass(frozen=True, slots=True)
class Sparse(Scheme):
    """Every unit has exactly ``incoming`` non-zero incoming weights, N(0, std²); the rest are 0.

    A unit's input then does not depend on the width of the layer below. With ``incoming`` above fan_in the weight is
    dense. With unit-variance inputs a unit has variance ``incoming · std²``.

    Source: Martens 2010, section 5 (15 weights, std 1).

    >>> Sparse().expected(Fans(60, 60)).std
    0.5

    Differs from ``torch.nn.init.sparse_``, which thins each column, so the number of weights that reach a unit varies.
    """

    incoming: int = 15
    std: float = 1.0
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number("Sparse", "incoming", self.incoming, minimum=1)
        require_number("Sparse", "std", self.std, minimum=0)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        _, incoming = matrix_of(fans, shape, axes).flat
        return Expected(0.0, self.std * math.sqrt(min(self.incoming / incoming, 1.0)))

    def scaled(self, factor: float) -> Sparse:
        return Sparse(self.incoming, self.std * abs(factor))

    @property
    def label(self) -> str:
        return f"sparse {self.incoming} × {self.std:.4g}"

    @property
    def sources(self) -> tuple[str, ...]:
        return ("martens2010",)
