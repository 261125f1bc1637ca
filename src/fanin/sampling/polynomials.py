"""The two precisions that values are computed in, each with its word length and its own approximations.

Library logarithms, sines and inverse distribution functions differ in their last bits from machine to machine. These
do not: each is a polynomial or a ratio of two, evaluated by Horner's rule with every product and every sum rounded.
The coefficients are minimax fits of the relative error, made with 50 digits; `tests/test_sampling_laws.py` holds the
errors to the bounds that are stated here.

| function | on | single | double |
|---|---|---|---|
| log m = s · L(s²), s = (m − 1) / (m + 1) | √½ ≤ m < √2 | 2e-9 | 7e-19 |
| sin(πx/2) = x · S(x²) | −½ ≤ x ≤ ½ | 4e-8 | 5e-17 |
| cos(πx/2) = C(x²) | −½ ≤ x ≤ ½ | 9e-9 | 3e-17 |
| −Φ⁻¹(q) = (1 − 2q) · M(−log 4q(1 − q)) | q ≥ 0.0013 | 3e-8 | 8e-17 |
| −Φ⁻¹(q) = T(r) / B(r), r = √(−log q) | q < 0.0013 | 2e-8 | 2e-17 |

(errors of the approximation with rounded coefficients, without the rounding of its evaluation)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Coefficients = tuple[float, ...]
"""Coefficients of a polynomial, the constant first."""


@dataclass(frozen=True)
class Precision:
    """A floating-point format, the words it takes and the approximations that suit it.

    Attributes:
        bits: how many bits of the stream one value takes.
        mantissa: how many of them, the leading ones, make a uniform variate.
        fraction: bits of the stored significand.
        root_half: the bit pattern of √½, where the logarithm splits off the exponent.
        log_two: log 2.
        logarithm, sine, cosine, middle, tail, tail_below: see the table of this module.
        tail_start: the probability q below which the tail's formula holds.
    """

    name: str
    bits: int
    mantissa: int
    fraction: int
    root_half: int
    log_two: float
    tail_start: float
    logarithm: Coefficients
    sine: Coefficients
    cosine: Coefficients
    middle: Coefficients
    tail: Coefficients
    tail_below: Coefficients

    @property
    def spare(self) -> int:
        """How many of the word's bits a uniform variate leaves out."""
        return self.bits - self.mantissa

    @property
    def unit(self) -> float:
        """The spacing of uniform variates."""
        return 2.0**-self.mantissa

    @property
    def step(self) -> float:
        """One over the number of words."""
        return 2.0**-self.bits

    @property
    def half_step(self) -> float:
        """What keeps a radius' uniform variate from 0."""
        return 2.0 ** -(self.bits + 1)

    @property
    def last(self) -> int:
        """The last word."""
        return (1 << self.bits) - 1

    @property
    def quadrant_shift(self) -> int:
        """How far an angle's two leading bits, its quadrant, are shifted down."""
        return self.bits - 2

    @property
    def inside(self) -> int:
        """The mask of an angle's bits within its quadrant."""
        return (1 << self.quadrant_shift) - 1

    @property
    def eighth(self) -> int:
        """An eighth of a turn, half a quadrant."""
        return 1 << (self.quadrant_shift - 1)

    @property
    def quarter_step(self) -> float:
        """One over the number of an angle's values within a quadrant."""
        return 2.0**-self.quadrant_shift

    @property
    def scalar(self) -> type[np.floating]:
        """The numpy type of this format."""
        return np.float32 if self.name == "float32" else np.float64

    @property
    def word(self) -> type[np.unsignedinteger]:
        """The numpy type of a word."""
        return np.uint32 if self.name == "float32" else np.uint64

    def round(self, number: float) -> float:
        """Round a double to this format."""
        with np.errstate(over="ignore"):
            return float(self.scalar(number))

    def at_least(self, bound: float) -> float:
        """Return the smallest number of this format that is not below the bound."""
        rounded = self.scalar(bound)
        return float(rounded if float(rounded) >= bound else np.nextafter(rounded, self.scalar(np.inf)))

    def at_most(self, bound: float) -> float:
        """Return the largest number of this format that is not above the bound."""
        return -self.at_least(-bound)

    def below(self, bound: float) -> float:
        """Return the largest number of this format that is strictly below the bound."""
        rounded = self.scalar(self.at_most(bound))
        return float(rounded if float(rounded) < bound else np.nextafter(rounded, self.scalar(-np.inf)))


