"""The signal before the first step: how large each layer's output is, and each weight's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fanin.race import Start


def measure_start(recipe: str, model: nn.Module, loss: Callable[[], torch.Tensor]) -> Start:
    """One forward and one backward, watched; the model's gradients are cleared afterwards and its hooks removed.

    Args:
        recipe: the name to record.
        model: with its parameters as they start.
        loss: calls the model and returns the scalar to differentiate.
    """
    weighted = {name: module for name, module in model.named_modules() if _weights(module)}
    outputs: dict[str, tuple[float | None, float | None]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is not None:
                outputs.setdefault(name, (rms([tensor]), rms([_signal(tensor)])))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in weighted.items()]
    try:
        loss().backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    layers = (*outputs, *(name for name in weighted if name not in outputs))
    gradients = {name: rms([w.grad for w in _weights(weighted[name]) if w.grad is not None]) for name in layers}
    model.zero_grad()
    return Start(
        recipe=recipe,
        layers=layers,
        activation_rms=tuple(outputs.get(name, (None, None))[0] for name in layers),
        signal_rms=tuple(outputs.get(name, (None, None))[1] for name in layers),
        gradient_rms=tuple(gradients[name] for name in layers),
    )


def rms(tensors: list[torch.Tensor]) -> float | None:
    """The root mean square over all elements, in double precision: squares of vanished signals underflow in single.

    None where there is nothing, or something that is not a finite number.
    """
    count = sum(tensor.numel() for tensor in tensors)
    if not count:
        return None
    value = math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors) / count)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _signal(tensor: torch.Tensor) -> torch.Tensor:
    """What differs between examples, which are along the first axis; in double, to see a small rest of a large sum."""
    wide = tensor.detach().double()
    return wide - wide.mean(dim=0, keepdim=True) if wide.ndim > 1 and len(wide) > 1 else wide


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.ndim >= 2]


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)
