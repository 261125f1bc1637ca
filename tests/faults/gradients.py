"""Faults of the way back: gradients that vanish, explode, differ too much, or never arrive."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faults.cases import Case, Residual, cross_entropy, fault, floats, mlp, scaled
from faults.proofs import all_stuck, backward, gradient_ratio, no_gradient, parameter, rms


@fault("F402 F301", "*", "classic: a small net of twenty tanh layers", gradient_ratio("40.bias", "0.weight", 300))
def vanishing_tanh() -> Case:
    return Case(mlp(*[64] * 21, 10, act=nn.Tanh, gain=0.7), floats(32, 64), cross_entropy(10))


@fault("F402 F304 F301", "*", "classic: hard sigmoids with unit gain", gradient_ratio("12.weight", "0.weight", 1e3))
def vanishing_hard_sigmoid() -> Case:
    return Case(mlp(*[64] * 7, 10, act=nn.Hardsigmoid, gain=1.0), floats(32, 64), cross_entropy(10))


@fault("F403 F302", "*", "classic: gradients that explode towards the input", gradient_ratio("0.bias", "28.bias", 1e3))
def exploding_gradient() -> Case:
    return Case(mlp(*[64] * 16, 10, act=nn.SELU, gain=2.5), floats(32, 64), cross_entropy(10))


@fault(
    "F404 F201",
    "*",
    "classic: one layer a thousandth, the next a thousandfold",
    gradient_ratio("2.weight", "4.weight", 1e4),
)
def unbalanced_pair() -> Case:
    model = mlp(32, 64, 64, 64, 10)
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
        model[4].weight.mul_(1e3)
    return Case(model, floats(32, 32), cross_entropy(10))


class Unreached(nn.Module):
    """Has a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used = mlp(16, 32, 10)
        self.forgotten = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.used(x)
        return result


@fault(
    "F405", "forgotten*", "classic: a layer that forward does not call", no_gradient("forgotten.weight"), fixable=False
)
def forgotten_layer() -> Case:
    return Case(Unreached(), floats(16, 16), cross_entropy(10))


class Detached(nn.Module):
    """Cuts the graph between encoder and head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(16, 32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.relu(self.encoder(x)).detach())
        return result


@fault("F405", "encoder.*", "classic: detach between encoder and head", no_gradient("encoder.0.weight"), fixable=False)
def detached_encoder() -> Case:
    return Case(Detached(), floats(16, 16), cross_entropy(10))


class Rounded(nn.Module):
    """Rounds what its first layer puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.round(self.first(x)))
        return result


@fault(
    "F405 F401",
    "first*",
    "classic: rounding without a straight-through gradient",
    no_gradient("first.weight"),
    fixable=False,
)
def rounded_features() -> Case:
    return Case(Rounded(), floats(16, 16), cross_entropy(10))


@fault("F401", "*.weight", "classic: a zero layer in the middle of a plain net", all_stuck)
def zero_in_the_middle() -> Case:
    model = mlp(16, 32, 32, 32, 10)
    nn.init.zeros_(model[4].weight)
    return Case(model, floats(16, 16), cross_entropy(10))


@fault("F205 F401", "*", "classic: the last γ of every norm zero in a net without skips", no_gradient("0.weight"))
def zero_gamma_without_skip() -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    nn.init.zeros_(model[1].weight)
    return Case(model, floats(8, 3, 10, 10), cross_entropy(4))


@fault(
    "F401",
    "*.branch.*",
    "classic: every weight of a residual branch zero",
    no_gradient("1.branch.1.weight", "1.branch.3.weight"),
)
def zero_branch() -> Case:
    branch = mlp(16, 32, 16)
    for index in (0, 2):
        nn.init.zeros_(branch[index].weight)
    model = nn.Sequential(nn.Linear(16, 16), Residual(nn.LayerNorm(16), *branch), nn.Linear(16, 4))
    return Case(model, floats(16, 16), cross_entropy(4))


def _underflows(case: Case) -> None:
    backward(case)
    gradient = parameter(case, "0.weight").grad
    assert gradient is not None
    assert float((gradient == 0).float().mean()) > 0.5
    case.model.float()
    assert rms(parameter(case, "0.weight")) > 0


@fault("F406 F402", "*", "classic: gradients under 6e-8 in half precision", _underflows)
def half_underflow() -> Case:
    model = mlp(64, 64, 64, 10, gain=1.4)
    scaled(model[2], 1e-3)
    scaled(model[4], 1e-3)
    inputs = floats(32, 64).half()
    return Case(model.half(), inputs, lambda output: 1e-2 * output.float().square().mean())


@fault(
    "F403 F402 F404",
    "*",
    "classic: a recurrence of spectral radius 3 over 20 steps",
    gradient_ratio("rnn.bias_ih_l0", "head.bias", 1e4),
)
def exploding_recurrence() -> Case:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
            self.head = nn.Linear(32, 4)
            nn.init.normal_(self.rnn.weight_hh_l0, std=3 / 32**0.5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.rnn(x)[0][:, -1])
            return result

    return Case(Linear(), floats(8, 20, 8), cross_entropy(4))
