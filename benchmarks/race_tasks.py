"""Small tasks on real and generated data, on which initializations race: from shallow controls to nets that need care.

Each task builds a model (under the caller's random state) and draws batches from a generator. Targets are integers for
classification and floats for regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    optimizer: str = "sgd"
    steps: int = 200


class Residual(nn.Module):
    """x + f(x), without any norm."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Gated(nn.Module):
    """A gated unit: down(silu(gate(x)) · up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A transformer block, with its norms before the branches or after the sums."""

    def __init__(self, width: int, heads: int, post: bool) -> None:
        super().__init__()
        self.heads, self.post = heads, post
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attend(x))
            return self.norm2(x + self.fc2(functional.gelu(self.fc1(x))))
        x = x + self.attend(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens in, a class or next tokens out."""

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, classes: int, *, post: bool, tied: bool
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, 4, post) for _ in range(depth))
        self.norm = nn.Identity() if post else nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        self.pooled = classes != vocabulary
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.pooled else x)


class Recurrent(nn.Module):
    """A recurrent layer over a sequence, read at its end."""

    def __init__(self, layer: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 1797 images of 64 pixels, standardized as a whole."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def digit_batch(shape: tuple[int, ...], targets: str = "class") -> Callable[[torch.Generator], Batch]:
    """Batches of digits as vectors, images or sequences; the target is the class or the image itself."""

    def draw(generator: torch.Generator) -> Batch:
        images, labels = digits()
        chosen = torch.randint(len(images), (64,), generator=generator)
        x = images[chosen].reshape(64, *shape)
        return x, x if targets == "image" else labels[chosen]

    return draw


@cache
def corpus() -> Tensor:
    """Source text of the standard library, as bytes below 128."""
    import argparse
    import inspect

    return torch.tensor([byte for byte in inspect.getsource(argparse).encode() if byte < 128])


def text_batch(generator: torch.Generator) -> Batch:
    """32 windows of 32 characters, and the characters after them."""
    text = corpus()
    start = torch.randint(len(text) - 33, (32, 1), generator=generator)
    window = text[start + torch.arange(33)]
    return window[:, :-1], window[:, 1:]


def recall_batch(generator: torch.Generator) -> Batch:
    """Say the first of 30 symbols after the last: a memory of 30 steps."""
    x = torch.randint(8, (64, 30), generator=generator)
    return functional.one_hot(x, 8).float(), x[:, 0]


def parity_batch(generator: torch.Generator) -> Batch:
    """Tokens whose class is how many fives there are among 12, at most 7."""
    x = torch.randint(10, (64, 12), generator=generator)
    return x, (x == 5).sum(1).clamp(max=7)


def plain(depth: int, activation: Callable[[], nn.Module], width: int = 96) -> Callable[[], nn.Module]:
    """A plain deep network over digits."""

    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(64, width), activation()]
        for _ in range(depth - 2):
            layers += [nn.Linear(width, width), activation()]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return build


def plain_convolutions(depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def residual_plain(depth: int, width: int = 96) -> nn.Module:
    blocks = [Residual(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)]
    return nn.Sequential(nn.Linear(64, width), *blocks, nn.ReLU(), nn.Linear(width, 10))


def residual_convolutions(depth: int) -> nn.Module:
    def branch() -> Residual:
        return Residual(
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )

    blocks = [nn.Sequential(branch(), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 8, 3, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(8, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )  # fmt: skip


def gated(depth: int, width: int = 64) -> nn.Module:
    blocks = [Residual(Gated(width, 2 * width)) for _ in range(depth)]
    return nn.Sequential(nn.Linear(64, width), *blocks, nn.Linear(width, 10))


VECTOR, IMAGE, ROWS = digit_batch((64,)), digit_batch((1, 8, 8)), digit_batch((8, 8))

TASKS: tuple[Task, ...] = (
    Task("mlp-2", plain(2, nn.ReLU), VECTOR, steps=100),
    Task("mlp-5-gelu", plain(5, nn.GELU), VECTOR, steps=150),
    Task("plain-30-relu", plain(30, nn.ReLU), VECTOR),
    Task("plain-30-tanh", plain(30, nn.Tanh), VECTOR),
    Task("plain-30-gelu", plain(30, nn.GELU), VECTOR),
    Task("plain-50-silu", plain(50, nn.SiLU), VECTOR),
    Task("plain-10-sigmoid", plain(10, nn.Sigmoid), VECTOR),
    Task("plain-30-selu", plain(30, nn.SELU), VECTOR),
    Task("conv-20-plain", lambda: plain_convolutions(20), IMAGE, steps=150),
    Task("residual-30-bare", lambda: residual_plain(30), VECTOR),
    Task("residual-conv-norm", lambda: residual_convolutions(6), IMAGE, steps=100),
    Task("autoencoder", autoencoder, digit_batch((1, 8, 8), "image"), "adam"),
    Task("gated-12", lambda: gated(12), VECTOR),
    Task("lstm-rows", lambda: Recurrent(nn.LSTM(8, 64, batch_first=True), 64, 10), ROWS, "adam", 150),
    Task("lstm-recall", lambda: Recurrent(nn.LSTM(8, 64, batch_first=True), 64, 8), recall_batch, "adam", 250),
    Task("rnn-recall", lambda: Recurrent(nn.RNN(8, 64, batch_first=True), 64, 8), recall_batch, "adam", 250),
    Task("gru-recall", lambda: Recurrent(nn.GRU(8, 64, batch_first=True), 64, 8), recall_batch, "adam", 250),
    Task("post-norm-8", lambda: Transformer(10, 12, 64, 8, 8, post=True, tied=False), parity_batch, "adam", 150),
    Task("pre-norm-8", lambda: Transformer(10, 12, 64, 8, 8, post=False, tied=False), parity_batch, "adam", 150),
    Task("language-tied", lambda: Transformer(128, 32, 64, 4, 128, post=False, tied=True), text_batch, "adam", 150),
    Task("language-post", lambda: Transformer(128, 32, 64, 6, 128, post=True, tied=False), text_batch, "adam", 150),
)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy for integer targets, mean squared error for the rest."""
    if target.dtype == torch.int64:
        return functional.cross_entropy(output.flatten(0, -2), target.flatten())
    return functional.mse_loss(output, target)


def chance(task: Task) -> float:
    """The loss of the best constant answer."""
    _, target = task.batch(torch.Generator().manual_seed(0))
    if target.dtype != torch.int64:
        return target.var().item()
    counts = (
        torch.cat([task.batch(torch.Generator().manual_seed(i))[1].flatten() for i in range(20)]).bincount().double()
    )
    share = counts[counts > 0] / counts.sum()
    return -(share * share.log()).sum().item() if len(share) > 1 else math.nan
