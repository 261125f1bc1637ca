"""Recipes against what installed libraries construct: the models, and how they are measured.

A model is built, traced and planned, never filled: its parameters are what the library drew. Rows that plan the same
mean and std for the same role are pooled, so that small tensors are judged together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from fanin.graph import WEIGHTS, Role
from fanin.plans import Plan
from fanin.recipes import recipe_named
from fanin.recipes.departures import Departure, departures
from fanin.rows import Row
from fanin.tracing import trace
from parity.models import CASES, Case

__all__ = ["CASES", "SIGMAS", "Case", "Pool", "measure", "plan_of"]

SIGMAS = 6.0
"""How many standard errors a library's mean and std may lie from the planned ones."""


@dataclass
class Pool:
    """Rows of one role with the same planned mean and std, and what the library drew for them."""

    role: Role
    mean: float
    std: float
    departure: Departure | None
    ratio: float
    """The library's std ÷ the planned one, as far as is known; 1 without a departure, 0 where a constant differs."""
    names: list[str] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(value.numel() for value in self.values)

    @property
    def measured(self) -> tuple[float, float]:
        """Mean and std over all values."""
        values = torch.cat([value.flatten() for value in self.values]).double()
        return values.mean().item(), values.std(correction=0).item()

    @property
    def measured_ratio(self) -> float:
        """The library's std ÷ the planned one; infinite when that is 0."""
        return self.measured[1] / self.std if self.std else math.inf

    @property
    def power(self) -> float:
        """How many standard errors a std that is √2 too small lies away: (1 − 1/√2)·√(2n), or more."""
        return (1 - math.sqrt(0.5)) * math.sqrt(2 * self.count)

    @property
    def is_table(self) -> bool:
        """Whether this is a weight or a table, of which there is enough to measure."""
        return self.role in WEIGHTS or self.role in (Role.EMBEDDING, Role.POSITION)

    @property
    def problem(self) -> str:
        """What is wrong; empty when the library draws what was planned, or departs as is known."""
        mean, std = self.measured
        wanted = self.std * self.ratio
        error = wanted / math.sqrt(2 * self.count)
        if self.ratio == 0:
            agrees = math.isclose(std, self.std, rel_tol=1e-3) and math.isclose(mean, self.mean, abs_tol=1e-12)
            return "the library no longer departs" if agrees else ""
        if abs(mean - self.mean) > SIGMAS * wanted / math.sqrt(self.count) + 1e-7 * abs(self.mean):
            return f"mean {mean:.4g} where {self.mean:.4g} was planned"
        if abs(std - wanted) > SIGMAS * error + 1e-7 * abs(self.mean):
            return f"std {std:.4g} where {wanted:.4g} was expected"
        return ""


def plan_of(case: Case) -> tuple[Plan, nn.Module]:
    """The model as its library constructs it, and the recipe's plan for it."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = case.build().eval()
        inputs = case.inputs()
    return recipe_named(case.recipe)(trace(model, inputs)), model


def measure(case: Case) -> list[Pool]:
    """The pools of a case: what the recipe plans beside what the library drew."""
    plan, model = plan_of(case)
    known = departures(case.recipe, case.library)
    pools: dict[tuple[object, ...], Pool] = {}
    for row in plan:
        if row.kept:
            continue
        departure = next((entry for entry in known if entry.covers(row.node)), None)
        ratio = 1.0 if departure is None else departure.ratio(row.node) if departure.ratio else 0.0
        for mean, std, values in _parts(row, model.get_parameter(row.name).detach()):
            key = (row.role, f"{mean:.6g}", f"{std:.6g}", departure, f"{ratio:.6g}")
            pool = pools.setdefault(key, Pool(row.role, mean, std, departure, ratio))
            pool.names.append(row.name)
            pool.values.append(values)
    return list(pools.values())


def _parts(row: Row, value: torch.Tensor) -> Iterator[tuple[float, float, torch.Tensor]]:
    """A row's planned mean and std with its values; block by block where the blocks of a packed weight differ."""
    stds = row.block_std
    if len({f"{std:.6g}" for std in stds.values()}) < 2:
        yield (*row.expected, value)
        return
    (axis,) = row.node.axes.out_axis
    for name, rows in row.node.blocks.items():
        index = torch.tensor([place for part in rows for place in part])
        yield 0.0, stds[name], value.index_select(axis, index)
