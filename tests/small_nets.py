"""Small nets of which the tests of recipes ask for plans."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

import fanin
from fanin.plans import Plan


def planned(build: Callable[[], nn.Module], *shape: int) -> Plan:
    with torch.random.fork_rng(devices=[]):
        return fanin.plan(build(), torch.zeros(*shape))


def stack(depth: int, activation: type[nn.Module], width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        *[layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), activation())], nn.Linear(width, 4)
    )


class Branch(nn.Module):
    """x + f(norm(x)), or without its norm."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16) if norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(functional.gelu(self.fc1(self.norm(x))))
