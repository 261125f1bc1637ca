"""Faults that only the signal shows: vanishing, exploding, saturated, collapsed, one-hot, out of range."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faults.cases import Attention, Case, Residual, cross_entropy, fault, floats, mlp, scaled
from faults.proofs import (
    alike,
    both,
    call,
    first_tensor,
    gradient_ratio,
    grows,
    loss_above,
    no_gradient,
    outputs_of,
    positions_alike,
    share,
    shrinks,
)


@fault("F301 F305", "*", "pytorch/pytorch#15314: torch's default in a deep ReLU net", shrinks("0", "22", 300))
def deep_default_relu() -> Case:
    return Case(mlp(*[64] * 13, 10, gain=None), floats(32, 64), cross_entropy(10))


@fault("F301 F305", "*", "classic: Xavier under ReLU, 30 layers (He et al. 2015, figure 3)", shrinks("0", "58", 1e3))
def xavier_under_relu() -> Case:
    return Case(mlp(*[64] * 31, 10, gain=1.0), floats(32, 64), cross_entropy(10))


@fault("F301", "*", "classic: a small tanh net, 12 layers", shrinks("0", "22", 500))
def small_tanh() -> Case:
    return Case(mlp(*[64] * 13, 10, act=nn.Tanh, gain=0.5), floats(32, 64), cross_entropy(10))


@fault("F301", "*", "classic: a norm's ε swallows a signal of 1e-6", shrinks("0", "2", 0.9e-3))
def norm_epsilon_swallows() -> Case:
    first = nn.Linear(16, 32)
    nn.init.normal_(first.weight, std=1e-6)
    nn.init.zeros_(first.bias)
    return Case(nn.Sequential(first, nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4)), floats(32, 16), cross_entropy(4))


@fault("F302", "*", "classic: a plain net of gain 2, 25 layers", grows("0", "48", 1e4))
def deep_explosion() -> Case:
    return Case(mlp(*[64] * 26, 10, gain=2.2), floats(32, 64), cross_entropy(10))


@fault("F302", "*", "classic: gates multiply what is already too large", grows("0", "3", 1e3))
def gated_explosion() -> Case:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = (scaled(nn.Linear(32, 32), 2.5) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
            return result

    return Case(
        nn.Sequential(*(Gate() for _ in range(4)), scaled(nn.Linear(32, 10), 1.0)), floats(32, 32), cross_entropy(10)
    )


@fault(
    "F304 F402 F305",
    "*",
    "classic: sigmoids with Xavier, 8 layers (Glorot and Bengio 2010)",
    gradient_ratio("16.weight", "0.weight", 500),
)
def deep_sigmoid() -> Case:
    return Case(mlp(*[64] * 9, 10, act=nn.Sigmoid, gain=1.0), floats(32, 64), cross_entropy(10))


@fault("F304", "*", "classic: weights of std 1 before tanh", share("1", lambda out: out.abs() > 0.99, 0.5))
def saturated_tanh() -> Case:
    model = mlp(64, 128, 128, 10, act=nn.Tanh)
    for index in (0, 2):
        nn.init.normal_(model[index].weight)
    return Case(model, floats(32, 64), cross_entropy(10))


@fault(
    "F304",
    "*",
    "LeelaChessZero/lczero-training#43: a saturated value head",
    share("3", lambda out: out.abs() > 0.99, 0.6),
)
def saturated_value_head() -> Case:
    model = nn.Sequential(*mlp(32, 64, 16), nn.Tanh())
    nn.init.normal_(model[2].weight, std=2.0)
    return Case(model, floats(64, 32), lambda value: (value - floats(64, 16).sign()).square().mean())


@fault(
    "F304",
    "*",
    "classic: a squeeze-and-excitation gate that starts shut",
    share("gate.1", lambda out: out < 1e-4, 0.99),
)
def shut_gate() -> Case:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = scaled(nn.Conv2d(3, 16, 3), 1.4)
            self.gate = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid())
            self.head = nn.Linear(16, 4)
            nn.init.constant_(self.gate[0].bias, -12.0)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x)).mean((2, 3))
            result: Tensor = self.head(x * self.gate(x))
            return result

    return Case(Squeezed(), floats(8, 3, 10, 10), cross_entropy(4))


@fault("F304", "*", "classic: recurrent weights of std 1", share("rnn", lambda out: out.abs() > 0.99, 0.3))
def saturated_recurrence() -> Case:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(8, 64, batch_first=True)
            self.head = nn.Linear(64, 4)
            for weight in (self.rnn.weight_ih_l0, self.rnn.weight_hh_l0):
                nn.init.normal_(weight)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.rnn(x)[0][:, -1])
            return result

    return Case(Recurrent(), floats(8, 10, 8), cross_entropy(4))


@fault(
    "F303",
    "*",
    "classic: weights of negative mean under ReLU",
    both(share("3", lambda out: out == 0, 0.99), no_gradient("0.weight")),
)
def negative_weights() -> Case:
    model = mlp(32, 64, 64, 10)
    nn.init.uniform_(model[2].weight, -0.2, 0.0)
    return Case(model, floats(32, 32), cross_entropy(10))


@fault("F303", "*", "classic: inputs in 0…255 and a negative bias on all", share("1", lambda out: out == 0, 0.95))
def dead_channels() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight.normal_(-0.3, 0.1)
    return Case(model, floats(8, 3, 10, 10).abs(), cross_entropy(4))


@fault("F305", "*", "Schoenholz et al. 2017: tanh in the ordered phase, 40 layers", alike("78", 0.9999))
def ordered_phase() -> Case:
    model = mlp(*[128] * 41, 10, act=nn.Tanh, gain=1.0)
    for index in range(0, 80, 2):
        nn.init.normal_(model[index].bias, std=0.22)
    return Case(model, floats(32, 128), cross_entropy(10))


@fault("F305", "*", "Dong et al. 2021: attention without skips loses rank", positions_alike("7", 0.9999), fixable=False)
def rank_collapse() -> Case:
    return Case(nn.Sequential(*(Attention(32) for _ in range(8))), floats(8, 12, 32))


@fault(
    "F306 F403",
    "*",
    "Schoenholz et al. 2017: tanh deep in the chaotic phase, 40 layers",
    gradient_ratio("0.weight", "78.weight", 300),
)
def chaotic_phase() -> Case:
    return Case(mlp(*[128] * 41, 10, act=nn.Tanh, gain=2.5), floats(32, 128), cross_entropy(10))


@fault(
    "F306 F403", "*", "vsitzmann/siren: ω₀ = 30 with default weights", gradient_ratio("0.fc.weight", "5.fc.weight", 100)
)
def sine_with_wrong_scale() -> Case:
    class Sine(nn.Module):
        def __init__(self, fan_in: int) -> None:
            super().__init__()
            self.fc = nn.Linear(fan_in, 64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * self.fc(x))

    return Case(nn.Sequential(Sine(2), *(Sine(64) for _ in range(5)), nn.Linear(64, 1)), floats(64, 2))


@fault("F307 F302", "*", "hongyi-zhang/Fixup: He in residual branches without norms", grows("0", "30", 1e3))
def residual_growth() -> Case:
    blocks = [Residual(*mlp(32, 64, 32)) for _ in range(30)]
    for block in blocks:
        scaled(block.branch[2], 2**0.5)
    return Case(
        nn.Sequential(scaled(nn.Linear(32, 32), 1.0), *blocks, scaled(nn.Linear(32, 10), 1.0)),
        floats(32, 32),
        cross_entropy(10),
    )


@fault("F307", "*", "layer6ai-labs/T-Fixup#8: a transformer without norms and without scaling", grows("0", "24", 50))
def unnormalized_transformer() -> Case:
    blocks: list[nn.Module] = []
    for _ in range(12):
        blocks += [Residual(Attention(32)), Residual(*mlp(32, 128, 32))]
    return Case(
        nn.Sequential(scaled(nn.Linear(32, 32), 1.0), *blocks, scaled(nn.Linear(32, 4), 1.0)),
        floats(4, 8, 32),
        cross_entropy(4),
    )


def _one_hot(case: Case, attention: Attention, x: Tensor) -> float:
    with torch.no_grad():
        scores = attention.q(x) @ attention.k(x).transpose(-1, -2)
        return float((scores / x.shape[-1] ** 0.5).softmax(-1).amax(-1).mean())


def _attention_is_one_hot(case: Case) -> None:
    (x,) = outputs_of(case, "0.branch.0")
    assert _one_hot(case, case.model.get_submodule("0.branch.1"), x) > 0.9  # type: ignore[arg-type]


@fault("F308", "*", "facebookresearch/xformers#219: queries and keys of unit std", _attention_is_one_hot)
def one_hot_attention() -> Case:
    attention = Attention(64)
    for layer in (attention.q, attention.k):
        nn.init.normal_(layer.weight)
    return Case(
        nn.Sequential(Residual(nn.LayerNorm(64), attention), nn.Linear(64, 4)), floats(4, 12, 64), cross_entropy(4)
    )


@fault("F308", "*", "classic: attention scores without 1/√d", lambda case: _unscaled(case), fixable=False)
def unscaled_scores() -> Case:
    attention = Attention(512, heads=2, scale=1.0)
    return Case(
        nn.Sequential(Residual(nn.LayerNorm(512), attention), nn.Linear(512, 4)), floats(4, 12, 512), cross_entropy(4)
    )


def _unscaled(case: Case) -> None:
    attention = case.model.get_submodule("0.branch.1")
    (x,) = outputs_of(case, "0.branch.0")
    with torch.no_grad():
        scores = attention.q(x)[..., :256] @ attention.k(x)[..., :256].transpose(-1, -2)
    assert float(scores.softmax(-1).amax(-1).mean()) > 0.9


@fault("F309", "*", "open-mmlab/mmengine#691: a head without its own initialization", loss_above(20))
def huge_first_loss() -> Case:
    model = mlp(64, 128, 100)
    nn.init.normal_(model[2].weight, std=3.0)
    return Case(model, floats(64, 64), cross_entropy(100))


@fault("F309", "*", "open-mmlab/mmsegmentation#695: a bias that is sure of one class", loss_above(15))
def prior_in_bias() -> Case:
    model = mlp(64, 128, 100)
    with torch.no_grad():
        model[2].bias[7] = 25.0
    return Case(model, floats(64, 64), cross_entropy(100))


def _overflows(case: Case) -> None:
    with torch.no_grad():
        assert not torch.isfinite(first_tensor(call(case))).all()


@fault("F310 F302", "*", "classic: activations over 65504 in half precision", _overflows)
def half_overflow() -> Case:
    return Case(mlp(64, 64, 64, 64, 64, gain=90.0).half(), floats(32, 64).half())


@fault("F310 F302", "*", "classic: a score that overflows before its softmax", _overflows)
def half_score_overflow() -> Case:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = (scaled(nn.Linear(64, 64), 60.0) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).transpose(-1, -2)
            result: Tensor = scores - scores.amax(-1, keepdim=True)
            return result

    return Case(Scores().half(), floats(4, 8, 64).half())
