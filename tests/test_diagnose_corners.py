"""Corners of the rules, from both sides: what is found beside what is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.comparison.workers import one_thread
from fanin.diagnoses import Diagnosis, Severity


def judged(build: Callable[[], nn.Module], inputs: Any, loss: Callable[[Any], Tensor] | None = None) -> Diagnosis:
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fanin.diagnose(build(), inputs, loss=loss)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def serious(diagnosis: Diagnosis) -> set[tuple[str, str]]:
    return {(item.code, item.place) for item in diagnosis.findings if item.severity is not Severity.NOTE}


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, width))


def test_a_first_loss_that_is_not_finite_is_an_error() -> None:
    below = judged(network, drawn(32, 16), lambda output: output.log().mean())
    assert ("F310", "") in serious(below)
    assert not below.ok
    assert judged(network, drawn(32, 16), lambda output: output.square().mean()).ok


def test_a_loss_of_either_sign_is_not_judged_by_a_ratio() -> None:
    targets = 0.01 * drawn(32, 2, seed=2)

    def density(output: Tensor) -> Tensor:
        mean, log_scale = output.chunk(2, -1)
        return -torch.distributions.Normal(mean, 0.1 * log_scale.exp()).log_prob(targets).mean()

    assert density(torch.zeros(32, 4)) < 0, "densities are larger than one"
    assert "F309" not in judged(network, drawn(32, 16), density).codes
    far = judged(network, drawn(32, 16), lambda output: (output - 0.01).square().mean())
    assert "F309" in far.codes


class Spectral(nn.Module):
    """A complex weight between two real ones."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.mix = nn.Parameter(std * torch.randn(17, 17, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = torch.fft.irfft(torch.fft.rfft(self.first(x)) @ self.mix)
        result: Tensor = self.head(mixed.relu())
        return result


def test_complex_weights_are_measured() -> None:
    healthy = judged(lambda: Spectral(17**-0.5), drawn(32, 16))
    assert healthy.ok
    mix = healthy.signals.parameter("mix")
    assert abs(mix.rms - 17**-0.5) < 0.02, "of the absolute values"
    assert mix.grad_rms
    assert not judged(lambda: Spectral(1e-4), drawn(32, 16)).ok


class Mapped(nn.Module):
    """Each sample by itself, in ``torch.vmap``."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(gain * torch.randn(32, 6)), nn.Parameter(torch.randn(2, 32) / 32**0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.vmap(lambda one: self.second @ torch.tanh(self.first @ one))(x)
        return result


def test_what_is_mapped_over_samples_is_run() -> None:
    assert judged(lambda: Mapped(6**-0.5), drawn(16, 6)).ok
    assert not judged(lambda: Mapped(float("inf")), drawn(16, 6)).ok


def normed(std: float, norm: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4))
    nn.init.normal_(model[0].weight, std=std)
    nn.init.zeros_(model[0].bias)
    return model


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_an_epsilon_outweighs_a_tiny_weight_before_any_norm(kind: Callable[[int], nn.Module]) -> None:
    diagnosis = judged(lambda: normed(1e-5, kind(16)), drawn(8, 3, 10, 10))
    assert ("F301", "1") in serious(diagnosis)
    assert [edit.pattern for edit in diagnosis.findings[0].edits] == ["0.weight"]
    assert judged(lambda: normed(0.02, kind(16)), drawn(8, 3, 10, 10)).ok


def test_a_norm_of_single_numbers_is_an_error_that_no_weight_mends() -> None:
    def single(pool: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.AdaptiveAvgPool2d(pool),
            nn.GroupNorm(16, 16),
            nn.Flatten(),
            nn.Linear(16 * pool**2, 4),
        )

    inputs = drawn(8, 3, 10, 10) + 3 * drawn(8, 3, 1, 1)
    found = judged(lambda: single(1), inputs)
    assert ("F301", "2") in serious(found)
    assert not any(finding.edits for finding in found.findings)
    assert judged(lambda: single(4), inputs).ok
    ends = judged(lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1), nn.LayerNorm(1)), drawn(64, 16))
    assert ("F301", "3") in serious(ends)


class Shifted(nn.Module):
    """A bias that is added by an operation of its own."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.first, self.shift = nn.Linear(16, 32, bias=False), nn.Parameter(torch.full((32,), bias))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(torch.tanh(x @ self.first.weight.T + self.shift)))
        return result


