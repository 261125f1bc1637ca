"""Models that are awkward to run rather than to read: they keep state, ask for data, fail, draw random numbers.

`MODELS` maps a name to a builder and the inputs of its forward. (Models that are awkward to read are in
`expectations.awkward`.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Caching(nn.Module):
    """Fills a dict and an attribute in its first forward, and uses them from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 10))
        self.query = nn.Linear(8, 8)
        self.cache: dict[str, torch.Tensor] = {}
        self.calls: list[int] = []
        self.register_buffer("places", torch.arange(25).remainder(10).view(5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(self.calls))
        if "bias" not in self.cache:
            self.cache["bias"] = self.table[:, self.places]
        q = self.query(x)
        scores = (q @ x.transpose(-2, -1)).unsqueeze(1) + self.cache["bias"]
        return scores.softmax(-1).mean(1) @ x


class Counting(nn.Module):
    """Batch norm, and a buffer that it writes in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return F.relu(self.norm(self.conv(x)))


class Random(nn.Module):
    """Draws from all three global generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.randn_like(x) * random.random() * float(np.random.rand())  # noqa: NPY002
        return F.dropout(self.layer(x), 0.1, training=True) + torch.rand(8)


class Asking(nn.Module):
    """Goes two ways, by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.large(x)) if x.abs().max().item() > 1e6 else torch.relu(self.small(x))
        kept = y[y.sum(-1) > 0]
        return torch.cat([kept, kept])


class Leaving(nn.Module):
    """Takes a detour through NumPy, which no fake tensor can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        return self.second(torch.from_numpy(y.numpy().copy()))


class Failing(nn.Module):
    """Changes itself, and then raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.state: dict[str, Any] = {"seen": 0}
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state["seen"] += 1
        self.extra = self.layer(x)
        raise self.error


class Writing(nn.Module):
    """Normalises its own weight in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.layer.weight.div_(self.layer.weight.norm())
        return torch.sigmoid(self.layer(x))


class InPlace(nn.Module):
    """Writes through views."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y.relu_()
        z = torch.zeros_like(y)
        z[:, :4] += self.second(y)[:, :4]
        return torch.tanh(z) + torch.sigmoid(self.third(y))


class Idle(nn.Module):
    """Has a head for training and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        self.forgotten = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.body(x))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def _floats(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "Caching": (Caching, (_floats(2, 5, 8),)),
    "Counting": (Counting, (_floats(2, 3, 8, 8),)),
    "Random": (Random, (_floats(2, 8),)),
    "Asking": (Asking, (_floats(3, 8),)),
    "Leaving": (Leaving, (_floats(2, 8),)),
    "Writing": (Writing, (_floats(2, 8),)),
    "InPlace": (InPlace, (_floats(2, 8),)),
    "Idle": (Idle, (_floats(2, 8),)),
}
