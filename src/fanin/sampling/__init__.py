"""Values: the stream behind (seed, name, index), and the distributions drawn from it."""

from fanin.sampling.distributions import Constant, Law, Normal, TruncatedNormal, Uniform
from fanin.sampling.filling import fill_
from fanin.sampling.haar import orthogonal_rows
from fanin.sampling.philox import CHOICE, IMAGINARY, MATRIX, VALUES, VERSION, key

__all__ = [
    "CHOICE",
    "IMAGINARY",
    "MATRIX",
    "VALUES",
    "VERSION",
    "Constant",
    "Law",
    "Normal",
    "TruncatedNormal",
    "Uniform",
    "fill_",
    "key",
    "orthogonal_rows",
]
