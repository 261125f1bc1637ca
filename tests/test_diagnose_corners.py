"""Corners of the rules, from both sides: what is found beside what is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
