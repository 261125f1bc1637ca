"""Weights of zeros: those that shut a layer are found, those that are meant are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fanin.comparison.workers import one_thread
from fanin.diagnoses import Diagnosis, Severity
from fanin.diagnosing import diagnose

Case = tuple[nn.Module, Any]


def chain(zeroed: int) -> Case:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    nn.init.zeros_(model[zeroed].weight)
    return model, torch.randn(16, 16)


def convolutions(*, dimensions: int) -> Case:
    """Padded convolutions of which the middle one is zero: at the borders its constant output makes another."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[dimensions]
    layers = [part for width in (3, 16, 16) for part in (conv(width, 16, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 8**dimensions, 4))
    nn.init.zeros_(model[2].weight)
    return model, torch.randn(8, 3, *[8] * dimensions)


class Attention(nn.Module):
    """A pre-norm transformer's block."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v))
        result: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return result


def transformer(zeroed: str, adapted: str = "") -> Case:
    model = nn.Sequential(nn.Linear(8, 32), *(Attention() for _ in range(3)), nn.LayerNorm(32), nn.Linear(32, 4))
    if adapted:
        setattr(model[2], adapted, Adapter(getattr(model[2], adapted)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == zeroed:
                parameter.zero_()
    return model, torch.randn(4, 6, 8)


def without(*blocks: int) -> Case:
    """Blocks of packed queries, keys and values that are zero, their biases too."""
    model, inputs = transformer("")
    for block in blocks:
        nn.init.zeros_(model[2].qkv.weight.detach()[32 * block : 32 * block + 32])
        nn.init.zeros_(model[2].qkv.bias.detach()[32 * block : 32 * block + 32])
    return model, inputs


def shut_attention(*, head: bool) -> Case:
    """Packed queries and keys of zero in torch's own attention, perhaps before a head of zeros."""
    model = nn.Sequential(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), nn.Linear(32, 4))
    nn.init.zeros_(model[0].self_attn.in_proj_weight.detach()[:64])
    if not head:
        nn.init.zeros_(model[1].weight)
    return model, torch.randn(4, 6, 32)


class Adapter(nn.Module):
    """LoRA: ``W x + B A x`` with B zero."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.b(self.a(x))
        return result


class SpatialTransformer(nn.Module):
    """A localization that starts at the identity: zero weights beside a bias (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 6))
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        nn.init.zeros_(self.locate[3].weight)
        self.locate[3].bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(x).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        result: Tensor = self.body(functional.grid_sample(x, grid, align_corners=False))
        return result


class Modulated(nn.Module):
    """adaLN-zero (Peebles & Xie 2023)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        result: Tensor = x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)
        return result


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.condition, self.leave = nn.Linear(16, 32), nn.Linear(8, 32), nn.Linear(32, 16)
        self.blocks = nn.ModuleList(Modulated() for _ in range(4))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x, condition = self.enter(x), self.condition(condition)
        for block in self.blocks:
            x = block(x, condition)
        result: Tensor = self.leave(x)
        return result


class ReZero(nn.Module):
    """A branch behind a scalar of zero (Bachlechner et al. 2020)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.alpha * self.branch(x)
        return result


SHUT: dict[str, tuple[Callable[[], Case], str]] = {
    "a hidden weight beside a random bias": (lambda: chain(2), "2.weight"),
    "a first weight beside a random bias": (lambda: chain(0), "0.weight"),
    "a convolution before one with borders": (lambda: convolutions(dimensions=2), "2.weight"),
    "the same along a line": (lambda: convolutions(dimensions=1), "2.weight"),
    "queries, keys and values": (lambda: transformer("2.qkv.weight"), "2.qkv.weight"),
    "queries and keys, of packed ones": (lambda: without(0, 1), "2.qkv.weight"),
    "queries and keys of torch's attention": (lambda: shut_attention(head=True), "0.self_attn.in_proj_weight"),
    "queries and keys before a head of zeros": (lambda: shut_attention(head=False), "0.self_attn.in_proj_weight"),
    "the first weight of a branch": (lambda: transformer("2.fc1.weight"), "2.fc1.weight"),
}
MEANT: dict[str, Callable[[], Case]] = {
    "an output layer": lambda: chain(4),
    "the last weight of a branch": lambda: transformer("2.fc2.weight"),
    "an attention's projection": lambda: transformer("2.proj.weight"),
    "queries, of packed ones": lambda: without(0),
    "keys, of packed ones": lambda: without(1),
    "values, of packed ones": lambda: without(2),
    "an adapter before a non-linearity": lambda: transformer("", adapted="fc1"),
    "an adapter of queries, keys and values": lambda: transformer("", adapted="qkv"),
    "a spatial transformer": lambda: (SpatialTransformer(), torch.randn(8, 3, 8, 8)),
    "adaLN-zero": lambda: (Conditioned(), (torch.randn(16, 16), torch.randn(16, 8))),
    "ReZero": lambda: (nn.Sequential(nn.Linear(16, 32), *(ReZero() for _ in range(6))), torch.randn(16, 16)),
}


def judged(build: Callable[[], Case]) -> Diagnosis:
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diagnose(*build())


@pytest.mark.parametrize("what", SHUT)
def test_a_zero_that_shuts_a_layer_is_found_and_mended(what: str) -> None:
    build, place = SHUT[what]
    diagnosis = judged(build)
    assert ("F401", place) in {(finding.code, finding.place) for finding in diagnosis.findings}
    assert diagnosis.fix()[place].expected.std > 0


@pytest.mark.parametrize("what", MEANT)
def test_a_zero_that_is_meant_is_healthy(what: str) -> None:
    found = [str(finding) for finding in judged(MEANT[what]).findings if finding.severity is not Severity.NOTE]
    assert not found
