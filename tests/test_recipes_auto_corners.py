"""The automatic recipe in places that small races found: borders, dead sums, linear stems, chunks of gates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import fanin
from fanin.graph import Role
from fanin.schemes import LooksLinear, Ones, Packed, ScaledOrthogonal, Zeros
from fanin.tracing.padding import covered
from fanin.tracing.records import Operation, Value
from small_nets import planned

pytestmark = pytest.mark.usefixtures("untouched_random_state")


def convolutions(depth: int, activation: type[nn.Module], padding: int | str = 1) -> nn.Sequential:
    layers = [nn.Conv2d(1, 16, 3, padding=padding), activation()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(16, 16, 3, padding=padding), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 9, 4))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_padded_convolutions_keep_the_signal_through_a_deep_net(activation: type[nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = convolutions(20, activation), torch.randn(64, 1, 3, 3)
        plan = fanin.plan(model, x)
        fanin.apply(plan, model, seed=0)
        last = model[:-2](x)
    assert 0.2 < float(last.detach().square().mean().sqrt()) < 4
    assert "60% of its taps meet the input" in plan["4.weight"].reason
    shallow = planned(lambda: convolutions(2, activation), 2, 1, 3, 3)
    assert "taps" not in shallow["2.weight"].reason


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(nn.Conv1d(2, 2, 5, padding=2), id="along one axis"),
        pytest.param(nn.Conv2d(2, 2, 3, padding=1), id="square"),
        pytest.param(nn.Conv2d(2, 2, (3, 5), stride=2, padding=(1, 2)), id="with a stride"),
        pytest.param(nn.Conv2d(2, 2, 3, padding=2, dilation=2), id="dilated"),
        pytest.param(nn.Conv2d(2, 2, 5, padding="same"), id="of the same size"),
        pytest.param(nn.Conv3d(2, 2, 3, padding=1), id="volumes"),
        pytest.param(nn.Conv2d(2, 2, 3), id="not padded"),
    ],
)
def test_the_taps_inside_of_an_input_are_counted(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    axes = layer.weight.dim() - 2
    ones = torch.ones(1, 2, *[7] * axes)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()  # type: ignore[union-attr]
        inside = float(layer(ones).mean()) / (2 * math.prod(layer.kernel_size))
    shapes = {"input": ones.shape, "weight": layer.weight.shape}
    values = {name: Value(0, tuple(shape), torch.float32) for name, shape in shapes.items()}
    made = Value(0, tuple(layer(ones).shape), torch.float32)
    settings = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    operation = Operation(0, f"conv{axes}d", None, {**values, **settings}, tuple(values.items()), (made,))
    assert covered(operation) == pytest.approx(inside)


class Convolved(nn.Module):
    """Layers one after the other behind a linear stem; their sums may be kept, and dropped."""

    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 16, 1)
        self.layers = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(12))
        self.head, self.sums = nn.Linear(16, 4), sums

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.stem(x), torch.zeros(())
        for layer in self.layers:
            x = functional.relu(layer(x))
            if self.sums:
                total = total + x
        return self.head(x.mean(-1))


def test_sums_that_nothing_returns_are_no_streams() -> None:
    assert [row.scheme for row in planned(lambda: Convolved(True), 2, 3, 8)] == [
        row.scheme for row in planned(lambda: Convolved(False), 2, 3, 8)
    ]


def test_rectifiers_behind_a_linear_stem_start_as_one_linear_map() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Convolved(False), torch.randn(64, 3, 1)
        plan = fanin.plan(model, x)
        fanin.apply(plan, model, seed=0)
        there, back = (model(side).detach() for side in (x, -x))
    assert isinstance(plan["stem.weight"].scheme, ScaledOrthogonal)
    assert plan["layers.0.weight"].scheme == LooksLinear(math.sqrt(2), mirrored=False)
    assert plan["layers.1.weight"].scheme == LooksLinear(1.0)
    # What goes through is a linear map, beside what is the same for x and −x.
    assert float((there - back).square().mean().sqrt()) > 0.5
    assert float(torch.corrcoef(torch.stack([(there - back).flatten(), there.flatten()]))[0, 1]) > 0.5


class Chunked(nn.Module):
    """A GRU by hand: three parts of one layer for the input, two of another for the state."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.state = nn.Linear(6, 48), nn.Linear(16, 32, bias=False)
        self.candidate, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            a, b, c = self.given(step).chunk(3, -1)
            p, q = self.state(state).chunk(2, -1)
            update, reset = torch.sigmoid(a + p), torch.sigmoid(b + q)
            state = update * state + (1 - update) * torch.tanh(c + self.candidate(reset * state))
        return self.head(state)


