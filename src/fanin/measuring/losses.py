"""What the backward starts from: the user's loss, the model's own, or a fixed projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fanin.errors import InputsError, article, compose
from fanin.measuring.ignorance import knowing_nothing
from fanin.tracing.capture import tensors_in as tensors_within

Loss = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Start:
    """Where the backward starts.

    Args:
        scalar: what is differentiated; None where no output depends on a parameter.
        source: ``given``, ``model`` or ``projection``.
        value: of the loss; None of a projection.
        uninformed: of an output that knows nothing.
        uninformed_from: where that number comes from.
    """

    scalar: torch.Tensor | None
    source: str
    value: float | None = None
    uninformed: float | None = None
    uninformed_from: str = ""


def start_of(output: Any, loss: Loss | None) -> Start:
    """Choose what to differentiate.

    Raises:
        InputsError: the loss failed, or gave no scalar.
    """
    if loss is not None:
        scalar = _called(loss, output)
        uninformed, words = _uninformed(loss, output)
        return Start(_live(scalar), "given", _number(scalar), uninformed, words)
    own = _own_loss(output)
    if own is not None:
        classes = _classes(output)
        uninformed = math.log(classes) if classes > 1 else None
        words = f"ln {classes}, for cross-entropy over the last axis of the logits" if classes > 1 else ""
        return Start(_live(own), "model", _number(own), uninformed, words)
    return Start(_live(project(output)), "projection")


def _live(scalar: torch.Tensor | None) -> torch.Tensor | None:
    return scalar if scalar is not None and scalar.requires_grad else None


def _called(loss: Loss, output: Any) -> torch.Tensor:
    try:
        scalar = loss(output)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        given = f"a loss that fails on the model's output, {article(type(output).__name__)}"
        raise InputsError(compose(given, "a function of the output", why, "loss=lambda output: ...")) from error
    if not isinstance(scalar, torch.Tensor) or scalar.numel() != 1:
        is_tensor = isinstance(scalar, torch.Tensor)
        found = f"shape {tuple(scalar.shape)}" if is_tensor else article(type(scalar).__name__)
        raise InputsError(compose(f"a loss that returns {found}", "one number, as a tensor", instead="loss.mean()"))
    return scalar.reshape(())


def _number(scalar: torch.Tensor) -> float:
    value = float(scalar.detach())
    return value if math.isfinite(value) else math.inf


def _uninformed(loss: Loss, output: Any) -> tuple[float | None, str]:
    """The loss of an output that knows nothing, and what that is; nothing where it cannot be told."""
    try:
        with torch.no_grad():
            neutral, words = knowing_nothing(output)
            value = float(loss(neutral)) if words else math.nan
    except Exception:  # a loss need not make sense of zeros; then there is nothing to compare with
        return None, ""
    return (value, words) if math.isfinite(value) else (None, "")


def _own_loss(output: Any) -> torch.Tensor | None:
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(found, torch.Tensor) and found.numel() == 1 and found.requires_grad:
        return found.reshape(())
    return None


def _classes(output: Any) -> int:
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return int(logits.shape[-1]) if isinstance(logits, torch.Tensor) and logits.ndim > 1 else 0


def project(output: Any) -> torch.Tensor | None:
    """The sum of the outputs times fixed random numbers of RMS ``1 / √n``, so that the gradient there has norm 1.

    Of a structure, all floating-point tensors that depend on a parameter. Drawn by a generator of its own.
    """
    outputs = [item for item in tensors_within(output) if item.is_floating_point() and item.requires_grad]
    count = sum(item.numel() for item in outputs)
    if not count:
        return None
    generator = torch.Generator().manual_seed(0)
    total: torch.Tensor | None = None
    for item in outputs:
        direction = torch.randn(item.shape, generator=generator).to(item.device) / math.sqrt(count)
        part = (item.float() * direction).sum()
        total = part if total is None else total + part
    return total
