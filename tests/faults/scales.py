"""Faults of scale: weights whose standard deviation contradicts what they contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faults.cases import Case, Decoder, cross_entropy, fault, floats, mlp, scaled, tokens
from faults.proofs import both, grows, off, shrinks
from faults.values import Experts


def _plain_convolutions(depth: int = 4, width: int = 32, groups: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [scaled(nn.Conv2d(3, width, 3, padding=1), 2**0.5), nn.ReLU()]
    for _ in range(depth):
        layers += [scaled(nn.Conv2d(width, width, 3, padding=1, groups=groups), 2**0.5), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), scaled(nn.Linear(width, 10), 1.0))


def _images() -> Tensor:
    return floats(8, 3, 12, 12)


@fault(
    "F201 F301",
    "*.weight",
    "pytorch/pytorch#23854: fan_out counts all channels of a depthwise convolution",
    both(off("2.weight", 5, (2 / 9) ** 0.5), shrinks("0", "8", 50)),
)
def depthwise_fan_out() -> Case:
    model = _plain_convolutions(groups=32)
    for index in (2, 4, 6, 8):
        nn.init.kaiming_normal_(model[index].weight, mode="fan_out")
    return Case(model, _images(), cross_entropy(10))


@fault(
    "F201 F302",
    "*.weight",
    "LeelaChessZero/lczero-training#43: Xavier for convolutions ignored the kernel's area",
    both(off("2.weight", 2, (2 / 288) ** 0.5), grows("0", "8", 10)),
)
def kernel_area_ignored() -> Case:
    model = _plain_convolutions()
    for index in (2, 4, 6, 8):
        nn.init.normal_(model[index].weight, std=(2 / 32) ** 0.5)
    return Case(model, _images(), cross_entropy(10))


class Generator(nn.Module):
    """Transposed convolutions that double the side, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(8, 256, 4, 2, 1)
        self.second = nn.ConvTranspose2d(256, 4, 4, 2, 1)
        self.third = nn.ConvTranspose2d(4, 256, 4, 2, 1)
        self.last = nn.ConvTranspose2d(256, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            x = F.relu(layer(x))
        result: Tensor = self.last(x)
        return result


@fault(
    "F201 F302",
    "second* third* last*",
    "Lasagne/Lasagne#858: a transposed convolution's out channels taken for its fan_in",
    both(off("second.weight", 3, (2 / 1024) ** 0.5), grows("first", "second", 3)),
)
def transposed_fan_in() -> Case:
    model = Generator()
    for layer in (model.first, model.second, model.third, model.last):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        model.first.weight.normal_(std=(2 / 32) ** 0.5)
        model.third.weight.normal_(std=(2 / 16) ** 0.5)
    return Case(model, floats(4, 8, 4, 4))


@fault(
    "F201 F301",
    "up down",
    "keras-team/keras#22789: rank-3 kernels treated as convolutions",
    off("up", 4, (2 / 16) ** 0.5),
)
def stacked_experts_as_convolution() -> Case:
    model = Experts(hidden=64)
    nn.init.kaiming_normal_(model.up)
    nn.init.kaiming_normal_(model.down)
    return Case(model, floats(32, 16))


class InOut(nn.Module):
    """Matrices in (in, out) layout."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(16, 1024))
        self.w2 = nn.Parameter(torch.empty(1024, 16))
        self.w3 = nn.Parameter(torch.empty(16, 1024))
        self.w4 = nn.Parameter(torch.empty(1024, 10))
        for weight in (self.w1, self.w2, self.w3, self.w4):
            nn.init.kaiming_normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.relu(F.relu(x @ self.w1) @ self.w2) @ self.w3) @ self.w4


@fault(
    "F201",
    "w1 w2 w3 w4",
    "classic: fans of a matrix in (in, out) layout read the other way round",
    off("w1", 7, (2 / 16) ** 0.5),
)
def fans_swapped() -> Case:
    return Case(InOut(), floats(32, 16), cross_entropy(10))


@fault(
    "F201 F302 F309",
    "*.weight",
    "classic: torch.randn for every weight",
    grows("0", "4", 100),
)
def unit_normal_weights() -> Case:
    model = mlp(64, 256, 256, 10)
    for index in (0, 2, 4):
        nn.init.normal_(model[index].weight)
    return Case(model, floats(32, 64), cross_entropy(10))


@fault("F201 F301", "*", "classic: std 0.01 in a deep plain net (He et al. 2015, section 2.2)", shrinks("0", "16", 1e3))
def small_normal_weights() -> Case:
    model = mlp(*[64] * 9, 10)
    for index in range(0, 17, 2):
        nn.init.normal_(model[index].weight, std=0.01)
    return Case(model, floats(32, 64), cross_entropy(10))


@fault(
    "F201 F301",
    "*.weight",
    "meta-pytorch/torchrec#1824: an embedding scaled by the number of its rows",
    off("embed.weight", 50, 1.0),
)
def embedding_scaled_by_vocabulary() -> Case:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20000, 16)
            self.body = mlp(16, 32, 32, 10)
            nn.init.uniform_(self.embed.weight, -(20000**-0.5), 20000**-0.5)

        def forward(self, index: Tensor) -> Tensor:
            result: Tensor = self.body(self.embed(index).mean(1))
            return result

    return Case(Bag(), tokens(32, 8, below=20000), cross_entropy(10))


@fault(
    "F201 F302 F309",
    "head.weight",
    "pytorch/pytorch#3121: N(0, 1) where the head reads an embedding's matrix",
    off("head.weight", 5, 32**-0.5),
)
def unit_normal_head() -> Case:
    model = Decoder()
    nn.init.normal_(model.head.weight, std=2.0)
    return Case(model, tokens(4, 12, below=64), cross_entropy(64))


@fault(
    "F201 F302",
    "*",
    "classic: torch.rand for weights, whose mean adds up over the inputs",
    grows("0", "4", 50),
)
def positive_uniform_weights() -> Case:
    model = mlp(64, 128, 128, 10)
    for index in (0, 2, 4):
        nn.init.uniform_(model[index].weight)
    return Case(model, floats(32, 64), cross_entropy(10))


@fault("F201 F302", "*", "classic: He's gain twice", grows("0", "38", 300))
def gain_applied_twice() -> Case:
    model = mlp(*[128] * 21, 10, gain=2.0)
    return Case(model, floats(32, 128), cross_entropy(10))


@fault(
    "F201",
    "2.weight",
    "vballoli/nfnets-pytorch#30: wrong mode and nonlinearity",
    off("2.weight", 3, (2 / 1024) ** 0.5),
)
def bottleneck_fan_out() -> Case:
    model = mlp(64, 1024, 16, 1024, 16, 10)
    for index in (0, 2, 4, 6):
        nn.init.kaiming_normal_(model[index].weight, mode="fan_out")
    return Case(model, floats(32, 64), cross_entropy(10))
