"""One run: a start, a learning rate, a seed, and the batches that the seed orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from fanin.applying import apply
from fanin.comparison.batches import Batches
from fanin.comparison.objectives import CrossEntropy, LossFunction, output_of
from fanin.comparison.randomness import seeded
from fanin.comparison.starting import measure_start
from fanin.errors import InputsError, compose, nearest
from fanin.plans import Plan
from fanin.race import Run, Start

Optimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


def _sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def _momentum(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr)


def _adamw(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr)


OPTIMIZERS: dict[str, Optimizer] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam, "adamw": _adamw}
"""By name: plain SGD, SGD with momentum 0.9, and torch's Adam and AdamW as they come."""


def optimizer_for(optimizer: str | Optimizer) -> tuple[str, Optimizer]:
    """The name and function of an optimizer that is given by either.

    Raises:
        InputsError: no optimizer has the name.
    """
    if callable(optimizer):
        return getattr(optimizer, "__name__", "a given optimizer"), optimizer
    if optimizer not in OPTIMIZERS:
        needed = f"{', '.join(OPTIMIZERS)}, or a function (parameters, lr) → torch.optim.Optimizer"
        raise InputsError(compose(f"optimizer={optimizer!r}", needed, nearest(optimizer, OPTIMIZERS)))
    return optimizer, OPTIMIZERS[optimizer]


@dataclass(frozen=True)
class Training:
    """What all runs share.

    Args:
        build: makes the model anew.
        plans: recipe → plan; None leaves the model as it was built.
        train: the batches.
        held_out: what accuracy is measured on, if anything.
        loss: (output, y) → scalar.
        optimizer: (parameters, lr) → optimizer.
        steps: of the optimizer.
    """

    build: Callable[[], nn.Module]
    plans: dict[str, Plan | None]
    train: Batches
    held_out: Batches | None
    loss: LossFunction
    optimizer: Optimizer
    steps: int

    def run(self, recipe: str, lr: float, seed: int) -> Run:
        """Train once, until the steps are done, the batches end or the loss is no longer a number."""
        with seeded(seed):
            model = self._model(recipe, seed)
            optimizer = self.optimizer((p for p in model.parameters() if p.requires_grad), lr)
            losses: list[float] = []
            diverged = False
            for x, y in islice(self.train.stream(seed), self.steps):
                optimizer.zero_grad()
                loss = self.loss(output_of(model, x), y)
                value = loss.item()
                if not math.isfinite(value):
                    diverged = True
                    break
                losses.append(float(f"{value:.6g}"))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            held_out_loss, accuracy = (None, None) if diverged else self._evaluate(model)
            return Run(recipe, lr, seed, tuple(losses), diverged, accuracy, held_out_loss)

    def start(self, recipe: str, seed: int) -> Start:
        """Measure the signal before the first step, on the first batch."""
        with seeded(seed):
            model = self._model(recipe, seed)
            x, y = next(iter(self.train.stream(seed)))
            return measure_start(recipe, model, lambda: self.loss(output_of(model, x), y))

    def _model(self, recipe: str, seed: int) -> nn.Module:
        model = self.build()
        plan = self.plans[recipe]
        if plan is not None:
            apply(plan, model, seed=seed)
        return model.train()

    @torch.no_grad()
    def _evaluate(self, model: nn.Module) -> tuple[float | None, float | None]:
        if self.held_out is None:
            return None, None
        model.eval()
        total, right, counted, examples = 0.0, 0, 0, 0
        for x, y in self.held_out.once():
            output = output_of(model, x)
            size = _examples(y)
            total += self.loss(output, y).item() * size
            examples += size
            if isinstance(self.loss, CrossEntropy):
                hits, of = self.loss.accuracy(output, y)
                right, counted = right + hits, counted + of
        mean = total / examples
        return (mean if math.isfinite(mean) else None), (right / counted if counted else None)


def _examples(target: Any) -> int:
    return len(target) if isinstance(target, torch.Tensor) and target.ndim else 1
