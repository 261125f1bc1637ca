"""What the elements that one process holds of a parameter should look like, and how far they may stray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fanin import sharding
from fanin.fans import Block
from fanin.rows import Row
from fanin.schemes import DeltaOrthogonal, Identity, Orthogonal, ScaledOrthogonal, Scheme, Sparse
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


def pooled(row: Row, parameter: torch.Tensor) -> Pooled | None:
    """What this process should find in a parameter; None where its part says nothing about the scheme.

    Args:
        row: not kept.
        parameter: whole, or a `DTensor`.
    """
    runs: Sequence[Runs] = [(range(size),) for size in row.shape]
    if sharding.is_distributed(parameter):
        runs = sharding.indices(parameter)
    divided = sharding.is_divided(parameter)
    counts = [sum(len(run) for run in axis) for axis in runs]
    total = math.prod(counts)
    if not total:
        return None
    site = Site(row.shape, row.node.axes, row.name)
    populations: list[Population] = []
    for index, (scheme, piece) in enumerate(parts(row.scheme, site)):
        if divided and not (scheme.elementwise or isinstance(scheme, Orthogonal | ScaledOrthogonal)):
            return None  # a diagonal or a count for each row is no property of a part of the matrix
        count = float(total)
        if site.axes.blocks:
            (axis,) = site.axes.out_axis
            count *= _held(site.axes.blocks[index], runs[axis]) / counts[axis]
        populations += _populations(scheme, piece, count)
    row_of_zeros = row.node.padding_row
    if row_of_zeros is not None and any(row_of_zeros % row.shape[0] in run for run in runs[0]):
        share = 1 / counts[0]
        populations = [population._replace(elements=population.elements * (1 - share)) for population in populations]
        populations.append(Population(total * share, 0.0, 0.0))
    return pool(populations)


def _held(block: Block, runs: Runs) -> int:
    """How many rows of a block lie in these runs."""
    return sum(1 for rows in block.rows for row in rows if any(row in run for run in runs))


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