def test_gates_from_chunks_of_two_layers_are_told_apart() -> None:
    plan = planned(Chunked, 2, 5, 6)
    bias = plan["given.bias"]
    assert isinstance(bias.scheme, Packed)
    starts = [bias.scheme.part(block.name) for block in bias.node.axes.blocks]
    assert starts == [Ones(), Zeros(), Zeros()]
    assert [len(rows) for (rows,) in plan["state.weight"].node.blocks.values()] == [16, 16]
    assert plan["candidate.weight"].node.feedback
    assert all(row.node.stream is None for row in plan)


class Distances(nn.Module):
    """Twelve layers of which one is multiplied by rows of a table, as scores are by distances."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))
        self.distances, self.head = nn.Embedding(9, 16), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        places = torch.arange(5)
        rows = self.distances(places[:, None] - places[None, :] + 4)
        return self.head(torch.einsum("bld,lrd->blr", x, rows))


def test_tables_that_signals_are_multiplied_by_can_be_filled() -> None:
    with torch.random.fork_rng(devices=[]):
        model, x = Distances(), torch.randn(2, 5, 16)
        plan = fanin.plan(model, x)
        fanin.apply(plan, model, seed=0)
    assert isinstance(plan["layers.3.weight"].scheme, ScaledOrthogonal)
    assert plan.verify(model)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sin(30 * self.second(torch.sin(30 * self.first(x)))))


def test_whose_rule_it_is_is_cited() -> None:
    waves, gates, neither = planned(Waves, 2, 2), planned(Chunked, 2, 5, 6), planned(Bent, 2, 32)
    assert ["sitzmann2020" in plan.cite() for plan in (waves, gates, neither)] == [True, False, False]
    assert ["jozefowicz2015" in plan.cite() for plan in (waves, gates, neither)] == [False, True, False]


class Unmixed(nn.Module):
    """x + a · relu(b), with no weight behind the product."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.both(x).chunk(2, -1)
        return x + value * functional.relu(gate)


def test_products_that_no_weight_mixes_are_half_as_large() -> None:
    plan = planned(lambda: nn.Sequential(nn.Linear(8, 16), *[Unmixed() for _ in range(8)], nn.Linear(16, 4)), 2, 8)
    assert plan["3.both.weight"].std == pytest.approx(1 / 4 / 4, rel=1e-6)
    assert "its two weights is 1/(2 · 8)" in plan["3.both.weight"].reason


class Bilinear(nn.Module):
    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32 if packed else 16)
        self.second = None if packed else nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.first(x).chunk(2, -1) if self.second is None else (self.first(x), self.second(x))
        return first * second


@pytest.mark.parametrize("packed", [False, True])
def test_a_chain_of_products_of_linear_maps_starts_near_a_linear_map(packed: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), *[Bilinear(packed) for _ in range(6)], nn.Linear(16, 4))
        x = torch.randn(256, 8)
        fanin.initialize(model, x, seed=0)
        with torch.no_grad():
            outputs, doubled = model(x), model(2 * x)
    assert 0.002 < float(outputs.std(0).mean()) < 5
    # Without the bias, the output is the 64th power of what comes in.
    assert 1.5 < float(doubled.std(0).mean() / outputs.std(0).mean()) < 3
    two = planned(lambda: nn.Sequential(nn.Linear(8, 16), Bilinear(packed), Bilinear(packed), nn.Linear(16, 4)), 2, 8)
    assert two["1.first.bias"].scheme == Zeros()


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.sigmoid(self.inner(x)))


def test_sigmoids_in_branches_vary_as_much_as_what_they_take_in() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), *[Bent() for _ in range(6)], nn.Linear(32, 4))
        plan = fanin.plan(model, torch.randn(64, 8))
    assert plan["2.inner.weight"].role == Role.LINEAR
    assert plan["2.inner.weight"].reason.startswith("followed by sigmoid, whose mean carries nothing: centred gain")
