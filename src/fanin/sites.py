"""What is to be drawn where: a scheme at a site, and whether it fits there."""

from __future__ import annotations

from typing import NamedTuple

from fanin import sampling
from fanin.errors import SchemeError, compose
from fanin.fans import Axes, Shape
from fanin.schemes import (
    CentredOrthogonal,
    Constant,
    DeltaOrthogonal,
    Identity,
    Keep,
    LooksLinear,
    Normal,
    Orthogonal,
    Packed,
    ScaledOrthogonal,
    Scheme,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from fanin.schemes.base import matrix_of
from fanin.schemes.orthogonal import require_odd_kernel, require_two_columns


class Site(NamedTuple):
    """Where a scheme is applied: one whole parameter, wherever its pieces lie."""

    shape: Shape
    axes: Axes
    name: str
    """The name that, with the seed, decides the values."""
    padding_row: int | None = None


def is_elementwise(scheme: Scheme) -> bool:
    """Whether any slice of what the scheme draws can be drawn without the rest."""
    return scheme.elementwise_parts if isinstance(scheme, Packed) else scheme.elementwise


def require_fit(scheme: Scheme, site: Site) -> None:
    """Raise what drawing would raise, before anything is drawn.

    Raises:
        SchemeError: the scheme does not fit the parameter's axes, or the blocks of a packed one leave rows out.
    """
    if isinstance(scheme, Keep):
        return
    if not is_elementwise(scheme):
        require_matrix(scheme, site)
    site.axes.fans(site.shape)
    _require_all_rows(site)
    _require_all_blocks(scheme, site)
    for part, piece in parts(scheme, site):
        if part.elementwise:
            law_of(part.resolve(piece.axes.fans(piece.shape)))
        elif isinstance(part, DeltaOrthogonal):
            require_odd_kernel(piece.shape, piece.axes)
        elif isinstance(part, CentredOrthogonal):
            require_two_columns(matrix_of(piece.axes.fans(piece.shape), piece.shape, piece.axes))
        elif not isinstance(part, Orthogonal | ScaledOrthogonal | LooksLinear | Identity | Sparse):
            raise unknown_scheme(part)


def parts(scheme: Scheme, site: Site) -> list[tuple[Scheme, Site]]:
    """The scheme of each block with the block as a parameter of its own; the whole where there are no blocks."""
    if not site.axes.blocks:
        return [(scheme, site)]
    fans = site.axes.block_fans(site.shape)
    return [
        (scheme.part(block.name).resolve(fans[block.name]), Site(*site.axes.of_block(block, site.shape), site.name))
        for block in site.axes.blocks
    ]


def _require_all_rows(site: Site) -> None:
    if not site.axes.blocks:
        return
    (axis,) = site.axes.out_axis
    rows = [row for block in site.axes.blocks for part in block.rows for row in part]
    if sorted(rows) != list(range(site.shape[axis])):
        names = ", ".join(block.name for block in site.axes.blocks)
        raise SchemeError(
            compose(
                f"blocks {names} of {len(rows)} rows for {site.name!r} of shape {tuple(site.shape)}",
                f"each of the {site.shape[axis]} rows in one block",
                "a row in no block would not be written",
                "fanin.Axes(blocks=…) with all rows",
            )
        )


def _require_all_blocks(scheme: Scheme, site: Site) -> None:
    if not isinstance(scheme, Packed):
        return
    given = {name for name, part in scheme.parts if not isinstance(part, Keep)}
    missing = [block.name for block in site.axes.blocks if block.name not in given]
    if missing or not site.axes.blocks:
        raise SchemeError(
            compose(
                f"{scheme.label} for {site.name!r}, without values for block {', '.join(missing) or 'any'}",
                "a scheme that draws values for each block, and a packed parameter",
                "a packed parameter is written whole",
                "fanin.schemes.Packed.of(…) with all blocks, or plan.keep(…) for the whole",
            )
        )


def law_of(scheme: Scheme) -> sampling.Law:
    """The sampling law of an element-wise scheme that no longer depends on fans.

    Raises:
        SchemeError: the scheme is not one of constant, normal, uniform and truncated normal.
    """
    if isinstance(scheme, Constant):
        return sampling.Constant(scheme.value)
    if isinstance(scheme, Normal):
        return sampling.Normal(scheme.mean, scheme.std) if scheme.std else sampling.Constant(scheme.mean)
    if isinstance(scheme, Uniform):
        if scheme.low == scheme.high:
            return sampling.Constant(scheme.low)
        return sampling.Uniform(scheme.low, scheme.high)
    if isinstance(scheme, TruncatedNormal):
        if not scheme.std:
            return sampling.Constant(scheme.mean)
        return sampling.TruncatedNormal(scheme.mean, scheme.parent_std, *scheme.limits)
    raise SchemeError(
        compose(
            f"the element-wise scheme {type(scheme).__name__}",
            "a scheme whose resolve() gives Constant, Normal, Uniform or TruncatedNormal",
            "these are what the value contract can draw",
        )
    )


def require_matrix(scheme: Scheme, site: Site) -> None:
    if not site.axes.in_axis or site.axes.one_hot:
        raise SchemeError(
            compose(
                f"{scheme.label} for {site.name!r} of shape {tuple(site.shape)}",
                "a weight with an input axis",
                "a bias, a norm's scale or an embedding table is no matrix from inputs to outputs",
                "fanin.schemes.Zeros() or fanin.schemes.Normal(std=…)",
            )
        )


def unknown_scheme(scheme: Scheme) -> SchemeError:
    known = "Orthogonal, ScaledOrthogonal, CentredOrthogonal, DeltaOrthogonal, LooksLinear, Identity or Sparse"
    return SchemeError(compose(f"the matrix-wide scheme {type(scheme).__name__}", known, "others cannot be drawn"))
