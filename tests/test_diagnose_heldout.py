"""Faults that were written down, with their place and codes, before the rules had seen them, by who wrote the rules.

At the first run the rules found 34 of the 36. Filters copied in pairs were called F103, a block repeated, which is
right too and was added to what they may be called; a recurrence of gain five was missed, and is found since.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.comparison.workers import one_thread
from fanin.diagnoses import Severity
from fanin.diagnosing import diagnose

Case = tuple[nn.Module, Any]
FAULTS: dict[str, tuple[Callable[[], Case], str, tuple[str, ...]]] = {}
FOUND = 0.95
"""Of the faults, at their place and under one of their codes."""
MENDED = 0.9
"""Of those that were found: after `fix` no error is left."""


def fault(place: str, *codes: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a fault: where it is (part of a name; empty for the whole model), and what it may be called."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        FAULTS[build.__name__] = (build, place, codes)
        return build

    return register


def images(size: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(8, channels, size, size)


def vectors(width: int = 32) -> Tensor:
    return torch.randn(32, width)


def scaled(layer: Any, gain: float) -> Any:
    """A layer with a normal weight of ``gain / √fan_in`` and a bias of zero."""
    nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(depth: int, activation: Callable[[], nn.Module], gain: float, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [scaled(nn.Linear(32, width), gain)]
    for _ in range(depth - 2):
        layers += [activation(), scaled(nn.Linear(width, width), gain)]
    return nn.Sequential(*layers, activation(), scaled(nn.Linear(width, 8), 1.0))


class Block(nn.Module):
    """A pre-norm transformer's block."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads, self.scale = nn.LayerNorm(width), nn.LayerNorm(width), heads, 1.0
        self.qkv, self.proj = scaled(nn.Linear(width, 3 * width), 1.0), scaled(nn.Linear(width, width), 0.3)
        self.up, self.down = scaled(nn.Linear(width, 4 * width), 1.4), scaled(nn.Linear(4 * width, width), 0.3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale * q.shape[-1] ** -0.5)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return result


class Language(nn.Module):
    """A small decoder without its mask."""

    def __init__(self, depth: int = 6, width: int = 64, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(96, width), nn.Parameter(torch.randn(12, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), scaled(nn.Linear(width, 96, bias=False), 0.5)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))
        return result


def language(**options: Any) -> tuple[Any, Tensor]:
    return Language(**options), torch.randint(0, 96, (8, 12))


def residual(depth: int = 12, width: int = 32, normed: bool = True) -> Any:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
            self.norm1, self.norm2 = (nn.BatchNorm2d(width) if normed else nn.Identity() for _ in range(2))
            scaled(self.one, 1.414), scaled(self.two, 1.0 if normed else depth**-0.5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = x + self.norm2(self.two(torch.relu(self.norm1(self.one(x)))))
            return result

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), scaled(nn.Linear(width, 10), 0.5)]
    return nn.Sequential(scaled(nn.Conv2d(3, width, 3, padding=1), 1.0), *(Residual() for _ in range(depth)), *head)


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24, padding_idx=0)
        self.rnn = kind(24, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(self.embed(tokens))[0])
        return result


def tagger(**options: Any) -> tuple[Any, Tensor]:
    return Tagger(**options), torch.randint(1, 50, (8, 20))


# Scales


@fault("", "F301", "F201", "F402", "F305")
def xavier_in_25_relu_layers() -> Case:
    return mlp(25, nn.ReLU, 1.0), vectors()


@fault("", "F301", "F201", "F402", "F305")
def std_of_a_hundredth_in_a_narrow_net() -> Case:
    model = mlp(6, nn.ReLU, 1.4)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.01)
    return model, vectors()


@fault("", "F302", "F201", "F403")
def gain_two_and_a_half_in_12_relu_layers() -> Case:
    return mlp(12, nn.ReLU, 2.5), vectors()


@fault("", "F304", "F403", "F306", "F201")
def gain_six_in_tanh_layers() -> Case:
    return mlp(10, nn.Tanh, 6.0), vectors()


@fault("", "F305", "F301", "F402")
def sigmoids_15_deep() -> Case:
    return mlp(15, nn.Sigmoid, 1.0), vectors()


@fault("4.weight", "F201", "F404", "F302")
def one_layer_a_hundred_times_too_large() -> Case:
    model = mlp(6, nn.ReLU, 1.414)
    model[4].weight.data *= 100
    return model, vectors()


