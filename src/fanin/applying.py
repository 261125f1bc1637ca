"""The only writer of parameters: a plan is checked against the model, then written, each parameter once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fanin import tables
from fanin.drawing import Site, fill_region
from fanin.errors import PlanError, compose, nearest
from fanin.plans import Plan
from fanin.progress import track
from fanin.rows import Row
from fanin.tracing.names import NamedParameter, named_parameters


def apply(
    plan: Plan,
    model: nn.Module,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
) -> None:
    """Write a plan's values into a model.

    Values depend on ``seed`` and the parameter's name in the plan, on nothing else. Ties are written once, frozen
    parameters are written and stay frozen, padding rows stay zero, buffers are not touched. The plan is checked first,
    so a plan that does not fit leaves the model as it was.

    Args:
        plan: from `fanin.plan`, or loaded.
        model: the model, or one stage of it (see prefix and names).
        seed: any integer.
        device: where parameters that are on the meta device are made.
        prefix: put before the model's names to find them in the plan, for a stage of a larger model.
        names: from the model's names to the plan's, for a stage whose modules are named anew.

    Raises:
        PlanError: names, shapes or ties do not fit; nothing was written.
        ApplyError: a parameter cannot be written, with the reason; nothing was written.
    """
    pairs = match(plan, model, prefix=prefix, names=names)
    for row, entry in track(pairs, "fanin: writing parameters"):
        site = Site(row.shape, row.node.axes, row.name, row.node.padding_row)
        fill_region(entry.parameter, row.scheme, site, seed=seed)


def match(
    plan: Plan, model: nn.Module, *, prefix: str = "", names: Mapping[str, str] | None = None
) -> list[tuple[Row, NamedParameter]]:
    """The row of every parameter of the model.

    Raises:
        PlanError: a parameter has no row, a row of the whole plan has no parameter, or shapes differ.
    """
    partial = bool(prefix) or names is not None
    mapping = names or {}
    pairs = []
    problems = []
    for entry in named_parameters(model):
        wanted = mapping.get(entry.name, prefix + entry.name)
        if wanted not in plan:
            near = nearest(wanted, [row.name for row in plan])
            problems.append(f"{entry.name}: the plan has no row {wanted!r} ({near})")
            continue
        row = plan[wanted]
        if row.shape != tuple(entry.parameter.shape):
            have = tables.shape_text(entry.parameter.shape)
            problems.append(f"{entry.name}: the plan says {tables.shape_text(row.shape)}, the model has {have}")
            continue
        pairs.append((row, entry))
    covered = [row.name for row, _ in pairs]
    if not partial:
        problems += [f"{row.name}: the model has no such parameter" for row in plan if row.name not in set(covered)]
    problems += [f"{name}: two parameters of the model take this row" for name in covered if covered.count(name) > 1]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise PlanError(
            compose(
                f"a plan of {len(plan)} rows that does not fit the model:\n  {shown}",
                "a row of the same name and shape for every parameter",
                "a plan is written whole or not at all",
                "plan = fanin.plan(model), and the edits on it",
            )
        )
    return pairs