def test_a_bias_drowns_the_signal_however_it_is_added() -> None:
    assert ("F208", "shift") in serious(judged(lambda: Shifted(50.0), drawn(32, 16)))
    assert judged(lambda: Shifted(0.0), drawn(32, 16)).ok


def test_the_default_bias_of_a_single_number_is_no_fault() -> None:
    def timed(bias: float) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 16))
        with torch.no_grad():
            model[0].bias.uniform_(-bias, bias)
        return model

    times = 0.1 * torch.rand(32, 1, generator=torch.Generator().manual_seed(1))
    assert "F208" not in judged(lambda: timed(1.0), times).codes
    assert "F208" in judged(lambda: timed(10.0), times).codes


class Routed(nn.Module):
    """Experts, of which the largest score chooses one, with the score as its factor or without."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.weighted = weighted
        self.router, self.head = nn.Linear(16, 4), nn.Linear(24, 4)
        self.experts = nn.Parameter(torch.randn(4, 16, 24) / 4)

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).max(-1)
        mixed = torch.einsum("bd,edf->bef", x, self.experts)[torch.arange(len(x)), chosen]
        result: Tensor = self.head(functional.relu(mixed * share[:, None] if self.weighted else mixed))
        return result


def test_what_an_argmax_cuts_off_is_not_called_needless() -> None:
    cut = judged(lambda: Routed(False), drawn(32, 16))
    assert ("F405", "router.weight") in serious(cut)
    assert judged(lambda: Routed(True), drawn(32, 16)).ok


class Policy(nn.Module):
    """A mean, and a logarithm of a scale that is kept within bounds."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.mean, self.log_std = network(2), nn.Parameter(torch.full((2,), start))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.log_std.clamp(-5, 2).exp()


def test_a_parameter_that_starts_beyond_its_clamp_is_cut_off() -> None:
    assert ("F405", "log_std") in serious(judged(lambda: Policy(3.0), drawn(32, 16)))
    assert "F405" not in judged(lambda: Policy(0.5), drawn(32, 16)).codes


def test_an_output_that_depends_on_no_weight_is_an_error() -> None:
    def ended(end: nn.Module) -> nn.Sequential:
        return nn.Sequential(*network(1), end)

    found = judged(lambda: ended(nn.Softmax(-1)), drawn(32, 16))
    assert ("F405", "0.weight") in serious(found)
    assert judged(lambda: ended(nn.Sigmoid()), drawn(32, 16)).ok


class Gated(nn.Module):
    """A residual branch of two factors and a last weight, with a scale; and a head behind a norm."""

    def __init__(self, *zeros: str) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.gate, self.value = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.out, self.scale = nn.Linear(16, 16, bias=False), nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            for name in zeros:
                self.get_parameter(name).zero_()

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        x = x + self.scale * self.out(torch.tanh(self.gate(z)) * self.value(z))
        result: Tensor = self.head(self.last(x))
        return result


@pytest.mark.parametrize(
    ("zeros", "blocked"),
    [
        (("head.weight",), ()),
        (("head.weight", "scale"), ()),
        (("out.weight", "gate.weight"), ("gate.weight", "out.weight")),
        (("out.weight", "scale"), ("out.weight", "scale")),
        (("head.weight", "out.weight", "scale"), ("out.weight", "scale")),  # the head hides it in the first backward
    ],
)
def test_a_zero_blocks_if_the_first_steps_leave_it(zeros: tuple[str, ...], blocked: tuple[str, ...]) -> None:
    diagnosis = judged(lambda: Gated(*zeros), drawn(32, 16))
    assert sorted(item.place for item in diagnosis.findings if item.code == "F401") == sorted(blocked)


