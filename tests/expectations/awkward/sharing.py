"""Parameters that are shared, tied, renamed, rewritten, or reached in an unusual order."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


class TiedHead(nn.Module):
    """The output layer reads the embedding's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embed(tokens))))


class SharedLayer(nn.Module):
    """One layer is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layer(F.relu(self.layer(x)))))


class OutOfOrder(nn.Module):
    """Registered from the last layer to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 4)
        self.second = nn.Linear(16, 24)
        self.first = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.second(F.relu(self.first(x)))))


class DictInputs(nn.Module):
    """Takes one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 8, 3)
        self.text = nn.Embedding(20, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image = F.leaky_relu(self.image(batch["image"])).mean((2, 3))
        return {"logits": self.head(torch.cat([image, self.text(batch["text"]).mean(1)], dim=1))}


class DataDependentBranch(nn.Module):
    """Which layer runs depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.common = nn.Linear(8, 16)
        self.high = nn.Linear(16, 4)
        self.low = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.common(x))
        return self.high(hidden) if hidden.mean() > 0 else self.low(hidden)


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.elu(self.first(x)))


class ScriptedInside(nn.Module):
    """Holds a TorchScript module."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Scripting is deprecated, but models that hold scripted modules are around.
            warnings.simplefilter("ignore", FutureWarning)
            self.inner = torch.jit.script(_Inner())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.inner(x)))


class TextBag(nn.Module):
    """An embedding that is summed within its own operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 16, padding_idx=0)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens))


class Reparametrized(nn.Module):
    """The weights that the operations see are computed from the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = weight_norm(nn.Conv1d(4, 8, 3))
        self.bounded = spectral_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.normed(x)).mean(2)
        return self.head(torch.tanh(self.bounded(x)))


class LowRankAdapter(nn.Module):
    """A frozen layer plus a low-rank correction."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 24)
        self.down = nn.Linear(16, 2, bias=False)
        self.up = nn.Linear(2, 24, bias=False)
        self.head = nn.Linear(24, 4)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + 2.0 * self.up(self.down(x))))


class RawMatmul(nn.Module):
    """Parameters without layers, in (in, out) layout."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(8, 16))
        self.b1 = nn.Parameter(torch.zeros(16))
        self.w2 = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x @ self.w1 + self.b1) @ self.w2
