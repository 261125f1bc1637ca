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


@pytest.mark.parametrize("size", [1.0, 6.0, 80.0, 130.0, 3e4])
def test_the_first_layer_makes_up_for_raw_inputs(size: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = Reading(lambda x: x, behind=False), size * torch.randn(64, 12)
        filled(model, inputs)
    assert math.sqrt(2) / 3 < rms(model.reading(inputs)) < math.sqrt(2) * 3


def test_any_batch_of_raw_inputs_gives_the_same_plan() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Reading(lambda x: x, behind=False)
        plans = {fanin.plan(model, torch.randint(0, 256, (8, 12)).float()) for _ in range(5)}
    assert len(plans) == 1


def test_a_model_that_divides_raw_inputs_is_left_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(Reading(lambda x: x / 255, behind=False), torch.full((8, 12), 200.0))
    assert plan["reading.weight"].std == pytest.approx(math.sqrt(2 / 12))


def test_the_biases_of_few_raw_inputs_spread_the_kinks_over_them() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1))
        raw, usual = (fanin.plan(model, size * torch.ones(8, 1)) for size in (64.0, 1.0))
    assert raw["0.bias"].std == pytest.approx(usual["0.bias"].std)
    assert raw["0.weight"].std == pytest.approx(usual["0.weight"].std / 64)


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


class Spoken(nn.Module):
    """A language model whose table is multiplied on its way in, and its signal on its way out."""

    def __init__(self, into: float, out: float = 1.0, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
        self.places = nn.Parameter(torch.zeros(8, 16))
        if tied:
            self.head.weight = self.tokens.weight
        self.norm, self.mixing = nn.LayerNorm(16), nn.Linear(16, 16)
        self.into, self.out = into, out

    def embedded(self, x: torch.Tensor) -> torch.Tensor:
        return self.into * self.tokens(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedded(x) + self.places
        scores = x @ x.transpose(1, 2) / 4
        x = x + self.mixing(scores.softmax(-1) @ x)
        return self.head(self.norm(x) * self.out)


@pytest.mark.parametrize(
    ("model", "embedded", "logits"),
    [
        pytest.param(lambda: Spoken(4.0, tied=False), 1.0, 1.0, id="multiplied"),
        pytest.param(lambda: Spoken(4.0), 1.0, 1.0, id="tied and multiplied"),
        pytest.param(lambda: Spoken(1.0, 0.25), 1.0, 1.0, id="tied, the signal divided before the logits"),
        pytest.param(lambda: Spoken(1.0), 0.25, 1.0, id="tied"),
    ],
)
def test_tables_go_by_the_constants_that_multiply_them(
    model: Callable[[], Spoken], embedded: float, logits: float
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens, language = torch.randint(0, 40, (16, 8)), model()
        filled(language, tokens)
    assert rms(language.embedded(tokens)) == pytest.approx(embedded, rel=0.15)
    assert rms(language.places) == pytest.approx(embedded / 2, rel=0.2)
    assert rms(language(tokens)) == pytest.approx(logits, rel=0.25)


def test_two_look_ups_that_share_their_rows_are_not_tied_to_the_output() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target, self.head = nn.Embedding(9, 16), nn.Embedding(9, 16), nn.Linear(16, 9)
            self.target.weight = self.source.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(functional.layer_norm(self.source(x) + self.target(x.flip(1)), (16,)))

    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(Shared(), torch.zeros(2, 3, dtype=torch.long))
    assert "tied" not in plan["source.weight"].reason
    assert "tied" not in plan["head.weight"].reason


class Experts(nn.Module):
    """All experts, weighted by a softmax, as one branch."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(16, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(count)
        )
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.norm(x)
        shares = self.router(given).softmax(-1)
        mixed = torch.zeros_like(x)
        for place, expert in enumerate(self.experts):
            mixed = mixed + shares[..., place : place + 1] * expert(given)
        return x + mixed


def test_experts_whose_shares_add_up_to_one_are_one_branch() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(8, 16), Experts(), Experts(), nn.Linear(16, 4))
        plan = fanin.plan(model, torch.zeros(2, 8))
    assert {row.node.stream_depth for row in plan if row.node.residual_last} == {2}
