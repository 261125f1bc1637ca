"""Writing weights that are computed from parameters, so that the layer's weight is what the scheme asks for.

Weight normalization holds any weight: its direction parameter gets the weight itself and its norms the weight's
norms. Any other parametrization is asked for its inverse, on a copy, and the weight that it then computes is compared
with the one that was asked for. What cannot be held is refused, and a recipe's answer for it is to keep.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from fanin import sharding
from fanin.drawing import fill_pieces, fill_region
from fanin.errors import ApplyError, FaninError, compose
from fanin.plans import Plan
from fanin.rows import Row
from fanin.schemes import Keep, Normal, Scheme
from fanin.sites import Site
from fanin.tracing.names import NamedParameter, named_parameters
from fanin.tracing.reparametrization import Reparametrization, shape_of

SETTLING = 20
"""Power iterations after which spectral normalization knows the largest singular value of a new weight."""

ROUNDINGS = 64
"""How many units in the last place, of its largest element, a computed weight may lie from the one asked for."""


class Own(NamedTuple):
    """A parameter that a parametrization brings with it, and what the plan writes into it."""

    entry: NamedParameter
    scheme: Scheme
    site: Site


def fit(plan: Plan, model: nn.Module) -> Plan:
    """The plan with the rows that parametrizations cannot take kept, and with reasons that say what happens.

    Args:
        plan: as a recipe made it.
        model: the model that it is for; it is not changed.
    """
    entries = {entry.name: entry for entry in named_parameters(model)}
    holders = [entry for entry in entries.values() if entry.weight is not None and entry.weight.part == "main"]
    if not holders:
        return plan
    changed: dict[str, Row] = {}
    for entry in holders:
        assert entry.weight is not None
        if entry.name in plan and not plan[entry.name].kept:
            row = _fitted(plan[entry.name], entry, entry.weight)
            changed[row.name] = row
            for other in () if row.kept else entries.values():
                if _holds_norms_of(other, entry) and other.name in plan:
                    reason = f"the norms of {entry.weight_name}, written with {entry.name}"
                    changed[other.name] = replace(plan[other.name], scheme=Keep(), reason=reason)
    return replace(plan, rows=tuple(changed.get(row.name, row) for row in plan))


def _fitted(row: Row, entry: NamedParameter, weight: Reparametrization) -> Row:
    through = ", ".join(weight.kinds)
    if not weight.is_weight_norm:
        if entry.parameter.is_meta:
            return replace(row, scheme=Keep(), reason=f"on meta it cannot be told what {through} can hold: kept")
        try:
            require_holdable(row.scheme, _site(row, entry), entry, ())
        except FaninError:
            reason = f"{through} cannot hold {row.scheme.label}: kept as constructed"
            return replace(row, scheme=Keep(), reason=reason)
    return replace(row, reason=f"{row.reason}; as {entry.weight_name}, through {through}")


def _site(row: Row, entry: NamedParameter) -> Site:
    return Site(row.shape, row.node.axes, entry.weight_name, row.node.padding_row)


def _holds_norms_of(other: NamedParameter, entry: NamedParameter) -> bool:
    return other.weight is not None and other.weight.part == "norm" and other.weight_name == entry.weight_name


def require_holdable(scheme: Scheme, site: Site, entry: NamedParameter, own: Sequence[Own], *, seed: int = 0) -> None:
    """Raise unless the parametrization can compute the weight that the scheme asks for; nothing is changed.

    Raises:
        ApplyError: it cannot, with what to write instead.
        SchemeError: the scheme does not fit the weight at all.
    """
    weight = entry.weight
    assert weight is not None
    if shape_of(weight) != site.shape:
        raise _refusal(scheme, entry, f"computes a weight of shape {shape_of(weight)} from it")
    if not weight.is_weight_norm:
        _solve(scheme, site, entry, own, seed=seed)


def write(scheme: Scheme, site: Site, entry: NamedParameter, *, seed: int, norms: bool) -> None:
    """Write the parameters behind a weight, so that the weight is what the scheme draws under the weight's name.

    Args:
        scheme, site: of the weight, as if it were a parameter.
        entry: the main parameter behind it; everything behind it has memory.
        seed: with the site's name it decides every value.
        norms: whether the norms of a weight-normed weight follow from it; they have a row of their own otherwise.
    """
    weight = entry.weight
    assert weight is not None
    with torch.no_grad():
        if weight.is_weight_norm:
            _write_normed(scheme, site, weight, seed=seed, norms=norms)
        else:
            solved = _solve(scheme, site, entry, (), seed=seed)
            assert weight.chain is not None
            for target, values in zip(_tensors(weight.chain), _tensors(solved), strict=True):
                target.copy_(values)
        if isinstance(weight.hook, WeightNorm):
            # The older interface stores the computed weight until the next forward pass computes it anew.
            setattr(weight.layer, weight.tensor, weight.hook.compute_weight(weight.layer))


def _tensors(chain: ParametrizationList) -> list[torch.Tensor]:
    return [*chain.parameters(), *chain.buffers()]


def _write_normed(scheme: Scheme, site: Site, weight: Reparametrization, *, seed: int, norms: bool) -> None:
    main, holder = weight.parameter("main"), weight.parameter("norm")
    held = sharding.local(main)
    wanted = torch.empty(site.shape, dtype=held.dtype, device=held.device)
    fill_region(wanted, scheme, site, seed=seed)
    lengths = torch.norm_except_dim(wanted, 2, weight.norm_dim)
    if bool((lengths == 0).any()):
        # v / ‖v‖ has no value at 0: a weight of zeros has norms of zero, and any direction.
        direction = torch.empty_like(wanted)
        fill_region(direction, Normal(1.0), site._replace(name=f"{site.name} direction", padding_row=None), seed=seed)
        wanted = torch.where(lengths == 0, direction, wanted)
    _copy_part(main, wanted)
    if norms:
        _copy_part(holder, lengths)


def _copy_part(target: torch.Tensor, values: torch.Tensor) -> None:
    for piece, offset in sharding.pieces(target):
        window = tuple(slice(low, low + size) for low, size in zip(offset, piece.shape, strict=True))
        piece.copy_(values[window])


def _solve(scheme: Scheme, site: Site, entry: NamedParameter, own: Sequence[Own], *, seed: int) -> ParametrizationList:
    """A copy of the parametrization that computes the weight asked for.

    Raises:
        ApplyError: there is none.
    """
    weight = entry.weight
    assert weight is not None
    if weight.chain is None:
        raise _refusal(scheme, entry, "divides it by its largest singular value, as a hook of torch's older interface")
    if any(sharding.is_distributed(parameter) for parameter in weight.chain.parameters()):
        raise _refusal(scheme, entry, "is sharded, and its inverse takes the whole weight")
    main = weight.parameter("main")
    device = torch.device("cpu") if main.is_meta else main.device
    wanted = torch.empty(site.shape, dtype=main.dtype, device=device)
    fill_region(wanted, scheme, site, seed=seed)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        chain = _copy(weight.chain, device)
        for part in own:
            parameter = chain.get_parameter(part.entry.name.partition(f"parametrizations.{weight.tensor}.")[2])
            fill_pieces(sharding.pieces(parameter), part.scheme, part.site, seed=seed)
        try:
            _invert(chain, wanted, settle="spectral_norm" in weight.kinds)
            computed = chain()
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise _refusal(scheme, entry, f"has no inverse for it ({str(error).splitlines()[0]})") from None
        tolerance = ROUNDINGS * torch.finfo(wanted.dtype).eps * wanted.abs().max()
        if computed.shape != wanted.shape or not bool((computed - wanted).abs().max() <= tolerance):
            raise _refusal(scheme, entry, "computes another weight, however its parameters are chosen")
    return chain


def _copy(chain: ParametrizationList, device: torch.device) -> ParametrizationList:
    copied = copy.deepcopy(chain)
    for module in copied.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.zeros_like(parameter, device=device))
    return copied


def _invert(chain: ParametrizationList, wanted: torch.Tensor, *, settle: bool) -> None:
    if all(hasattr(step, "right_inverse") for step in chain):
        chain.eval()
        chain.right_inverse(wanted)
    else:
        # Without an inverse the weight itself is tried, less what is added to it: exact for low-rank corrections.
        chain.eval()
        original = chain.original
        assert isinstance(original, torch.Tensor)
        original.copy_(wanted)
        original.copy_(wanted - (chain() - wanted))
    if settle:
        chain.train()
        for _ in range(SETTLING):
            chain()
        chain.eval()


def computed(entry: NamedParameter) -> torch.Tensor:
    """The weight that a layer computes with, without changing a buffer."""
    weight = entry.weight
    assert weight is not None
    with torch.no_grad():
        if weight.chain is not None:
            chain = weight.chain
            modes = [(module, module.training) for module in chain.modules()]
            try:
                found: torch.Tensor = chain.eval()()
                return found
            finally:
                for module, mode in modes:
                    module.training = mode
        if weight.is_weight_norm:
            return torch._weight_norm(weight.parameter("main"), weight.parameter("norm"), weight.norm_dim)
        return getattr(weight.layer, weight.tensor)  # type: ignore[no-any-return]


_INSTEAD = {
    "spectral_norm": ("a scheme whose largest singular value is 1", "fanin.schemes.Orthogonal()"),
    "orthogonal": ("a scheme that draws orthogonal matrices", "fanin.schemes.Orthogonal()"),
}


def _refusal(scheme: Scheme, entry: NamedParameter, why: str) -> ApplyError:
    assert entry.weight is not None
    kinds = entry.weight.kinds
    needed, instead = next(
        (_INSTEAD[kind] for kind in kinds if kind in _INSTEAD), ("a scheme whose values it can hold", "")
    )
    keep = f"plan.keep({entry.name!r})"
    given = f"{scheme.label} for {entry.weight_name}, which is parametrized by {', '.join(kinds)}"
    written = f"plan.replace({entry.name!r}, {instead}), or {keep}" if instead else keep
    if entry.weight.hook is not None:
        written = f"torch.nn.utils.parametrizations.{kinds[0]} in place of torch.nn.utils.{kinds[0]}, or {keep}"
    return ApplyError(compose(given, needed, f"the parametrization {why}", written))