@fault("2", "F201")
def depthwise_kernels_by_the_fans_of_all_channels() -> Case:
    layers = [scaled(nn.Conv2d(3, 256, 3), 1.0), nn.ReLU(), nn.Conv2d(256, 256, 3, groups=256), nn.ReLU()]
    nn.init.normal_(layers[2].weight, std=(2 / (256 * 9)) ** 0.5)
    tail = [scaled(nn.Conv2d(256, 32, 1), 1.4), nn.ReLU(), nn.Flatten(), scaled(nn.Linear(32 * 64, 5), 1.0)]
    return nn.Sequential(*layers, *tail), images(12)


@fault("", "F307")
def undivided_branches_without_norms() -> Case:
    model = residual(20, normed=False)
    for block in model[1:21]:
        scaled(block.two, 1.4)
    return model, images(8)


@fault("blocks.3.down", "F201", "F307")
def one_branch_of_a_transformer_ends_60_times_too_large() -> Case:
    model, tokens = language()
    model.blocks[3].down.weight.data *= 200
    return model, tokens


# Symmetry and copies


@fault("2.weight", "F101")
def a_hidden_layer_of_one_number() -> Case:
    model = mlp(4, nn.GELU, 1.5)
    nn.init.constant_(model[2].weight, 0.02)
    return model, vectors()


@fault("blocks", "F102")
def blocks_cloned_by_copy() -> Case:
    model, tokens = language()
    for index in range(1, 6):
        model.blocks[index] = copy.deepcopy(model.blocks[0])
    return model, tokens


@fault("1.one", "F101", "F103")
def filters_copied_in_pairs() -> Case:
    model = residual(3)
    model[1].one.weight.data[16:] = model[1].one.weight.data[:16]
    return model, images()


@fault("blocks.2.qkv", "F103", "F101")
def query_key_and_value_drawn_alike() -> Case:
    model, tokens = language()
    model.blocks[2].qkv.weight.data = model.blocks[2].qkv.weight.data[:64].repeat(3, 1)
    return model, tokens


# Values


@fault("blocks.4.up.weight", "F104")
def a_nan_in_one_weight() -> Case:
    model, tokens = language()
    model.blocks[4].up.weight.data[3, 5] = float("nan")
    return model, tokens


@fault("3.two.weight", "F105", "F106")
def memory_as_it_was_found() -> Case:
    model = residual(4)
    model[3].two.weight.data[0, 0] = 1e30
    return model, images()


@fault("blocks.1.up.weight", "F107")
def half_of_a_weight_never_written() -> Case:
    model, tokens = language()
    model.blocks[1].up.weight.data[128:] = 0
    return model, tokens


@fault("embed.weight", "F203")
def a_padding_row_drawn_like_the_others() -> Case:
    model, tokens = tagger()
    nn.init.normal_(model.embed.weight)
    return model, tokens


# Norms, biases, gates


@fault("2.norm1.weight", "F205")
def a_norm_drawn_like_a_weight() -> Case:
    model = residual(4)
    nn.init.normal_(model[2].norm1.weight, std=0.02)
    return model, images()


@fault("norm.weight", "F205")
def a_final_norm_of_zeros() -> Case:
    model, tokens = language()
    nn.init.zeros_(model.norm.weight)
    return model, tokens


@fault("2", "F303", "F208")
def a_bias_that_kills_a_layer() -> Case:
    model = mlp(5, nn.ReLU, 1.414)
    nn.init.constant_(model[2].bias, -6.0)
    return model, vectors()


@fault("4.bias", "F208", "F305")
def a_bias_that_drowns_its_layer() -> Case:
    model = mlp(5, nn.Tanh, 1.0)
    nn.init.normal_(model[4].bias, std=20.0)
    return model, vectors()


@fault("rnn", "F206")
def a_forget_gate_that_is_shut() -> Case:
    model, tokens = tagger()
    for name, bias in model.rnn.named_parameters():
        if "bias" in name:
            nn.init.zeros_(bias)
            if "ih" in name:
                bias.data[32:64] = -5.0
    return model, tokens


@fault("rnn", "F403", "F304", "F201")
def a_recurrence_of_gain_five() -> Case:
    model, tokens = tagger(kind=nn.GRU)
    for name, weight in model.rnn.named_parameters():
        if "weight_hh" in name:
            nn.init.normal_(weight, std=5.0 / 32**0.5)
    return model, tokens


# Attention and embeddings


@fault("blocks", "F308")
def scores_without_their_scale() -> Case:
    model, tokens = language()
    for block in model.blocks:
        block.scale = 16.0
    return model, tokens


@fault("blocks.0", "F308", "F201")
def queries_and_keys_of_gain_six() -> Case:
    model, tokens = language()
    model.blocks[0].qkv.weight.data[:128] *= 6
    return model, tokens


