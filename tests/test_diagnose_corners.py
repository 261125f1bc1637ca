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
