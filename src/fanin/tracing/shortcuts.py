"""The results of the commonest operations on fake tensors, made directly: the fake mode takes milliseconds for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fanin.tracing import compatibility

Shape = tuple[int, ...]

Rule = Callable[[torch.Tensor, dict[str, Any]], Shape | None]
"""From the signal and the other arguments by name, the shape of the result; None where torch's own rule shall say."""

VIEWS = frozenset(
    {"reshape", "view", "permute", "transpose", "unbind", "chunk", "split", "slice", "select", "flatten", "unflatten"}
    | {"squeeze", "unsqueeze", "movedim", "t", "narrow", "contiguous"}
)
"""Operations on one tensor that only move it: their kernels need no data."""


def quick_result(func: Any, target: str, named: dict[str, Any], args: Any, kwargs: Any) -> Any:
    """The result of an operation; None where the fake mode shall give it.

    Args:
        func: the operation.
        target: its normalised name.
        named: its arguments by name.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    rule = _RULES.get(target)
    if rule is None and (target not in VIEWS or func._schema.is_mutable):
        return None
    signal: Any = named.get("input", named.get("self"))
    if not compatibility.is_fake(signal) or signal.device.type != "cpu":
        return None
    if rule is None:
        return compatibility.made_on_meta(signal.fake_mode, lambda: func(*args, **kwargs))
    shape = rule(signal, named)
    if shape is None:
        return None
    # Images keep their memory format; everything else comes out contiguous.
    keeps = target == "batch_norm" and signal.ndim == 4
    return compatibility.fake_tensor(signal.fake_mode, shape, signal.dtype, signal.stride() if keeps else None)


def _linear(signal: torch.Tensor, named: dict[str, Any]) -> Shape | None:
    weight = named["weight"]
    if weight.ndim != 2 or weight.dtype != signal.dtype or signal.ndim == 0 or signal.shape[-1] != weight.shape[1]:
        return None
    return (*signal.shape[:-1], weight.shape[0])


def _batch_norm(signal: torch.Tensor, named: dict[str, Any]) -> Shape | None:
    mean = named.get("running_mean")
    fits = signal.ndim > 1 and mean is not None and mean.shape == signal.shape[1:2] and mean.dtype == signal.dtype
    dense = signal.ndim < 4 or signal.is_contiguous()
    dense = dense or (signal.ndim == 4 and signal.is_contiguous(memory_format=torch.channels_last))
    return tuple(signal.shape) if fits and dense and not named.get("training") else None


def _layer_norm(signal: torch.Tensor, named: dict[str, Any]) -> Shape | None:
    size = tuple(named["normalized_shape"])
    weight = named.get("weight")
    fits = tuple(signal.shape[-len(size) :]) == size and (weight is None or weight.dtype == signal.dtype)
    return tuple(signal.shape) if fits and signal.is_contiguous() else None


def _conv2d(signal: torch.Tensor, named: dict[str, Any]) -> Shape | None:
    weight, padding = named["weight"], named.get("padding", 0)
    groups = named.get("groups", 1)
    fits = signal.ndim == weight.ndim == 4 and signal.dtype == weight.dtype and not isinstance(padding, str)
    fits = fits and signal.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    if not fits or not _plainly_contiguous(signal) or not weight.is_contiguous():
        return None
    sizes = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, pad, dilation in zip(
            signal.shape[2:],
            weight.shape[2:],
            _pair(named.get("stride", 1)),
            _pair(padding),
            _pair(named.get("dilation", 1)),
            strict=True,
        )
    ]
    return (signal.shape[0], weight.shape[0], *sizes) if min(sizes) > 0 else None


def _pair(given: Any) -> tuple[int, int]:
    numbers = given if isinstance(given, list | tuple) else (given,)
    return numbers[0], numbers[-1]


def _plainly_contiguous(signal: torch.Tensor) -> bool:
    """Contiguous and not also, by an axis of size one, in the other memory format."""
    return signal.is_contiguous() and not signal.is_contiguous(memory_format=torch.channels_last)


def _grouped_mm(first: torch.Tensor, named: dict[str, Any]) -> Shape | None:
    """Here because its fake rule accepts bfloat16 only: ``[T, K] × [E, K, N] → [T, N]``."""
    second = named["mat2"]
    if first.ndim == 2 and second.ndim == 3:
        return (first.shape[0], second.shape[2])
    return (first.shape[1], second.shape[1]) if first.ndim == 3 and second.ndim == 2 else None


_RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "_grouped_mm": _grouped_mm,
}
