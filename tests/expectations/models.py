"""Build the models of the expectations and the inputs that they are called with."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn


def build(record: dict[str, Any]) -> nn.Module:
    """The model of one expectation file, in eval mode; the global random state is left as it was."""
    library, _, name = record["model"].partition("/")
    device = torch.device(record["device"]) if "device" in record else nullcontext()
    with torch.random.fork_rng(), device:
        return _BUILDERS[library](record, name).eval()


def example(spec: Any) -> Any:
    """Example inputs from their description: tensors for ``floats`` and ``ints``, lists as tuples of arguments."""
    if isinstance(spec, list):
        return tuple(example(part) for part in spec)
    if not isinstance(spec, dict):
        return spec
    generator = torch.Generator().manual_seed(0)
    if "floats" in spec:
        return torch.randn(spec["floats"], generator=generator)
    if "ints" in spec:
        return torch.randint(1, spec["below"], spec["ints"], generator=generator)
    return {name: example(part) for name, part in spec.items()}


def _timm(record: dict[str, Any], name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **record.get("config", {}))
    return model


def _torchvision(record: dict[str, Any], name: str) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None, **record.get("config", {}))
    return model


def _transformers(record: dict[str, Any], name: str) -> nn.Module:
    import transformers

    kind = getattr(transformers, record["class"])
    model: nn.Module = kind(kind.config_class(**record.get("config", {})))
    return model


def _awkward(record: dict[str, Any], name: str) -> nn.Module:
    from expectations import awkward

    model: nn.Module = getattr(awkward, record.get("class", name))(**record.get("config", {}))
    return model


_BUILDERS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers, "awkward": _awkward}