def _single(*decimals: float) -> Coefficients:
    """Round the shortest decimals of single-precision coefficients back to them."""
    return tuple(float(np.float32(decimal)) for decimal in decimals)


# fmt: off
SINGLE = Precision(
    name="float32", bits=32, mantissa=24, fraction=23, root_half=0x3F3504F3,
    log_two=float(np.float32(0.6931472)), tail_start=float(np.float32(0.0013)),
    logarithm=_single(2.0, 0.6666682, 0.3997479, 0.2992579),
    sine=_single(1.5707964, -0.6459635, 0.07968003, -0.0046016583),
    cosine=_single(1.0, -1.2337005, 0.25366917, -0.020859938, 0.0009033646),
    middle=_single(
        1.2533141, 0.3281174, 0.016330363, -0.0032969078, -0.00018506097,
        6.598125e-05, 4.5669617e-06, -2.5726438e-06, 2.8769665e-07, -1.1278403e-08,
    ),
    tail=_single(-2.6775074, -2.1565735, 4.0945115, 2.6411388, 0.2422298),
    tail_below=_single(1.0, 3.3027444, 1.8703051, 0.17125614),
)
"""float32: one word a value. Also the values of bfloat16, float16 and float8, which are rounded once from these."""

DOUBLE = Precision(
    name="float64", bits=53, mantissa=53, fraction=52, root_half=0x3FE6A09E667F3BCD,
    log_two=0.6931471805599453, tail_start=0.0013,
    logarithm=(
        2.0, 0.6666666666666666, 0.4000000000000754, 0.28571428568806573, 0.2222222267862573,
        0.18181773613599625, 0.15387165980494158, 0.13248656189315988, 0.13263021898310134,
    ),
    sine=(
        1.5707963267948966, -0.6459640975062463, 0.07969262624616692, -0.00468175413531474,
        0.00016044118472567577, -3.5988427113031694e-06, 5.691926152223162e-08, -6.62743096097673e-10,
    ),
    cosine=(
        1.0, -1.2337005501361697, 0.25366950790104803, -0.020863480763352912, 0.0009192602748384763,
        -2.5202042362249193e-05, 4.7108740546764417e-07, -6.386319841653602e-09, 6.50609252493078e-11,
    ),
    middle=(
        1.2533141373155003, 0.32811687386921595, 0.01633323614704434, -0.003302332411551749,
        -0.00018108056012841993, 6.59185179550578e-05, 2.8567319827463142e-06, -1.4320380471706522e-06,
        -5.2646177177623465e-08, 3.213520245719203e-08, 1.1425448824611494e-09, -7.830484304137121e-10,
        -7.591967029567322e-12, 1.476087951265554e-11, -3.9359932292493274e-13, 4.650056020726209e-13,
        -3.7284529040636565e-13, 1.0602344997117535e-13, -1.7045809791878703e-14, 1.7342642228933818e-15,
        -1.1225730067485405e-16, 4.2702225091628656e-18, -7.330734051446192e-20,
    ),
    tail=(
        -3.377658491227938, -23.79215819083982, -25.349008020319623, 14.27282494429667, 38.97893986232577,
        27.08313324735956, 8.03493394861124, 0.9842495328196393, 0.044296858592629176, 0.0005384836039244455,
    ),
    tail_below=(
        1.0, 12.304732537019802, 32.92817328592415, 36.07007701388499, 20.491617661110425,
        5.7589081933775805, 0.6972219514801764, 0.0313237656786059, 0.00038076268603354593,
    ),
)
"""float64: two words a value, the first of them the one that float32 takes."""
# fmt: on