def test_zeros_that_open_one_after_the_other_are_meant() -> None:
    class Twice(Gated):
        def forward(self, x: Tensor) -> Tensor:
            z = self.norm(x)
            x = x + self.scale * self.out(torch.sigmoid(self.gate(z)) * self.value(z))
            result: Tensor = self.head(self.last(x))
            return result

    model = Twice("gate.weight", "out.weight")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert judged(lambda: model, drawn(32, 16)).ok
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing is left moved"


class Towers(nn.Module):
    """A policy and a value that share nothing but the input; the policy starts close to none."""

    def __init__(self, gain: float) -> None:
        super().__init__()

        def tower(width: int, depth: int) -> nn.Sequential:
            layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.Tanh())]
            return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), *layers, nn.Linear(64, width))

        self.policy, self.value = tower(3, 6), tower(1, 1)
        with torch.no_grad():
            self.policy[-1].weight *= 0.001
            for layer in self.policy[2:-1:2]:
                nn.init.orthogonal_(layer.weight, gain)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(x), self.value(x)


def test_towers_are_judged_each_by_itself() -> None:
    def loss(output: tuple[Tensor, Tensor]) -> Tensor:
        return 0.1 * (output[0] - 1).square().mean() + (output[1] - 1).square().mean()

    healthy = judged(lambda: Towers(1.0), drawn(64, 16), loss)
    assert not {"F402", "F403"} & set(healthy.codes)
    assert {layer.tower for layer in healthy.signals.layers} == {0, 1}
    assert ("F402", "policy.0") in serious(judged(lambda: Towers(0.1), drawn(64, 16), loss))


