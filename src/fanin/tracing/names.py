"""Parameters under the names that the user gave them, whatever wraps the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fanin.errors import ApplyError, compose

COMPONENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Path components that torch.compile, FSDP and activation checkpointing put into parameter names."""


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """A parameter with its owner, under the first of its names; the others are its ties."""

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    attribute: str
    aliases: tuple[str, ...] = ()


def canonical(name: str) -> str:
    """The name without the path components that wrappers add.

    A data-parallel wrapper's ``module.`` is taken off by `unwrap`, not here: a model may have a child of that name.

    >>> canonical("_orig_mod.blocks.0._checkpoint_wrapped_module.fc.weight")
    'blocks.0.fc.weight'
    """
    return ".".join(part for part in name.split(".") if part not in COMPONENTS)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def named_parameters(model: nn.Module) -> tuple[NamedParameter, ...]:
    """Every parameter once, in the module tree's order, with the names of its ties.

    Raises:
        ApplyError: two different parameters have one name once wrappers are taken off.
    """
    found: dict[int, tuple[str, nn.Parameter, nn.Module, str]] = {}
    aliases: dict[int, list[str]] = {}
    taken: dict[str, int] = {}
    for path, module in unwrap(model).named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = canonical(f"{path}.{attribute}" if path else attribute)
            if taken.setdefault(name, id(parameter)) != id(parameter):
                raise ApplyError(compose(f"two parameters named {name!r}", "distinct names without wrapper prefixes"))
            if id(parameter) not in found:
                found[id(parameter)] = (name, parameter, module, attribute)
            elif name != found[id(parameter)][0] and name not in aliases.setdefault(id(parameter), []):
                aliases[id(parameter)].append(name)
    return tuple(NamedParameter(*entry, tuple(aliases.get(key, ()))) for key, entry in found.items())
