"""The values in plain torch operations: for any device, and the readable reference for the kernels of `cpu.py`.

Every line is one rounded operation. Nothing here may be fused: no `addcmul`, no `lerp`, no `alpha=`, no compilation.
Words are held in int64, the one integer type that every device multiplies and shifts alike.
"""

from __future__ import annotations

import numpy as np
import torch

from fanin.sampling import philox
from fanin.sampling.distributions import NormalConstants, RandomLaw, TruncatedConstants, UniformConstants, resolve
from fanin.sampling.polynomials import DOUBLE, SINGLE, Coefficients, Precision
from fanin.sampling.regions import Region

MASK = philox.MASK
_PIECE = (2**16, 2**22)
"""Fewest and most elements drawn at once: a piece's words take about 100 bytes an element while it is drawn."""


def fill(
    flat: torch.Tensor,
    law: RandomLaw,
    key: int,
    within: Region,
    precision: Precision,
    lane: int = philox.VALUES,
    part: int = 0,
) -> None:
    """Write the values of a region into a flat tensor, piece by piece, rounding to its dtype."""
    most = min(max(flat.numel() // 256, _PIECE[0]), _PIECE[1])
    for piece in within.pieces(most):
        starts = torch.from_numpy(piece.starts).to(flat.device)
        skip = starts % philox.GROUP
        touched = philox.GROUP * (-(-(int(skip.max()) + piece.length) // philox.GROUP))
        groups = (starts // philox.GROUP)[:, None] + torch.arange(touched // philox.GROUP, device=flat.device)
        drawn = draw(law, key, groups.view(-1), precision, lane, part).view(len(starts), touched)
        index = skip[:, None] + torch.arange(piece.length, device=flat.device)
        flat[piece.at : piece.at + piece.size].copy_(drawn.gather(1, index).view(-1))


def draw(
    law: RandomLaw,
    key: int,
    groups: torch.Tensor,
    precision: Precision = SINGLE,
    lane: int = philox.VALUES,
    part: int = 0,
) -> torch.Tensor:
    """Return the 64 values of each group as a tensor of shape (len(groups), 64), on the device of `groups`.

    Args:
        law: what each element follows.
        key: the tensor's key (`philox.key`).
        groups: int64, the numbers of the groups: the flat index in the global tensor, in C order, divided by 64.
        precision: `SINGLE` or `DOUBLE`.
        lane, part: see `philox.group_words`.
    """
    constants = resolve(law, precision)
    bits = words(key, groups, lane, part)
    if precision is DOUBLE:
        bits = (bits << 21) | (words(key, groups, lane, part, low=True) >> 11)
    if isinstance(constants, UniformConstants):
        return _uniform(bits, constants, precision)
    if isinstance(constants, NormalConstants):
        return _normal(bits, constants, precision)
    return _truncated(bits, constants, precision)


def words(key: int, groups: torch.Tensor, lane: int = 0, part: int = 0, low: bool = False) -> torch.Tensor:
    """Return the 64 words of each group as int64, shape (len(groups), 64); compare `philox.group_words`."""
    block = groups[:, None] * philox.COUNTERS + torch.arange(philox.COUNTERS, device=groups.device)
    x0, x1 = block & MASK, (block >> 32) & MASK
    x2, x3 = torch.full_like(block, philox.counter_word(lane, low)), torch.full_like(block, part)
    k0, k1 = philox.key_words(key)
    for _ in range(philox.ROUNDS):
        # The product of two 32-bit words wraps in int64, and the shift drags its sign along: the masks undo both.
        product0, product1 = x0 * philox.MULTIPLIERS[0], x2 * philox.MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((product1 >> 32) & MASK) ^ x1 ^ k0,
            product1 & MASK,
            ((product0 >> 32) & MASK) ^ x3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + philox.WEYL[0]) & MASK, (k1 + philox.WEYL[1]) & MASK
    return torch.cat([x0, x1, x2, x3], dim=1)


def _uniform(bits: torch.Tensor, law: UniformConstants, precision: Precision) -> torch.Tensor:
    """low + scale · u, from the leading bits of each word."""
    unit = _float(bits >> precision.spare, precision) * precision.unit
    return (unit * law.scale + law.low).clamp(max=law.top)


def _normal(bits: torch.Tensor, law: NormalConstants, precision: Precision) -> torch.Tensor:
    """mean + std · z: the first 32 words of a group give radii, the last 32 angles (Box and Muller 1958)."""
    half = philox.GROUP // 2
    unit = _float(bits[:, :half], precision) * precision.step + precision.half_step
    radius = square_root(_logarithm(unit, precision) * -2.0)
    sine, cosine = _circle(bits[:, half:], precision)
    return torch.cat([radius * cosine, radius * sine], dim=1) * law.std + law.mean


def _truncated(bits: torch.Tensor, law: TruncatedConstants, precision: Precision) -> torch.Tensor:
    """mean + std · Φ⁻¹ of the word's share of the mass between the cuts, from the nearer tail."""
    under = bits < law.turn
    count = _float(torch.where(under, bits, precision.last - bits), precision) + 0.5
    start = torch.full_like(count, law.above).masked_fill(under, law.below)
    distance = _tail_quantile(count * law.step + start, precision)
    x = torch.where(under, -distance, distance * law.side)
    return (x * law.std + law.mean).clamp(law.low, law.high)


def _circle(bits: torch.Tensor, precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sine and cosine of the angle 2π · word / 2^bits: a quadrant, and an offset of ±¼ turn inside it."""
    turned = bits + precision.eighth
    quadrant = (turned >> precision.quadrant_shift) & 3
    offset = _float((turned & precision.inside) - precision.eighth, precision) * precision.quarter_step
    square = offset * offset
    sine, cosine = offset * _horner(square, precision.sine), _horner(square, precision.cosine)
    odd = (quadrant & 1) == 1
    upright, flat = torch.where(odd, cosine, sine), torch.where(odd, sine, cosine)
    return (
        torch.where((quadrant & 2) != 0, -upright, upright),
        torch.where(((quadrant + 1) & 2) != 0, -flat, flat),
    )


def _logarithm(x: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Log x for normal x > 0: x = m · 2ᵏ with √½ ≤ m < √2."""
    pattern = x.view(torch.int32 if precision is SINGLE else torch.int64)
    exponent = (pattern - precision.root_half) >> precision.fraction
    m = (pattern - (exponent << precision.fraction)).view(x.dtype)
    s = (m - 1.0) / (m + 1.0)
    return _float(exponent, precision) * precision.log_two + s * _horner(s * s, precision.logarithm)


def _tail_quantile(q: torch.Tensor, precision: Precision) -> torch.Tensor:
    """−Φ⁻¹(q) for 0 < q ≤ ½: how many standard deviations out the tail of probability q begins."""
    tail = q < precision.tail_start
    log = -_logarithm(torch.where(tail, q, (q * 4.0) * (1.0 - q)), precision)
    middle = (1.0 - q * 2.0) * _horner(log, precision.middle)
    root = square_root(log)
    return torch.where(tail, _horner(root, precision.tail) / _horner(root, precision.tail_below), middle)


def _horner(x: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """Evaluate a polynomial from its highest coefficient down, rounding after each product and each sum."""
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total


def square_root(x: torch.Tensor) -> torch.Tensor:
    """Return the correctly rounded square root.

    On a CPU, `torch.sqrt` may be MKL's, which errs in the last bit of one number in ten; numpy's is the processor's.
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _float(integers: torch.Tensor, precision: Precision) -> torch.Tensor:
    return integers.to(torch.float32 if precision is SINGLE else torch.float64)
