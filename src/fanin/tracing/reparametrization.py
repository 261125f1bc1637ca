"""Weights that are computed from parameters: both of torch's interfaces, seen as one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

KINDS: dict[type, str] = {
    parametrizations._WeightNorm: "weight_norm",
    parametrizations._SpectralNorm: "spectral_norm",
    parametrizations._Orthogonal: "orthogonal",
}
"""torch's own parametrizations under the names of the functions that register them."""


@dataclass(frozen=True, slots=True)
class Reparametrization:
    """A weight, and the parameters that a layer computes it from.

    Args:
        layer: the module that computes with the weight.
        tensor: the weight's name in it: ``weight``.
        kinds: what is done to it, in order: ``("weight_norm",)``.
        part: what this parameter is: ``main`` takes the scheme of the weight, ``norm`` holds the norms of a
            weight-normed one, ``own`` belongs to the parametrization, like the factors of a low-rank one.
        suffix: the parameter's name as seen from the layer: ``parametrizations.weight.original0``.
    """

    layer: nn.Module
    tensor: str
    kinds: tuple[str, ...]
    part: str
    suffix: str

    @property
    def chain(self) -> parametrize.ParametrizationList | None:
        """The parametrizations; None for the older interface, whose hooks compute the weight before a forward."""
        found = getattr(self.layer, "parametrizations", None)
        if isinstance(found, nn.ModuleDict) and self.tensor in found:
            chain = found[self.tensor]
            assert isinstance(chain, parametrize.ParametrizationList)
            return chain
        return None

    @property
    def hook(self) -> WeightNorm | SpectralNorm | None:
        """The hook of the older interface."""
        return next((hook for hook in _hooks(self.layer) if hook.name == self.tensor), None)

    @property
    def is_weight_norm(self) -> bool:
        """Whether it is weight normalization alone, which can hold every weight."""
        return self.kinds == ("weight_norm",)

    @property
    def norm_dim(self) -> int:
        """The dimension that weight normalization keeps a norm for; −1 where it keeps one for the whole weight."""
        chain = self.chain
        return int(getattr(self.hook if chain is None else chain[0], "dim"))  # noqa: B009

    def parameter(self, part: str) -> nn.Parameter:
        """The main parameter, or the norms of a weight-normed weight."""
        chain = self.chain
        holder: Any = self.layer if chain is None else chain
        if chain is None:
            name = self.tensor + {"norm": "_g", "main": "_v" if self.is_weight_norm else "_orig"}[part]
        else:
            name = "original" if chain.is_tensor else {"norm": "original0", "main": "original1"}[part]
        found: nn.Parameter = getattr(holder, name)
        return found

    def named_after(self, name: str) -> str:
        """The weight's name, from the name of this parameter of it.

        A name that does not end like this parameter's is the weight's already: a plan for a model without the
        parametrization.
        """
        return name.removesuffix(self.suffix) + self.tensor if name.endswith(self.suffix) else name


def reparametrizations(module: nn.Module) -> dict[int, Reparametrization]:
    """What each parameter behind a computed weight of this module is, by the parameter's id."""
    found: dict[int, Reparametrization] = {}
    if parametrize.is_parametrized(module):
        for tensor, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
            kinds = tuple(KINDS.get(type(step), type(step).__name__) for step in chain)
            for name, parameter in chain.named_parameters():
                part = _part(name, kinds)
                suffix = f"parametrizations.{tensor}.{name}"
                found[id(parameter)] = Reparametrization(module, tensor, kinds, part, suffix)
    for hook in _hooks(module):
        normed = isinstance(hook, WeightNorm)
        kinds = ("weight_norm",) if normed else ("spectral_norm",)
        for ending, part in (("_g", "norm"), ("_v", "main")) if normed else (("_orig", "main"),):
            suffix = hook.name + ending
            parameter = getattr(module, suffix)
            found[id(parameter)] = Reparametrization(module, hook.name, kinds, part, suffix)
    return found


def _part(name: str, kinds: Sequence[str]) -> str:
    if name == "original":
        return "main"
    if tuple(kinds) == ("weight_norm",):
        return {"original0": "norm", "original1": "main"}.get(name, "own")
    return "own"


def _hooks(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


def plain(module: nn.Module) -> nn.Module:
    """A layer as it was before its weights were parametrized, for rules that read its settings and shapes.

    The weights are there with their shapes only, on the meta device: computing them would cost a matrix product or
    more, and spectral normalization changes its buffers whenever it is computed.
    """
    weights = {weight.tensor: weight for weight in reparametrizations(module).values()}
    if not weights:
        return module
    kind = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    stand_in: nn.Module = object.__new__(kind)
    stand_in.__dict__.update({name: value for name, value in module.__dict__.items() if name not in weights})
    behind = {weight.suffix for weight in weights.values()}
    parameters = {name: value for name, value in module._parameters.items() if name not in behind}
    for tensor, weight in weights.items():
        parameters[tensor] = nn.Parameter(torch.empty(shape_of(weight), device="meta"))
    stand_in.__dict__["_parameters"] = parameters
    return stand_in


def shape_of(weight: Reparametrization) -> tuple[int, ...]:
    """The shape of a computed weight, without computing it."""
    main_only = weight.chain is None or set(weight.kinds) <= set(KINDS.values())
    if main_only:
        return tuple(weight.parameter("main").shape)
    chain = weight.chain
    assert chain is not None
    try:
        with torch.no_grad():
            shape = copy.deepcopy(chain).to("meta").eval()().shape
    except (RuntimeError, NotImplementedError, AttributeError):
        shape = next(chain.parameters(recurse=False)).shape
    return tuple(shape)
