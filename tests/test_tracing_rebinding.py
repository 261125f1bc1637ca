"""A forward that was set on an instance is run on the copy, by whatever way it reaches the model."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.comparison.workers import one_thread
from fanin.tracing import trace

Forward = Callable[..., Tensor]
KEPT = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
"""A model among the names of this file, as the models of notebooks are."""


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def closed_over(model: nn.Sequential) -> Forward:
    return lambda x: model[2](torch.relu(model[0](x)))


def over_its_parts(model: nn.Sequential) -> Forward:
    first, parts = model[0], {"rest": [model[1], model[2]]}
    return lambda x: parts["rest"][1](parts["rest"][0](first(x)))


def over_its_parameters(model: nn.Sequential) -> Forward:
    weight, bias = model[0].weight, model[0].bias
    return lambda x: model[2](torch.relu(nn.functional.linear(x, weight, bias)))


def around_the_former(model: nn.Sequential) -> Forward:
    former = model.forward
    return lambda x: former(x)


def of_a_default(model: nn.Sequential) -> Forward:
    return lambda x, *, model=model: model[2](torch.relu(model[0](x)))


def of_a_method(model: nn.Sequential) -> Forward:
    return types.MethodType(lambda self, x: self[2](torch.relu(model[0](x))), model)


def of_a_partial(model: nn.Sequential) -> Forward:
    return functools.partial(lambda model, x: model[2](torch.relu(model[0](x))), model)


def of_a_partial_closure(model: nn.Sequential) -> Forward:
    return functools.partial(lambda x, factor: model[2](torch.relu(factor * model[0](x))), factor=1.0)


def by_recursion(model: nn.Sequential) -> Forward:
    def step(x: Tensor, index: int = 0) -> Tensor:
        return step(model[index](x), index + 1) if index < len(model) else x

    return step


WAYS = (
    closed_over,
    over_its_parts,
    over_its_parameters,
    around_the_former,
    of_a_default,
    of_a_method,
    of_a_partial,
    of_a_partial_closure,
    by_recursion,
)


@pytest.mark.parametrize("way", WAYS)
def test_a_forward_of_the_instance_is_looked_into(way: Callable[[nn.Sequential], Forward]) -> None:
    inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    model, plain = network(), network()
    plain.load_state_dict(model.state_dict())
    forward: Any = way(model)
    model.forward = forward
    with one_thread():
        assert trace(model, inputs)["0.weight"].activation == trace(plain, inputs)["0.weight"].activation
        found, expected = (fanin.diagnose(one, inputs).signals.parameter("0.weight") for one in (model, plain))
    assert found.reached
    assert found.grad_rms == pytest.approx(expected.grad_rms)
    assert model.forward is forward
    assert all(parameter.grad is None for parameter in model.parameters())


FORMER = KEPT.forward


def first(x: Tensor) -> Tensor:
    return torch.relu(KEPT[0](x))


@pytest.mark.parametrize(
    "forward", [lambda x: KEPT[2](torch.relu(KEPT[0](x))), lambda x: FORMER(x), lambda x: KEPT[2](first(x))]
)
def test_a_forward_that_names_the_model_is_looked_into(forward: Forward) -> None:
    model: Any = KEPT
    model.forward = forward
    try:
        diagnosis = fanin.diagnose(model, torch.randn(8, 16, generator=torch.Generator().manual_seed(0)))
    finally:
        del model.forward
    assert diagnosis.signals.parameter("0.weight").reached
    assert KEPT[0].weight.grad is None


def test_a_forward_that_cannot_be_followed_is_an_error() -> None:
    hidden = network()

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = hidden

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = hidden(x)
            return result

    diagnosis = fanin.diagnose(Elsewhere(), torch.randn(8, 16, generator=torch.Generator().manual_seed(0)))
    assert not diagnosis.ok
    assert "F405" in diagnosis.codes
