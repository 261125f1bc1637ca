"""What the elements that one process holds of a parameter should look like, and how far they may stray."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from fanin import sharding
from fanin.fans import Block
from fanin.rows import Row
from fanin.schemes import CentredOrthogonal, DeltaOrthogonal, Identity, Orthogonal, ScaledOrthogonal, Scheme, Sparse
from fanin.schemes.base import matrix_of
from fanin.sharding import Runs
from fanin.sites import Site, parts


class Population(NamedTuple):
    """Elements that share a mean and a standard deviation."""

    elements: float
    mean: float
    std: float


class Pooled(NamedTuple):
    """The mean and standard deviation over several populations, and the standard errors of both."""

    mean: float
    std: float
    mean_error: float
    std_error: float


class Part(NamedTuple):
    """What one process holds of a block, and what it should look like; of a weight without blocks, of the whole.

    Args:
        name: the block's; empty for the whole.
        scheme, site: of the block, as of a weight of its own.
        places: where its rows lie along the axis of the blocks, in what the process holds; empty for the whole.
        populations: its elements.
    """

    name: str
    scheme: Scheme
    site: Site
    places: tuple[int, ...]
    populations: list[Population]

    def of(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        """The block's elements, out of all that the process holds."""
        first, count = self.places[0], len(self.places)
        if self.places[-1] - first + 1 == count:
            return values.narrow(axis, first, count)
        return values.index_select(axis, torch.tensor(self.places, device=values.device))


def pooled(row: Row, parameter: torch.Tensor) -> Pooled | None:
    """What this process should find in a parameter; None where its part says nothing about the scheme.

    Args:
        row: not kept.
        parameter: whole, or a `DTensor`.
    """
    runs = _runs(row, parameter)
    counts = [_count(axis) for axis in runs]
    told = list(held_parts(row, parameter))
    if not math.prod(counts) or any(part is None for part in told):
        return None
    populations = [population for part in told if part is not None for population in part.populations]
    if padding_place(row, parameter) is not None:
        share = 1 / counts[0]
        populations = [population._replace(elements=population.elements * (1 - share)) for population in populations]
        populations.append(Population(math.prod(counts) * share, 0.0, 0.0))
    return pool(populations)


def held_parts(row: Row, parameter: torch.Tensor) -> Iterator[Part | None]:
    """Each block of which this process holds elements; None for one that its elements say nothing about."""
    runs = _runs(row, parameter)
    total = math.prod(_count(axis) for axis in runs)
    divided = sharding.is_divided(parameter)
    blocks = row.node.axes.blocks
    for index, (scheme, piece) in enumerate(parts(row.scheme, Site(row.shape, row.node.axes, row.name))):
        name, places, count = "", tuple[int, ...](), float(total)
        if blocks:
            (axis,) = row.node.axes.out_axis
            name, places = blocks[index].name, _places(blocks[index], runs[axis])
            count *= len(places) / max(_count(runs[axis]), 1)
        if not count:
            continue
        # A diagonal or a count for each row is no property of a part of the matrix.
        told = (
            not divided or scheme.elementwise or isinstance(scheme, Orthogonal | ScaledOrthogonal | CentredOrthogonal)
        )
        yield Part(name, scheme, piece, places, _populations(scheme, piece, count)) if told else None


def padding_place(row: Row, parameter: torch.Tensor) -> int | None:
    """Where the row of zeros lies in what this process holds; None where it holds none."""
    if row.node.padding_row is None or not row.shape or not row.shape[0]:
        return None
    held = [index for run in _runs(row, parameter)[0] for index in run]
    wanted = row.node.padding_row % row.shape[0]
    return held.index(wanted) if wanted in held else None


def _runs(row: Row, parameter: torch.Tensor) -> Sequence[Runs]:
    if sharding.is_distributed(parameter):
        return sharding.indices(parameter)
    return [(range(size),) for size in row.shape]


def _count(runs: Runs) -> int:
    return sum(len(run) for run in runs)


def _places(block: Block, runs: Runs) -> tuple[int, ...]:
    """Which of the rows in these runs are a block's."""
    held = (row for run in runs for row in run)
    return tuple(place for place, row in enumerate(held) if any(row in rows for rows in block.rows))


def _populations(scheme: Scheme, site: Site, count: float) -> list[Population]:
    mean, std = scheme.expected(site.axes.fans(site.shape), site.shape, site.axes)
    matrix = matrix_of(site.axes.fans(site.shape), site.shape, site.axes)
    if isinstance(scheme, Identity):
        share = mean / scheme.gain if scheme.gain else 0.0
        return [Population(count * share, scheme.gain, 0.0), Population(count * (1 - share), 0.0, 0.0)]
    share = 1.0
    if isinstance(scheme, Sparse):
        share = min(scheme.incoming / matrix.flat[1], 1.0)
    elif isinstance(scheme, DeltaOrthogonal):
        share = 1 / matrix.kernel
    within = Population(count * share, mean, std / math.sqrt(share))
    return [within, Population(count * (1 - share), 0.0, 0.0)] if share < 1 else [within]


def pool(populations: Sequence[Population]) -> Pooled:
    """Mean, standard deviation and standard errors over all elements, each drawn on its own.

    For a normal law the variance of (x − m)² is 2σ⁴ + 4σ²δ², δ the population's distance from the common mean m;
    bounded laws and orthogonal matrices vary less.

    >>> pool([Population(50, 1.0, 0.0), Population(50, -1.0, 0.0)])
    Pooled(mean=0.0, std=1.0, mean_error=0.0, std_error=0.0)
    """
    total = sum(population.elements for population in populations)
    mean = sum(population.elements * population.mean for population in populations) / total
    deviations = [(count, each - mean, std) for count, each, std in populations]
    std = math.sqrt(sum(count * (own**2 + away**2) for count, away, own in deviations) / total)
    mean_error = math.sqrt(sum(count * own**2 for count, _, own in deviations)) / total
    spread = math.sqrt(sum(count * (2 * own**4 + 4 * own**2 * away**2) for count, away, own in deviations)) / total
    return Pooled(mean, std, mean_error, spread / (2 * std) if std else 0.0)
