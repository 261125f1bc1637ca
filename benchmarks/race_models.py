"""Models that race: plain, residual, gated, recurrent and attending, from shallow controls to nets that need care."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class Vision(nn.Module):
    """Eight rows of an image as patches beside a class token, whose output is read."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 9, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, 4, post=False) for _ in range(depth)], nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.enter(x)], 1) + self.position
        return self.head(self.blocks(x)[:, 0])


class Stacked(nn.Module):
    """A plain net whose hidden layers share one parameter, each with a slice of its own."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.weights = nn.Parameter(torch.randn(depth, width, width) / width**0.5)
        self.biases = nn.Parameter(torch.zeros(depth, width))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.enter(x))
        for index in range(len(self.weights)):
            x = functional.relu(x @ self.weights[index] + self.biases[index])
        return self.head(x)


class Recurrent(nn.Module):
    """A recurrent layer over a sequence, read at its end."""

    def __init__(self, layer: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From what the input and the state bring, and the state, to the next state."""


class HandWritten(nn.Module):
    """A recurrence made of linear layers: the input and the state each have one, packed by gates."""

    def __init__(self, inputs: int, width: int, classes: int, step: Step, parts: int) -> None:
        super().__init__()
        self.inward, self.around = nn.Linear(inputs, parts * width), nn.Linear(width, parts * width, bias=False)
        self.width, self.step = width, step
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.width)
        for time in range(x.shape[1]):
            state = self.step(self.inward(x[:, time]), self.around(state), state)
        return self.head(state)


def elman_step(inward: Tensor, around: Tensor, _: Tensor) -> Tensor:
    """A recurrence without gates."""
    return torch.tanh(inward + around)


def gru_step(inward: Tensor, around: Tensor, state: Tensor) -> Tensor:
    """A GRU, whose reset gate acts on what the state brings, as torch's does."""
    (r, z, n), (reset, update, new) = inward.chunk(3, -1), around.chunk(3, -1)
    kept = torch.sigmoid(z + update)
    return (1 - kept) * torch.tanh(n + torch.sigmoid(r + reset) * new) + kept * state


def plain(depth: int, activation: Callable[[], nn.Module], width: int = 96) -> Callable[[], nn.Module]:
    """A plain deep network over digits."""

    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(64, width), activation()]
        for _ in range(depth - 2):
            layers += [nn.Linear(width, width), activation()]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return build


def normed(depth: int, norm: Callable[[int], nn.Module], width: int = 64) -> Callable[[], nn.Module]:
    """A plain deep network of ReLUs over digits, with a norm in every layer."""

    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(64, width), norm(width), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Linear(width, width), norm(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return build


def plain_convolutions(depth: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), activation()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(16, 16, 3, padding=1), activation()]
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


