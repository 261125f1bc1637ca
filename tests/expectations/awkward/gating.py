"""Gates, non-linearities that no table knows, and norms around them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GatedFeedForward(nn.Module):
    """A packed gated layer in either order."""

    def __init__(self, gate_first: bool) -> None:
        super().__init__()
        self.gate_first = gate_first
        self.norm = nn.LayerNorm(16)
        self.wi = nn.Linear(16, 64)
        self.wo = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.wi(self.norm(x))
        if self.gate_first:
            gate, up = packed.chunk(2, dim=-1)
            return x + self.wo(F.silu(gate) * up)
        return x + self.wo(F.glu(packed, dim=-1))


class InterleavedGate(nn.Module):
    """Even rows are the value, odd rows the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.wi = nn.Linear(16, 64)
        self.wo = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.wi(x)
        return self.wo(packed[..., ::2] * F.gelu(packed[..., 1::2], approximate="tanh"))


class SelfGatedConvolution(nn.Module):
    """Depthwise-separable convolution with squeeze-and-excitation and a residual sum."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.squeeze = nn.Conv2d(width, 4, 1)
        self.excite = nn.Conv2d(4, width, 1)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x))
        y = F.relu6(self.norm1(self.depthwise(x)))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.norm2(self.pointwise(y))


class CompositeActivations(nn.Module):
    """Known non-linearities, spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.mish = nn.Linear(8, 8)
        self.gelu = nn.Linear(8, 8)
        self.silu = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mish(x)
        x = self.gelu(x * torch.tanh(F.softplus(x)))
        x = self.silu(0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
        return self.head(x * torch.sigmoid(x))


class UnknownActivation(nn.Module):
    """x · tanh(eˣ), which has no name here."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * torch.tanh(torch.exp(x)))


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x > 0)


class CustomFunction(nn.Module):
    """A rectifier with a backward pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Rectify.apply(self.first(x)))


class Highway(nn.Module):
    """A gate decides between a transformation and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(8, 8)
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return self.head(gate * F.relu(self.transform(x)) + (1 - gate) * x)


class NormalizationZoo(nn.Module):
    """A norm of another kind before each non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.group = nn.GroupNorm(2, 8)
        self.conv2 = nn.Conv2d(8, 8, 3, groups=4, stride=2)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.fc = nn.Linear(8, 8)
        self.rms = nn.RMSNorm(8)
        self.prelu = nn.PReLU(8)
        self.unit = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.group(self.conv1(x)))
        x = F.elu(self.instance(self.conv2(x))).mean((2, 3))
        x = self.prelu(self.rms(self.fc(x)))
        return self.head(torch.tanh(F.normalize(self.unit(x), dim=-1)))


class ReZero(nn.Module):
    """A scalar holds each branch at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.ModuleList(nn.Linear(8, 16) for _ in range(3))
        self.fc2 = nn.ModuleList(nn.Linear(16, 8) for _ in range(3))
        self.alpha = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for fc1, fc2, alpha in zip(self.fc1, self.fc2, self.alpha, strict=True):
            x = x + alpha * fc2(F.softplus(fc1(x)))
        return x


class DenseExperts(nn.Module):
    """All experts run, stacked on a first axis, and a softmax weighs them."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(8, experts)
        self.up = nn.Parameter(torch.randn(experts, 8, 16))
        self.down = nn.Parameter(torch.randn(experts, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        hidden = F.gelu(torch.einsum("bd,edf->bef", x, self.up))
        return torch.einsum("bed,be->bd", torch.einsum("bef,efd->bed", hidden, self.down), weights)
