"""Whether a model holds what a plan says: the proof of coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fanin import plans, tables
from fanin.applying import match
from fanin.plans import Plan
from fanin.rows import Row
from fanin.tracing.names import canonical, unwrap

SIGMAS = 6.0
"""How many standard errors a measured mean or std may lie from the expected one."""


@dataclass(frozen=True, slots=True)
class Check:
    """One tensor: what was expected, what was measured, and what is wrong (empty when nothing is)."""

    name: str
    expected_mean: float
    expected_std: float
    measured_mean: float
    measured_std: float
    problem: str = ""


@dataclass(frozen=True)
class Verification:
    """A check for every parameter and every floating-point buffer; true when none has a problem."""

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.problem)

    def __str__(self) -> str:
        if self:
            return f"{len(self.checks)} tensors are as planned"
        columns = [
            tables.Column("tensor"),
            tables.Column("expected", right=True),
            tables.Column("measured", right=True),
        ]
        columns.append(tables.Column("problem", wrap=True))
        cells = [
            (check.name, tables.number(check.expected_std), tables.number(check.measured_std), check.problem)
            for check in self.problems
        ]
        return tables.render(
            columns, cells, footer=f"{len(self.problems)} of {len(self.checks)} tensors are not as planned"
        )


def verify(plan: Plan, model: nn.Module) -> Verification:
    """Measure every parameter against its row, and look for values that are not numbers, buffers included.

    A row's tolerance is six standard errors of the mean and of the standard deviation for its number of elements, and
    the rounding of its dtype.

    Raises:
        PlanError: the plan does not fit the model.
    """
    checks = [_check(row, entry.parameter) for row, entry in match(plan, model)]
    for name, buffer in unwrap(model).named_buffers():
        if buffer.is_floating_point() and not buffer.is_meta and bool(torch.isnan(buffer).any()):
            checks.append(
                Check(canonical(name), math.nan, math.nan, math.nan, math.nan, "a buffer that is not a number")
            )
    return Verification(tuple(checks))


def _check(row: Row, parameter: torch.Tensor) -> Check:
    if parameter.is_meta:
        return Check(row.name, *row.expected, math.nan, math.nan, "still on the meta device")
    mean, std, finite = _measure(parameter)
    expected_mean, expected_std = row.expected
    problem = ""
    if not finite:
        problem = "not a number, or infinite"
    elif not row.kept and parameter.numel():
        problem = _compare(row, parameter, mean, std)
    return Check(row.name, expected_mean, expected_std, mean, std, problem)


def _compare(row: Row, parameter: torch.Tensor, mean: float, std: float) -> str:
    expected_mean, expected_std = row.expected
    count = parameter.numel()
    size = max(abs(expected_mean), expected_std)
    rounding = torch.finfo(parameter.dtype).eps * size
    if abs(mean - expected_mean) > SIGMAS * expected_std / math.sqrt(count) + rounding:
        return f"mean {mean:.4g} where {expected_mean:.4g} was planned"
    # √(1/2n) is the normal law's standard error; bounded laws and orthogonal matrices vary less.
    if abs(std - expected_std) > SIGMAS * expected_std / math.sqrt(2 * count) + rounding:
        return f"std {std:.4g} where {expected_std:.4g} was planned"
    return ""


def _measure(parameter: torch.Tensor) -> tuple[float, float, bool]:
    """Mean, standard deviation and finiteness, in double precision."""
    values = parameter.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    values = values.double().flatten()
    if not values.numel():
        return 0.0, 0.0, True
    mean = values.mean()
    return mean.item(), (values - mean).square().mean().sqrt().item(), bool(torch.isfinite(values).all())


def check(plan: Plan, model: nn.Module) -> None:
    """Raise unless every row fits a parameter of the model and every parameter has a row."""
    match(plan, model)


plans.connect(check=check, verify=verify)
