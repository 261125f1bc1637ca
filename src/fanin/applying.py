"""The only writer of parameters: a plan is checked against the model, then written, each parameter once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fanin import parametrized, sharding
from fanin.deferral import materialize_
from fanin.drawing import fill_pieces
from fanin.matching import Match, match, require_model
from fanin.plans import Plan, require_plan
from fanin.progress import track
from fanin.writability import require_writable


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
    parameters are written and stay frozen, padding rows stay zero, and buffers are not touched, except those of a
    parametrization that belong to the weight. A weight that is computed from parameters is what an ordinary weight of
    its name would be. Of a `DTensor` each process draws its own part, and nothing is sent between processes; a
    matrix-wide scheme is drawn whole on each.

    Everything that can be checked is checked first: a plan that does not fit leaves the model as it was.

    Args:
        plan: from `fanin.plan`, or loaded.
        model: the model, or one stage of it (see prefix and names); wrappers do not change names.
        seed: any integer.
        device: where parameters that are on the meta device are made. Others stay where they are.
        prefix: put before the model's names to find them in the plan, for a stage of a larger model.
        names: from the model's names to the plan's, for a stage whose modules are named anew.

    Raises:
        PlanError: names, shapes or ties do not fit, or the plan is none; nothing was written.
        InputsError: the model is none, or a lazy one that was never run.
        ApplyError: a parameter cannot be written, with the reason; nothing was written.

    >>> import fanin
    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
    >>> fanin.apply(fanin.plan(layer, recipe="lecun"), layer, seed=0)
    >>> bare = nn.Linear(64, 64)
    >>> fanin.apply(fanin.plan(bare, recipe="lecun"), bare, seed=0)
    >>> torch.allclose(layer.weight, bare.weight)
    True
    """
    require_plan(plan)
    require_model(model)
    sharding.reshard(model)
    matches = match(plan, model, prefix=prefix, names=names)
    require_writable(matches, model, seed=seed, device=device)
    # What parametrizations bring with them is written before the weights that are computed through them.
    ordered = sorted((found for found in matches if not found.row.kept), key=lambda found: found.is_computed_from)
    for found in track(ordered, "fanin: writing parameters"):
        _write(found, model, seed, device)


def _write(found: Match, model: nn.Module, seed: int, device: torch.device | str | None) -> None:
    parameter = _with_memory(found.parameter, model, device)
    if not found.is_computed_from:
        fill_pieces(sharding.pieces(parameter), found.row.scheme, found.site, seed=seed)
        return
    weight = found.entry.weight
    if found.norms is not None and weight is not None:
        _with_memory(weight.parameter("norm"), model, device)
    parametrized.write(found.row.scheme, found.site, found.entry, seed=seed, norms=found.norms is not None)


def _with_memory(parameter: nn.Parameter, model: nn.Module, device: torch.device | str | None) -> nn.Parameter:
    if device is not None and sharding.local(parameter).is_meta:
        return materialize_(parameter, device, model)
    return parameter