@fault("tokens.weight", "F204", "F309")
def a_tied_head_of_unit_embeddings() -> Case:
    return language(tied=True)


@fault("positions", "F207")
def positions_that_drown_the_tokens() -> Case:
    model, tokens = language()
    nn.init.normal_(model.tokens.weight, std=0.02)
    return model, tokens


# Gradients


@fault("0.", "F405")
def a_trunk_behind_a_detach() -> Case:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, nn.ReLU, 1.4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.net[:4](x).detach()
            result: Tensor = self.net[4:](hidden)
            return result

    return Detached(), vectors()


@fault("0.weight", "F401")
def two_zeros_in_a_row() -> Case:
    model = nn.Sequential(nn.Linear(32, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[2].weight)
    return model, vectors()


@fault("2", "F401", "F305")
def a_convolution_of_zeros_in_a_chain() -> Case:
    layers = [scaled(nn.Conv2d(3, 16, 3), 1.4), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()]
    nn.init.zeros_(layers[2].weight)
    return nn.Sequential(*layers, scaled(nn.Linear(16 * 64, 5), 1.0)), images(12)


@fault("head", "F309", "F201")
def a_first_loss_far_from_uninformed() -> Case:
    model, tokens = language()
    model.head.weight.data *= 40
    return model, tokens


# Autoencoders, generators, experts


@fault("", "F301", "F201", "F402", "F305")
def a_decoder_of_two_hundredths() -> Case:
    down = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)]
    model = nn.Sequential(*down, *up)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.002)
    return model, images(16, 1)


@fault("experts", "F102", "F103", "F101")
def experts_that_start_alike() -> Case:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(32, 4)
            self.experts = nn.Parameter(torch.randn(1, 32, 32).repeat(4, 1, 1) / 32**0.5)
            self.head = nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.router(x).softmax(-1)
            mixed = torch.einsum("bi,eoi->beo", x, self.experts).relu()
            result: Tensor = self.head((weights[..., None] * mixed).sum(1))
            return result

    return Experts(), vectors()


@fault("conv", "F202")
def a_weight_set_behind_weight_norm() -> Case:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with pytest.warns(FutureWarning):
                self.conv = nn.utils.weight_norm(nn.Conv1d(8, 16, 3))
            self.head = nn.Linear(16, 4)
            nn.init.normal_(self.conv.weight, std=0.5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(torch.relu(self.conv(x)).mean(-1))
            return result

    return Normed(), torch.randn(8, 8, 24)


@fault("", "F310", "F302")
def half_precision_that_overflows() -> Case:
    model = mlp(12, nn.ReLU, 6.0)
    return model.to(torch.bfloat16).to(torch.float16), vectors().half()


@fault("alpha", "F401", "F405")
def a_gate_and_its_branch_both_zero() -> Case:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.branch, self.leave = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)
            self.alpha = nn.Parameter(torch.zeros(32))
            nn.init.zeros_(self.branch.weight)
            nn.init.zeros_(self.branch.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            result: Tensor = self.leave(x + self.alpha * self.branch(x))
            return result

    return Gated(), vectors()


def outcome(name: str) -> tuple[bool, bool, list[str]]:
    """Whether the fault was found, whether its mending leaves no error, and all that was found."""
    build, place, codes = FAULTS[name]
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = build()
        diagnosis = diagnose(model, inputs)
        loud = [finding for finding in diagnosis.findings if finding.severity is not Severity.NOTE]
        places = {finding.code: (finding.place, *finding.places) for finding in loud}
        found = any(place in where for code in codes for where in places.get(code, ()))
        fanin.apply(diagnosis.fix(), model, seed=0)
        left = [finding for finding in diagnose(model, inputs).findings if finding.severity is Severity.ERROR]
    return found, not left, [f"{finding.code} {finding.place}" for finding in loud]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[bool, bool, list[str]]]:
    return {name: outcome(name) for name in FAULTS}


def test_faults_are_found(outcomes: dict[str, tuple[bool, bool, list[str]]]) -> None:
    missed = {name: seen for name, (found, _, seen) in outcomes.items() if not found}
    assert len(missed) <= (1 - FOUND) * len(outcomes), missed


def test_faults_are_mended(outcomes: dict[str, tuple[bool, bool, list[str]]]) -> None:
    mendable = {name: result for name, result in outcomes.items() if result[0] and "F405" not in FAULTS[name][2]}
    left = {name: seen for name, (_, mended, seen) in mendable.items() if not mended}
    assert len(left) <= (1 - MENDED) * len(mendable), left
