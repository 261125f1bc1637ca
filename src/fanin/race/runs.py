"""What was observed: one training run, and the signal before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

TAIL = 0.1
"""The share of the steps, at the end, whose mean loss a run is judged by."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training from one start.

    Args:
        recipe: how the parameters started.
        lr: the learning rate.
        seed: of the parameters, and of the order of the batches.
        losses: the training loss of each batch, before its step; it ends where the loss stopped being a number.
        diverged: whether it did.
        accuracy: the share of held-out examples that are classified rightly, where there are any.
        held_out_loss: the mean loss over the held-out examples, where there are any.

    >>> Run("he", 0.1, 0, (2.0, 1.0, 0.5)).final
    0.5
    """

    recipe: str
    lr: float
    seed: int
    losses: tuple[float, ...]
    diverged: bool = False
    accuracy: float | None = None
    held_out_loss: float | None = None

    @property
    def final(self) -> float:
        """The mean loss over the last tenth of the steps; infinite when the run diverged."""
        if self.diverged or not self.losses:
            return math.inf
        return fmean(self.losses[-max(round(len(self.losses) * TAIL), 1) :])

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON types."""
        return {name: getattr(self, name) for name in self.__slots__} | {"losses": list(self.losses)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Run:
        """The inverse of `to_dict`."""
        return cls(**{**record, "losses": tuple(map(float, record["losses"]))})


@dataclass(frozen=True, slots=True)
class Start:
    """The signal through the layers before the first step, on the first batch: why a start trains or does not.

    Args:
        recipe: how the parameters started.
        layers: the modules that own weights, in the order in which they ran.
        activation_rms: root mean square of each module's output; None where it is not a finite number, or where the
            module's weight is used without calling the module.
        signal_rms: the same without what is common to all examples: the part of the output that knows the input.
            Biases can keep an activation alive whose signal has died.
        gradient_rms: root mean square of the loss gradient by each module's weights; None where not finite.
    """

    recipe: str
    layers: tuple[str, ...]
    activation_rms: tuple[float | None, ...]
    signal_rms: tuple[float | None, ...]
    gradient_rms: tuple[float | None, ...]

    @property
    def signal_ratio(self) -> float | None:
        """The last layer's signal RMS over the first one's; 0 where there is none at all."""
        known = [value for value in self.signal_rms if value is not None]
        if len(known) < 2:
            return None
        return known[-1] / known[0] if known[0] else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The start as JSON types."""
        return {"recipe": self.recipe} | {name: list(getattr(self, name)) for name in self.__slots__[1:]}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Start:
        """The inverse of `to_dict`."""
        parts = {name: tuple(record[name]) for name in cls.__slots__[1:]}
        return cls(recipe=str(record["recipe"]), **parts)