class Noisy(nn.Module):
    """A policy that draws its action: nothing but noise and a squashing function comes behind its last two layers."""

    def __init__(self, last: float, gain: float = 2**0.5) -> None:
        super().__init__()
        self.body = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.ReLU())))
        self.mean, self.log_std = nn.Linear(64, 2), nn.Linear(64, 2)
        with torch.no_grad():
            for layer in self.body[::2]:
                nn.init.normal_(layer.weight, std=gain / 8)
            for head in (self.mean, self.log_std):
                nn.init.uniform_(head.weight, -last, last)
                nn.init.uniform_(head.bias, -last, last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        mean, log_std = self.mean(h), self.log_std(h).clamp(-20, 2)
        action = mean + log_std.exp() * torch.randn_like(mean)
        return torch.tanh(action), -0.5 * ((action - mean) / log_std.exp()).square() - log_std


def test_a_weight_behind_which_no_other_comes_may_be_small() -> None:
    assert not {"F201", "F301"} & set(judged(lambda: Noisy(3e-3), drawn(64, 64)).codes)
    small = judged(lambda: Noisy(3e-3, gain=0.3), drawn(64, 64))
    assert "F301" in {code for code, _ in serious(small)}, "of the layers before them it is a fault"


class Placed(nn.Module):
    """Positions that are made smaller before they are added."""

    def __init__(self, factor: float | None) -> None:
        super().__init__()
        self.factor, self.first = factor, nn.Linear(16, 32)
        self.pos = nn.Parameter(torch.rand(1, 12, 32))
        self.body, self.head = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Linear(32, 4)
        with torch.no_grad():
            self.first.weight *= 0.05
            self.first.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        pos = self.pos if self.factor is None else self.factor * self.pos
        result: Tensor = self.head(self.body(self.first(x) + pos))
        return result


def test_positions_that_are_scaled_are_not_judged_by_what_they_were() -> None:
    assert "F207" in judged(lambda: Placed(None), drawn(8, 12, 16)).codes
    assert "F207" not in judged(lambda: Placed(0.05), drawn(8, 12, 16)).codes


@pytest.mark.parametrize("direct", [True, False])
def test_a_small_table_before_a_norm_is_no_error(direct: bool) -> None:
    def tokens() -> nn.Module:
        table, between = nn.Embedding(50, 32), [] if direct else [nn.Linear(32, 32, bias=False)]
        nn.init.uniform_(table.weight, -1e-4, 1e-4)
        return nn.Sequential(table, *between, nn.LayerNorm(32), nn.Linear(32, 50))

    found = [item for item in judged(tokens, torch.arange(48).view(4, 12)).findings if item.code == "F301"]
    assert [item.severity for item in found] == [Severity.WARNING if direct else Severity.ERROR]


class Buffered(nn.Module):
    """A constant that is added to the input."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(48, 4)
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(x + self.values)
        return result


def test_memory_that_nothing_wrote_is_found_in_a_buffer_whatever_it_holds() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (64, 48), generator=torch.Generator().manual_seed(3))
    raw = bits.int().view(torch.float32)
    raw = torch.where(raw.isfinite(), raw, 1.0)
    assert raw.abs().max() > 3e38, "as large as what a mask is filled with"
    assert ("F105", "values") in serious(judged(lambda: Buffered(raw), drawn(4, 64, 48)))
    decays = torch.exp(-torch.arange(48.0) * 2.2).expand(64, 48)
    assert ((decays > 0) & (decays < 1e-38)).any(), "a window's far end"
    mask = torch.where(torch.arange(48) > 40, torch.finfo(torch.float32).min, decays)
    assert "F105" not in judged(lambda: Buffered(mask), drawn(4, 64, 48)).codes


class Untracked(nn.Module):
    """A network, all or the first half of which is run without gradients."""

    def __init__(self, body: nn.Sequential, untracked: int) -> None:
        super().__init__()
        self.body, self.untracked = body, untracked

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body[: self.untracked](x)
        result: Tensor = self.body[self.untracked :](x.requires_grad_())
        return result


def test_a_model_none_of_which_learns_is_an_error() -> None:
    for untracked, severity in ((2, Severity.WARNING), (3, Severity.ERROR)):
        diagnosis = judged(
            lambda part=untracked: Untracked(network(), part), drawn(32, 16), lambda out: out.square().mean()
        )
        assert {(item.code, item.severity) for item in diagnosis.findings} == {("F405", severity)}
    detached = judged(network, drawn(32, 16), lambda output: output.detach().square().mean())
    assert ("F405", "0.weight") in serious(detached)
    assert judged(lambda: network().requires_grad_(False), drawn(32, 16), lambda output: output.square().mean()).ok


@pytest.mark.parametrize(("size", "place"), [(12.0, "2.bias"), (0.0, "2.weight")])
def test_a_wild_bias_of_the_output_is_blamed_itself(size: float, place: str) -> None:
    targets = torch.arange(32) % 10

    def classifier() -> nn.Module:
        model = network(10)
        nn.init.normal_(model[2].bias, std=size)
        nn.init.normal_(model[2].weight, std=2.0 if not size else 0.02)
        return model

    diagnosis = judged(classifier, drawn(32, 16), lambda output: functional.cross_entropy(output, targets))
    (found,) = [item for item in diagnosis.findings if item.code == "F309"]
    assert found.place == place
    assert ("2.weight" in {edit.pattern for edit in found.edits}) is not bool(size)


def test_gradients_that_are_no_numbers_are_not_called_missing() -> None:
    class Length(nn.Module):
        """The length of zero has no slope."""

        def __init__(self) -> None:
            super().__init__()
            self.enter, self.head = nn.Linear(16, 32, bias=False), nn.Linear(33, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            result: Tensor = self.head(torch.cat([x, x.square().sum(-1, keepdim=True).sqrt()], -1))
            return result

    assert serious(judged(Length, torch.zeros(8, 16))) == {("F406", "enter.weight")}
