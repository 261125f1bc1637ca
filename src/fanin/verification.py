"""Whether a model holds what a plan says: the proof of coverage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fanin import parametrized, plans, sharding, tables
from fanin.isometries import stray
from fanin.matching import Match, match
from fanin.plans import Plan
from fanin.populations import Part, Pooled, held_parts, padding_place, pool, pooled
from fanin.tracing.names import named_modules
from fanin.writability import require_rows

SIGMAS = 6.0
"""How many standard errors a measured mean or std may lie from the expected one."""

STRAY = 1e-3
"""How far a matrix may be from an orthogonal one, beside the rounding of its dtype: what parametrizations cost."""

CHUNK = 2**20
"""How many elements are taken to double precision at once."""


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
            return f"{tables.counted(len(self.checks), 'tensor')} {'is' if len(self.checks) == 1 else 'are'} as planned"
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
    """Compare each parameter with its row, and look for values that are not numbers, buffers included.

    A row's tolerance is six standard errors of the mean and of the standard deviation, for its law and its number of
    elements, and the rounding of its dtype. The blocks of a packed weight are compared each on its own, a padding row
    has to be zero, and an orthogonal scheme's matrices orthogonal. Weights that are computed from parameters are
    compared as the layer sees them. Of a `DTensor` each process compares the part that it holds; nothing is sent
    between processes, and whether a matrix is orthogonal is only looked at where each holds the whole.

    Raises:
        PlanError: the plan does not fit the model.
    """
    checks = [_check(found) for found in match(plan, model)]
    for path, module in named_modules(model):
        for name, buffer in module._buffers.items():
            if buffer is not None and _has_nan(buffer):
                full = f"{path}.{name}" if path else name
                checks.append(Check(full, *(math.nan,) * 4, "a buffer that is not a number"))
    return Verification(tuple(checks))


def _has_nan(buffer: torch.Tensor) -> bool:
    held = sharding.local(buffer)
    return held.is_floating_point() and not held.is_meta and bool(torch.isnan(held).any())


def _check(found: Match) -> Check:
    name, parameter = found.row.name, found.parameter
    held = sharding.local(parameter)
    if held.is_meta:
        return Check(name, *found.row.expected, math.nan, math.nan, "still on the meta device")
    if found.is_computed_from and not sharding.is_distributed(parameter):
        held = parametrized.computed(found.entry).detach()
    mean, std = moments(held)
    expected = None if found.row.kept else pooled(found.row, parameter)
    if not (math.isfinite(mean) and math.isfinite(std)):
        problem = "not a number, or infinite"
    else:
        told = () if found.row.kept or not held.numel() else _problems(found, held)
        problem = next(iter(told), "") or (_compare(expected, held.dtype, mean, std) if expected is not None else "")
    return Check(name, *((math.nan, math.nan) if expected is None else expected[:2]), mean, std, problem)


def _problems(found: Match, held: torch.Tensor) -> Iterator[str]:
    """What the mean and standard deviation of the whole do not tell: the padding row, blocks, orthogonal matrices."""
    row, parameter = found.row, found.parameter
    place = padding_place(row, parameter)
    if place is not None and bool(held[place].any()):
        yield f"row {row.node.padding_row} is for padding, and not zero"
    for part in held_parts(row, parameter):
        if part is None:
            continue
        values, problem = held, ""
        if part.name:
            values = part.of(held, row.node.axes.out_axis[0])
            problem = _compare(pool(part.populations), held.dtype, *moments(values))
        if not problem and not sharding.is_divided(parameter):
            problem = _orthogonality(part, values)
        if problem:
            yield f"{part.name}: {problem}" if part.name else problem


def _orthogonality(part: Part, values: torch.Tensor) -> str:
    off = stray(part.scheme, part.site, values)
    if off <= STRAY + 4 * torch.finfo(values.dtype).eps:
        return ""
    return f"not {part.scheme.label}: Q·Qᵀ strays from 1 by {off:.2g}"


def _compare(expected: Pooled, dtype: torch.dtype, mean: float, std: float) -> str:
    rounding = torch.finfo(dtype).eps * max(abs(expected.mean), expected.std)
    if abs(mean - expected.mean) > SIGMAS * expected.mean_error + rounding:
        return "mean {} where {} was planned".format(*_apart(mean, expected.mean))
    if abs(std - expected.std) > SIGMAS * expected.std_error + rounding:
        return "std {} where {} was planned".format(*_apart(std, expected.std))
    return ""


def _apart(measured: float, planned: float) -> tuple[str, str]:
    """Two numbers with as many digits as tell them apart, four at least.

    >>> _apart(1.0001, 1.0)
    ('1.0001', '1')
    """
    texts = ((f"{measured:.{digits}g}", f"{planned:.{digits}g}") for digits in range(4, 18))
    return next((pair for pair in texts if pair[0] != pair[1]), (repr(measured), repr(planned)))


def moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation in double precision, a piece at a time; of complex values E z and √(E|z − E z|²).

    >>> moments(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    if values.is_complex():
        parts = torch.view_as_real(values)
        (mean, real), (_, imaginary) = moments(parts[..., 0]), moments(parts[..., 1])
        return mean, math.hypot(real, imaginary)
    count, mean, squares = 0, 0.0, 0.0
    for chunk in _chunks(values):
        doubles = chunk.to(torch.float64)
        size, own = len(chunk), doubles.mean().item()
        count += size
        # Chan, Golub & LeVeque 1979: sums of squares about two means, joined.
        squares += (doubles - own).square().sum().item() + (own - mean) ** 2 * size * (count - size) / count
        mean += (own - mean) * size / count
    return mean, math.sqrt(squares / count) if count else 0.0


def _chunks(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Flat pieces, in the order of memory, so that no memory format is copied."""
    order = sorted(range(values.ndim), key=values.stride, reverse=True)
    flat = values.detach().permute(order).flatten()
    for start in range(0, len(flat), CHUNK):
        yield flat[start : start + CHUNK]


def check(plan: Plan, model: nn.Module) -> None:
    """Raise unless every parameter of the model has a row that can be written into it; nothing is written."""
    require_rows(match(plan, model))


plans.connect(check=check, verify=verify)
