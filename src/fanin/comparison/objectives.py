"""Losses, the loss of chance, and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fanin.errors import InputsError, compose, nearest

LossFunction = Callable[[Any, Any], torch.Tensor]
IGNORED = -100
"""The target that torch's cross-entropy leaves out."""


def output_of(model: nn.Module, x: Any) -> Any:
    """Call the model: a dict is keyword arguments, a tuple or list positional ones, anything else the one argument."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


def prediction_of(output: Any) -> torch.Tensor:
    """The tensor in a model's output: the output itself, its ``logits``, or its first element."""
    for candidate in (output, getattr(output, "logits", None)):
        if isinstance(candidate, torch.Tensor):
            return candidate
    first = output[0] if isinstance(output, tuple | list) and output else None
    if isinstance(first, torch.Tensor):
        return first
    raise InputsError(
        compose(
            f"a model whose output is of type {type(output).__name__}",
            "a tensor, something with .logits, or a tuple whose first element is a tensor",
            instead="fanin.compare(…, loss=lambda output, y: …)",
        )
    )


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy between logits, classes last, and class indices of any shape."""

    def __call__(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        logits = prediction_of(output)
        return functional.cross_entropy(_classes_last(logits, target).flatten(0, -2), target.flatten())

    def accuracy(self, output: Any, target: torch.Tensor) -> tuple[int, int]:
        """How many are right, of how many."""
        guess = _classes_last(prediction_of(output), target).argmax(-1)
        counted = target != IGNORED
        return int(((guess == target) & counted).sum()), int(counted.sum())

    def chance(self, labels: torch.Tensor) -> float:
        """The entropy of the labels: the loss of always predicting their frequencies."""
        counts = torch.bincount(labels[labels != IGNORED].flatten().long()).double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log()).sum())


@dataclass(frozen=True)
class MeanSquare:
    """The mean squared error, over everything."""

    def __call__(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        prediction = prediction_of(output)
        return functional.mse_loss(prediction, target.reshape(prediction.shape).to(prediction.dtype))

    def chance(self, labels: torch.Tensor) -> float:
        """The variance of the targets: the loss of always predicting their mean."""
        return float(labels.double().var(dim=0, unbiased=False).mean())


def _classes_last(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits with their classes last, whether they came last (N, T, C) or second as torch has them (N, C, T)."""
    if logits.ndim == target.ndim + 1 and logits.shape[:-1] != target.shape:
        return logits.movedim(1, -1)
    return logits


NAMED: dict[str, CrossEntropy | MeanSquare] = {"cross_entropy": CrossEntropy(), "mse": MeanSquare()}


def loss_for(loss: str | LossFunction | None, labels: torch.Tensor | None) -> LossFunction:
    """The loss that is named or given; without one, cross-entropy for whole-number targets and mean square for others.

    Raises:
        InputsError: an unknown name, or no loss and targets that are not tensors.
    """
    if callable(loss):
        return loss
    if isinstance(loss, str):
        if loss not in NAMED:
            needed = f"{' or '.join(map(repr, NAMED))}, or a function (output, y) → scalar"
            raise InputsError(compose(f"loss={loss!r}", needed, nearest(loss, NAMED)))
        return NAMED[loss]
    if labels is None:
        raise InputsError(
            compose("targets that are not tensors, and no loss", "a loss", instead="loss=lambda output, y: …")
        )
    return NAMED["mse" if labels.is_floating_point() else "cross_entropy"]
