"""The automatic recipe: sizes that constants, unit lengths and scales decide, seen in the signals of filled models."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import fanin
from fanin.plans import Plan
from fanin.schemes import Keep, Ones, Zeros

pytestmark = pytest.mark.usefixtures("untouched_random_state")

Signal = Callable[[torch.Tensor], torch.Tensor]


class Reading(nn.Module):
    """A weight that takes in what a function makes of a wide layer's output, or of the input."""

    def __init__(self, made: Signal, behind: bool = True, scale: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(12, 256) if behind else nn.Identity()
        self.scale = nn.Parameter(torch.full((256,), 5.0)) if scale else None
        self.reading, self.head = nn.Linear(256 if behind else 12, 128), nn.Linear(128, 4)
        self.made = made

    def taken_in(self, x: torch.Tensor) -> torch.Tensor:
        x = self.made(self.first(x))
        return x if self.scale is None else x * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu(self.reading(self.taken_in(x))))


def filled(model: nn.Module, inputs: torch.Tensor) -> Plan:
    plan = fanin.plan(model, inputs)
    fanin.apply(plan, model, seed=0)
    return plan


def rms(x: torch.Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def unit(x: torch.Tensor) -> torch.Tensor:
    return functional.normalize(x, dim=-1)


def unit_by_hand(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def distances(_: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(8, 12)
    table[:, 3] = torch.arange(8.0) * 20
    table[1:, ::2] = 40.0
    return table


@pytest.mark.parametrize(
    ("made", "behind"),
    [
        pytest.param(unit, True, id="unit vectors"),
        pytest.param(unit_by_hand, True, id="unit vectors by hand"),
        pytest.param(lambda x: 16 * unit(x), True, id="unit vectors made up for"),
        pytest.param(lambda x: unit(x) * unit(x.flip(-1)), True, id="products of unit vectors"),
        pytest.param(lambda x: x * 255, False, id="pixels times 255"),
        pytest.param(lambda x: (x - 0.5) / (1 / 255), False, id="pixels over 1/255"),
        pytest.param(lambda x: torch.cat([x[:, :4] * 255, x[:, 4:] * 255], 1), False, id="joined"),
        pytest.param(lambda x: x * 2 - 1, False, id="a small factor"),
        pytest.param(distances, False, id="a table that is written in parts"),
    ],
)
def test_a_weight_makes_up_for_the_size_of_what_it_takes_in(made: Signal, behind: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(64, 12)
        model = Reading(made, behind)
        filled(model, inputs)
    put_out = rms(model.reading(model.taken_in(inputs)))
    assert math.sqrt(2) / 2.2 < put_out < math.sqrt(2) * 2.5


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda x: x / 255, id="pixels that are divided"),
        pytest.param(lambda x: x / x.square().mean(-1, keepdim=True).sqrt(), id="a norm by the mean"),
        pytest.param(lambda x: functional.normalize(x, p=1.0, dim=-1), id="another length"),
    ],
)
def test_other_sizes_are_left_alone(made: Signal) -> None:
    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(Reading(made), torch.zeros(4, 12))
    assert plan["reading.weight"].std == pytest.approx(math.sqrt(2 / 256))


def test_a_scale_of_unit_vectors_brings_their_numbers_to_unit_size() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(64, 12)
        model = Reading(unit, scale=True)
        plan = filled(model, inputs)
    assert rms(model.taken_in(inputs)) == pytest.approx(1.0, rel=1e-3)
    assert plan["reading.weight"].std == pytest.approx(math.sqrt(2 / 256))


class OnePlus(nn.Module):
    """A norm that multiplies by 1 + γ, as Gemma's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)


@pytest.mark.parametrize("recipe", ["auto", "he", "llama"])
def test_a_norm_that_adds_one_to_its_scale_starts_at_zero(recipe: str) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(8, 32), OnePlus(), nn.Linear(32, 4))
        plan = fanin.plan(model, torch.zeros(4, 8), recipe=recipe)
        assert plan["1.weight"].scheme == Zeros()
        fanin.apply(plan, model, seed=0)
        assert rms(model[:2](torch.randn(64, 8))) == pytest.approx(1.0, rel=1e-3)


class Scaled(nn.Module):
    """Branches times a learned number each."""

    def __init__(self, start: float, depth: int = 24) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(8, 32), nn.Linear(32, 4)
        self.inner = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((1,), start)) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.into(x)
        for inner, outer, scale in zip(self.inner, self.outer, self.scales, strict=True):
            x = x + scale * outer(functional.relu(inner(x)))
        return self.head(x)


@pytest.mark.parametrize("start", [0.0, 0.1, 1.0])
def test_a_learned_number_tames_its_branch_only_where_it_is_small(start: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, model = torch.randn(64, 8), Scaled(start)
        plan = filled(model, inputs)
        assert 0.3 < rms(model(inputs)) < 5
    node = plan["outer.3.weight"].node
    assert (node.tamed_by, node.scaled_by) == (("", "scales.3") if start == 1 else ("scales.3", ""))
    assert ("÷" in plan["outer.3.weight"].reason) == (start == 1)


class ClassAttention(nn.Module):
    """A class token that takes the patches in through scaled attention, as CaiT's last blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.patches = nn.Parameter(torch.zeros(1, 1, 16)), nn.Linear(6, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm, self.mlp, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.first = nn.Parameter(torch.full((16,), 1e-5))
        self.second = nn.Parameter(torch.full((16,), 1e-5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        token = self.token.expand(len(x), -1, -1)
        patches = self.norm(torch.cat([token, self.patches(x)], 1))
        query, key, value = self.query(patches[:, :1]), self.key(patches), self.value(patches)
        token = token + self.first * functional.scaled_dot_product_attention(query, key, value)
        token = token + self.second * self.mlp(functional.gelu(self.norm(token)))
        return self.head(token[:, 0])


def test_a_layer_scale_that_only_a_token_goes_around_is_one() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, model = torch.randn(32, 5, 6), ClassAttention()
        plan = filled(model, inputs)
    assert plan["first"].scheme == Ones()
    assert plan["second"].scheme == Keep()
    assert float(model(inputs).detach().std(0).mean()) > 0.1  # the answer depends on the input
