"""What a fault of the corpus is: a small model that starts badly, where, why, and the proof in plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Case:
    """A model with what it is called with and, where it has one, its loss."""

    model: nn.Module
    inputs: Any
    loss: Loss | None = None


Proof = Callable[[Case], None]
Builder = Callable[[], Case]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        name: the builder's name.
        build: makes the case; call `make`, which seeds.
        codes: the finding that names it, and others that are as right.
        places: globs, one of which the place of the finding must match.
        origin: the public thread (owner/name#number) or the classic mistake that it is taken from.
        prove: asserts that it is a fault, by plain torch.
        fixable: an edited plan can repair it; not so where code, data or precision must change.
    """

    name: str
    build: Builder
    codes: tuple[str, ...]
    places: tuple[str, ...]
    origin: str
    prove: Proof
    fixable: bool = True

    def make(self) -> Case:
        """The case, the same at every call; the global random state is left as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(20)
            return self.build()


FAULTS: dict[str, Fault] = {}


def fault(codes: str, places: str, origin: str, prove: Proof, fixable: bool = True) -> Callable[[Builder], Builder]:
    """Enter a builder into the corpus; codes and places are separated by spaces."""

    def enter(build: Builder) -> Builder:
        name = build.__name__
        assert name not in FAULTS, f"two faults are named {name}"
        FAULTS[name] = Fault(name, build, tuple(codes.split()), tuple(places.split()), origin, prove, fixable)
        return build

    return enter


def floats(*shape: int) -> Tensor:
    """A standard normal batch."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def tokens(*shape: int, below: int) -> Tensor:
    """A batch of token indices, none of them zero."""
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(7))


def cross_entropy(classes: int) -> Loss:
    """Cross-entropy over the last axis against random labels."""

    def loss(output: Tensor) -> Tensor:
        logits = output.reshape(-1, classes).float()
        labels = torch.randint(classes, (len(logits),), generator=torch.Generator().manual_seed(3))
        return F.cross_entropy(logits, labels)

    return loss


def scaled(layer: Any, gain: float, mean: float = 0.0) -> Any:
    """Redraw a linear layer's weight with standard deviation gain/√fan_in, and zero its bias."""
    nn.init.normal_(layer.weight, mean, gain / layer.weight[0].numel() ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, gain: float | None = 2**0.5) -> nn.Sequential:
    """Linear layers with an activation between each two; a gain of None leaves torch's default draw."""
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        last = index == len(widths) - 2
        layer = nn.Linear(fan_in, fan_out)
        if gain is not None:
            scaled(layer, 1.0 if last else gain)
        layers += [layer] if last else [layer, act()]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.branch(x)
        return result


class Attention(nn.Module):
    """Multi-head self-attention with separate projections; ``scale`` is what scores are multiplied by."""

    def __init__(self, width: int, heads: int = 4, scale: float | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (scaled(nn.Linear(width, width), 1.0) for _ in range(4))
        self.heads = heads
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        result: Tensor = self.o(mixed.transpose(1, 2).reshape(batch, length, width))
        return result


class Decoder(nn.Module):
    """Token and position embeddings, pre-norm blocks, a head."""

    def __init__(self, vocab: int = 64, width: int = 32, depth: int = 2, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(nn.LayerNorm(width), Attention(width)),
                    Residual(nn.LayerNorm(width), *mlp(width, 4 * width, width, act=nn.GELU, gain=1.0)),
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, index: Tensor) -> Tensor:
        x = self.tokens(index) + self.positions[:, : index.shape[1]]
        result: Tensor = self.head(self.norm(self.blocks(x)))
        return result
