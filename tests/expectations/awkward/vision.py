"""Convolutions that go up again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SkipConcatenation(nn.Module):
    """A small U-Net: the skip is concatenated, not added."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 3, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down1(x))
        deep = F.relu(self.down2(F.max_pool2d(skip, 2)))
        return self.head(F.relu(self.merge(torch.cat([skip, self.up(deep)], dim=1))))


class Generator(nn.Module):
    """Transposed convolutions from a vector to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(10, 16 * 4 * 4, bias=False)
        self.norm0 = nn.BatchNorm1d(16 * 4 * 4)
        self.up1 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.up2 = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2)
        self.last = nn.ConvTranspose2d(4, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.start(z))).view(-1, 16, 4, 4)
        x = F.relu(self.norm1(self.up1(x)))
        return torch.tanh(self.last(F.leaky_relu(self.up2(x), 0.2)))


class FeaturePyramid(nn.Module):
    """Two levels of features, joined from the top down."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.high = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.lateral_low = nn.Conv2d(8, 8, 1)
        self.lateral_high = nn.Conv2d(16, 8, 1)
        self.smooth_low = nn.Conv2d(8, 8, 3, padding=1)
        self.smooth_high = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = F.relu(self.low(x))
        high = F.relu(self.high(low))
        top = self.lateral_high(high)
        joined = self.lateral_low(low) + F.interpolate(top, size=low.shape[-2:], mode="nearest")
        return {"low": self.smooth_low(joined), "high": self.smooth_high(top)}