class PackedGated(nn.Module):
    """A gated branch whose gate and value are one matrix, with or without a norm before it."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.activation = nn.Linear(width, 4 * width), nn.Linear(2 * width, width), activation

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.enter(x).chunk(2, -1)
        return x + self.leave(self.activation(gate) * value)


class Highway(nn.Module):
    """Layers whose gates share out between what they make and what they take in."""

    def __init__(self, depth: int, width: int = 48) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.made = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.transform = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for made, transform in zip(self.made, self.transform, strict=True):
            gate = torch.sigmoid(transform(x))
            x = gate * torch.relu(made(x)) + (1 - gate) * x
        return self.head(x)


class Multiplied(nn.Module):
    """Gated layers in a chain, their gates and values packed, without norms or streams."""

    def __init__(self, depth: int, activation: Callable[[Tensor], Tensor], width: int = 48) -> None:
        super().__init__()
        self.enter, self.head, self.activation = nn.Linear(64, width), nn.Linear(width, 10), activation
        self.layers = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            gate, value = layer(x).chunk(2, -1)
            x = self.activation(gate) * value
        return self.head(x)


class Mixer(nn.Module):
    """An MLP-Mixer over eight rows of eight pixels."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(8, width)
        self.rows = nn.ModuleList(self._branch(width, 8, 32) for _ in range(depth))
        self.columns = nn.ModuleList(self._branch(width, width, 4 * width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    @staticmethod
    def _branch(width: int, mixed: int, hidden: int) -> nn.ModuleDict:
        up, down = nn.Linear(mixed, hidden), nn.Linear(hidden, mixed)
        return nn.ModuleDict({"norm": nn.LayerNorm(width), "mix": nn.Sequential(up, nn.GELU(), down)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for row, column in zip(self.rows, self.columns, strict=True):
            x = x + row["mix"](row["norm"](x).transpose(1, 2)).transpose(1, 2)
            x = x + column["mix"](column["norm"](x))
        return self.head(self.norm(x).mean(1))


class Neighbours(nn.Module):
    """Layers over the sums of nodes and their neighbours, as in graph isomorphism networks; every input is a graph."""

    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
        self.register_buffer("edges", torch.tensor(pairs).T)

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.enter(x).transpose(0, 1)
        for layer in self.layers:
            gathered = torch.zeros_like(nodes).index_add(0, self.edges[1], nodes[self.edges[0]])
            nodes = torch.relu(layer(nodes + gathered))
        return self.head(nodes.mean(0))


class Ratings(nn.Module):
    """Two tables whose rows are joined and read by plain layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(150, width), nn.Embedding(200, width)
        self.layers = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layers(torch.cat([self.users(pairs[:, 0]), self.items(pairs[:, 1])], -1)).squeeze(-1)


class RecurrentLanguage(nn.Module):
    """Characters in, the next ones out."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(128, layer.input_size), layer
        self.head = nn.Linear(layer.hidden_size, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens))[0])


def residual_single(depth: int, activation: Callable[[], nn.Module], width: int = 64) -> nn.Module:
    """Branches of one layer each, whose activation is the last thing that they do."""
    blocks = [Residual(nn.Linear(width, width), activation()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(64, width), *blocks, nn.Linear(width, 10))


def residual_batch_norms(depth: int, width: int = 64) -> nn.Module:
    def branch() -> Residual:
        first, second = (nn.Linear(width, width, bias=False) for _ in range(2))
        return Residual(first, nn.BatchNorm1d(width), nn.ReLU(), second, nn.BatchNorm1d(width))

    blocks = [nn.Sequential(branch(), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(64, width), *blocks, nn.Linear(width, 10))


def stages(count: int, blocks: int, width: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """Residual streams one after the other, with a layer before each that no skip goes around."""

    def branch() -> Residual:
        first, second = (nn.Linear(width, width) for _ in range(2))
        return Residual(first, norm(width), nn.ReLU(), second, norm(width))

    layers, wide = list[nn.Module](), 64
    for _ in range(count):
        layers += [nn.Linear(wide, width), norm(width), nn.ReLU(), *(branch() for _ in range(blocks))]
        wide = width
    return nn.Sequential(*layers, nn.Linear(width, 10))


def conv_mixer(depth: int, width: int = 24) -> nn.Module:
    """Trockman & Kolter 2022: a depthwise convolution with a skip and a pointwise one without, by turns."""

    def normed(layer: nn.Module) -> nn.Sequential:
        return nn.Sequential(layer, nn.GELU(), nn.BatchNorm2d(width))

    def block() -> nn.Sequential:
        depthwise = nn.Conv2d(width, width, 3, groups=width, padding=1)
        return nn.Sequential(Residual(normed(depthwise)), normed(nn.Conv2d(width, width, 1)))

    blocks = [block() for _ in range(depth)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    return nn.Sequential(normed(nn.Conv2d(1, width, 2, 2)), *blocks, *ends)


def residual_bare_convolutions(depth: int) -> nn.Module:
    def branch() -> Residual:
        first, second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        return Residual(nn.ReLU(), first, nn.ReLU(), second)

    blocks = [branch() for _ in range(depth)]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def vgg_with_norms() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for width in (16, 16, 0, 32, 32, 0, 64, 64, 64, 64, 64, 64):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, 64), nn.ReLU(), nn.Linear(64, 10))


def packed_gates(depth: int, activation: Callable[[Tensor], Tensor], width: int = 48) -> nn.Module:
    blocks = [PackedGated(width, activation) for _ in range(depth)]
    return nn.Sequential(nn.Linear(64, width), *blocks, nn.Linear(width, 10))
