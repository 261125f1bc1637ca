"""Parameters under the names that the user gave them, whatever wraps the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fanin.errors import ApplyError, compose
from fanin.tracing.reparametrization import Reparametrization, reparametrizations

COMPONENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Path components that torch.compile, FSDP and activation checkpointing put into parameter names."""


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """A parameter with its owner, under the first of its names; the others are its ties.

    Args:
        name: the first name under which the module tree lists it, without what wrappers add.
        parameter: itself.
        owner, attribute: the module that has it, and under which name.
        aliases: its other names.
        weight: the weight that is computed from it and others, where a parametrization stands between.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    attribute: str
    aliases: tuple[str, ...] = ()
    weight: Reparametrization | None = None

    @property
    def weight_name(self) -> str:
        """The name of the weight that a layer computes with: its own, or the parametrized one's.

        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> [entry.weight_name for entry in named_parameters(weight_norm(nn.Linear(2, 2)))]
        ['bias', 'weight', 'weight']
        """
        return self.name if self.weight is None else self.weight.named_after(self.name)


def canonical(name: str) -> str:
    """The name without the path components that wrappers add.

    A data-parallel wrapper's ``module.`` is taken off by `unwrap`, not here: a model may have a child of that name.

    >>> canonical("_orig_mod.blocks.0._checkpoint_wrapped_module.fc.weight")
    'blocks.0.fc.weight'
    """
    return ".".join(part for part in name.split(".") if part not in COMPONENTS)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    while True:
        if _is_data_parallel(model):
            model = model.module  # type: ignore[assignment]
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _is_data_parallel(module: nn.Module) -> bool:
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    return isinstance(module, DataParallel | DistributedDataParallel)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every one of its names, wrappers taken off also where they wrap a part of the model."""
    names: dict[str, str] = {}
    parallel: set[str] = set()
    for path, module in unwrap(model).named_modules(remove_duplicate=False):
        parent, _, last = path.rpartition(".")
        name = names.get(parent, "")
        if last and last not in COMPONENTS and not (last == "module" and parent in parallel):
            name = f"{name}.{last}" if name else last
        names[path] = name
        if _is_data_parallel(module):
            parallel.add(path)
        yield name, module


def named_parameters(model: nn.Module) -> tuple[NamedParameter, ...]:
    """Every parameter once, in the module tree's order, with the names of its ties.

    Raises:
        ApplyError: two different parameters have one name once wrappers are taken off.
    """
    found: dict[int, tuple[str, nn.Parameter, nn.Module, str]] = {}
    aliases: dict[int, list[str]] = {}
    taken: dict[str, int] = {}
    weights: dict[int, Reparametrization] = {}
    for path, module in named_modules(model):
        weights.update(reparametrizations(module))
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{path}.{attribute}" if path else attribute
            if taken.setdefault(name, id(parameter)) != id(parameter):
                raise ApplyError(compose(f"two parameters named {name!r}", "distinct names without wrapper prefixes"))
            if id(parameter) not in found:
                found[id(parameter)] = (name, parameter, module, attribute)
            elif name != found[id(parameter)][0] and name not in aliases.setdefault(id(parameter), []):
                aliases[id(parameter)].append(name)
    return tuple(NamedParameter(*entry, tuple(aliases.get(key, ())), weights.get(key)) for key, entry in found.items())
