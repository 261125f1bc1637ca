"""Schemes: the rule for one tensor, as data, one family a file."""

from fanin.schemes.base import REGISTRY, Expected, Scheme, register, require_scheme
from fanin.schemes.constant import Constant, Keep, Ones, Zeros
from fanin.schemes.identity import Dirac, Identity, Sparse
from fanin.schemes.normal import Normal, TruncatedNormal, Uniform, truncated_moments
from fanin.schemes.orthogonal import CentredOrthogonal, DeltaOrthogonal, LooksLinear, Orthogonal, ScaledOrthogonal
from fanin.schemes.packed import Packed
from fanin.schemes.variance import (
    VarianceScaling,
    glorot_normal,
    glorot_truncated_normal,
    glorot_uniform,
    he_normal,
    he_truncated_normal,
    he_uniform,
    kaiming_normal,
    kaiming_truncated_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_truncated_normal,
    lecun_uniform,
    xavier_normal,
    xavier_truncated_normal,
    xavier_uniform,
)

__all__ = [
    "REGISTRY",
    "CentredOrthogonal",
    "Constant",
    "DeltaOrthogonal",
    "Dirac",
    "Expected",
    "Identity",
    "Keep",
    "LooksLinear",
    "Normal",
    "Ones",
    "Orthogonal",
    "Packed",
    "ScaledOrthogonal",
    "Scheme",
    "Sparse",
    "TruncatedNormal",
    "Uniform",
    "VarianceScaling",
    "Zeros",
    "glorot_normal",
    "glorot_truncated_normal",
    "glorot_uniform",
    "he_normal",
    "he_truncated_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_truncated_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_truncated_normal",
    "lecun_uniform",
    "register",
    "require_scheme",
    "truncated_moments",
    "xavier_normal",
    "xavier_truncated_normal",
    "xavier_uniform",
]
