"""The auto recipe, rule by rule: on traced models, and on graphs written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import fanin
from fanin import gains
from fanin.fans import Axes, Fans
from fanin.gains import gain
from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes import recipe_named
from fanin.recipes.auto import HEAD, LONE_HEAD
from fanin.recipes.lengths import LENGTHS, stable_length
from fanin.recipes.plain import plain_depth, tamed_gain
from fanin.schemes import (
    CentredOrthogonal,
    Constant,
    Keep,
    LooksLinear,
    Ones,
    Orthogonal,
    Packed,
    ScaledOrthogonal,
    VarianceScaling,
    Zeros,
    xavier_normal,
)
from small_nets import Branch, planned, stack

pytestmark = pytest.mark.usefixtures("untouched_random_state")


class Gated(nn.Module):
    """x + down(silu(gate x) · up x)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.silu(self.gate(x)) * self.up(x))


def test_shallow_nets_are_gaussian_at_the_gain_of_what_follows() -> None:
    plan = planned(lambda: stack(3, nn.GELU), 2, 16)
    assert plan["0.weight"].std == pytest.approx(1.533530 / 4, rel=1e-6)
    assert plan["4.weight"].scheme == VarianceScaling(HEAD**2)
    assert "gelu" in plan["0.weight"].reason


def test_a_lone_output_layer_starts_near_uninformed() -> None:
    plan = planned(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), 2, 16)
    assert plan["1.weight"].scheme == VarianceScaling(LONE_HEAD**2)


def test_a_table_below_needs_the_gradient_of_the_output_layer() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 4))
    plan = fanin.plan(model, torch.zeros(5, dtype=torch.long))
    assert plan["1.weight"].scheme == VarianceScaling(HEAD**2)


class Unscaled(nn.Module):
    """A gated branch behind a norm, which may have no parameters."""

    def __init__(self, norm: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.norm, self.inner = norm, Gated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        return x + self.inner.down(functional.silu(self.inner.gate(normed)) * self.inner.up(normed))


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(16, elementwise_affine=False),
        lambda: nn.RMSNorm(16, elementwise_affine=False),
        lambda: lambda x: functional.layer_norm(x, (16,)),
        lambda: lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    ],
    ids=["layer norm", "rms norm", "function", "by hand"],
)
def test_norms_without_parameters_are_norms(norm: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> None:
    """The weights get what they get behind norms that have some."""

    def schemes(norm: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> dict[str, object]:
        blocks = lambda: nn.Sequential(nn.Linear(16, 16), *(Unscaled(norm()) for _ in range(4)), nn.Linear(16, 3))  # noqa: E731
        return {row.name: row.scheme for row in planned(blocks, 2, 16) if "norm" not in row.name}

    assert schemes(norm) == schemes(lambda: nn.LayerNorm(16))


class Joined(nn.Module):
    """Plain nets side by side on one input, whose outputs are joined and read by one layer."""

    def __init__(self, *depths: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(stack(depth, nn.ReLU) for depth in depths)
        self.head = nn.Linear(4 * len(depths), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([tower(x) for tower in self.towers], -1))


@pytest.mark.parametrize(("depths", "expected"), [((3,) * 6, 4), ((9, 2), 10), ((2, 9, 3), 10), ((12,), 13)])
def test_plain_depth_is_the_longest_way(depths: tuple[int, ...], expected: int) -> None:
    with torch.random.fork_rng(devices=[]):
        graph = fanin.trace(Joined(*depths), torch.zeros(2, 16))
    assert plain_depth(graph) == expected
    assert graph["head.weight"].weight_depth == expected
    assert graph["towers.0.0.weight"].weight_depth == 1


def test_a_weight_used_again_lies_behind_itself() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.again, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x)
            for _ in range(5):
                x = torch.tanh(self.again(x))
            return self.head(x)

    with torch.random.fork_rng(devices=[]):
        graph = fanin.trace(Again(), torch.zeros(2, 8))
    assert [graph[f"{name}.weight"].weight_depth for name in ("enter", "again", "head")] == [1, 2, 7]


def test_deep_plain_nets_are_orthogonal() -> None:
    plan = planned(lambda: stack(20, nn.ELU), 2, 16)
    scheme = plan["0.weight"].scheme
    assert isinstance(scheme, ScaledOrthogonal)
    assert scheme.gain == pytest.approx(gain("elu"))
    assert "20 plain layers" in plan["0.weight"].reason


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        (nn.ReLU, 1.0),
        (nn.GELU, 1.0),
        (nn.SiLU, 1.0),
        (nn.Softplus, 1.0),
        (nn.PReLU, 1.25),
        (lambda: nn.LeakyReLU(0.2), 1.2),
    ],
)
def test_deep_plain_nets_of_rectifiers_start_as_linear_maps(activation: Callable[[], nn.Module], slope: float) -> None:
    """Sums are kept through 30 layers, and lengths and gradients arrive."""
    with torch.random.fork_rng(devices=[]):
        model = stack(30, activation)
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 32, 16, generator=generator)
    plan = fanin.initialize(model, one, seed=0)
    second = plan["2.weight"].scheme
    assert isinstance(second, LooksLinear)
    assert second.mirrored
    assert second.gain == pytest.approx(1 / slope)
    assert plan["58.weight"].scheme == VarianceScaling(HEAD**2)
    first = plan["0.weight"].scheme
    assert isinstance(first, LooksLinear)
    assert not first.mirrored
    before_last = nn.Sequential(*model[:-2])
    one.requires_grad_()
    apart, together = before_last(one) + before_last(other), before_last(one + other)
    assert (together - apart).square().mean() < 1e-8 * together.square().mean()
    made = before_last(one)
    (gradient,) = torch.autograd.grad(made[:, 0].sum(), one)
    for power in (made.square().mean() / first.gain**2, gradient.square().sum(1).mean() / first.gain**2):
        assert 0.3 < power < 3


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm])
def test_nets_of_rectifiers_with_norms_start_as_linear_maps(kind: type[nn.Module]) -> None:
    """What tells samples apart is kept through 20 layers, and the gradient neither explodes nor fades."""
    with torch.random.fork_rng(devices=[]):
        layers = [layer for _ in range(20) for layer in (nn.Linear(16, 16), kind(16), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Linear(16, 4))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))

    def spread_and_gradient(recipe: str) -> tuple[float, float]:
        plan = fanin.initialize(model, x, recipe=recipe, seed=0)
        assert isinstance(plan["3.weight"].scheme, LooksLinear) == (recipe == "auto")
        first = model[0](x).detach().requires_grad_()
        last = model[1:-1](first)
        projection = torch.randn(last.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((last * projection).sum(), first)
        cosines = functional.cosine_similarity(last[:32], last[32:])
        return cosines.mean().item(), (gradient.norm() / projection.norm()).item()

    spread, gradient = spread_and_gradient("auto")
    alike, exploded = spread_and_gradient("orthogonal")
    assert spread < 0.4, "rectified noise has 1/π"
    assert 0.3 < gradient < 3
    assert alike > 0.9 or exploded > 10 * gradient
    plan = planned(lambda: nn.Sequential(*layers[-9:], nn.Linear(16, 4)), 2, 16)
    assert isinstance(plan["0.weight"].scheme, LooksLinear), "three layers and a head"
    assert "with norms" in plan["3.weight"].reason
    assert plan["6.weight"].node.norm_after
    plan = planned(lambda: nn.Sequential(*layers[-6:], nn.Linear(16, 4)), 2, 16)
    assert plan["0.weight"].scheme == VarianceScaling(1.0), "two layers and a head"


class Again(nn.Module):
    """One layer applied again and again, and the input anew at every step or not."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor], *, driven: bool) -> None:
        super().__init__()
        self.enter, self.again, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.activation, self.driven = activation, driven

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.activation(self.enter(x[:, 0]))
        for time in range(20):
            made = self.again(state)
            state = self.activation(made + self.enter(x[:, time]) if self.driven else made)
        return self.head(state)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_one_layer_of_rectifiers_again_and_again_keeps_lengths(slope: float) -> None:
    def leaky(x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x, slope) if slope else functional.relu(x)

    with torch.random.fork_rng(devices=[]):
        model, driven = Again(leaky, driven=False), Again(leaky, driven=True)
    x = torch.randn(64, 20, 16, generator=torch.Generator().manual_seed(0))
    scheme = fanin.initialize(model, x, seed=0)["again.weight"].scheme
    assert isinstance(scheme, LooksLinear)
    assert scheme.gain == pytest.approx(1 / (1 + slope))
    with torch.no_grad():
        first = state = leaky(model.again(leaky(model.enter(x[:, 0]))))
        for _ in range(19):
            state = leaky(model.again(state))
    assert state.square().mean() == pytest.approx(first.square().mean().item(), rel=0.05)
    assert planned(lambda: Again(torch.tanh, driven=False), 2, 20, 16)["again.weight"].scheme == Orthogonal()
    assert fanin.plan(driven, x)["again.weight"].scheme == Orthogonal(), "a recurrence over inputs"


@pytest.mark.parametrize(("activation", "depth", "mirrored"), [(nn.ReLU, 3, 0), (nn.ReLU, 4, 3), (nn.ELU, 4, 0)])
def test_nets_of_rectifiers_are_mirrored_from_four_layers_on(
    activation: type[nn.Module], depth: int, mirrored: int
) -> None:
    schemes = [row.scheme for row in planned(lambda: stack(depth, activation), 2, 16) if row.node.is_weight]
    assert sum(isinstance(scheme, LooksLinear) for scheme in schemes) == mirrored
    assert not any(isinstance(scheme, ScaledOrthogonal) for scheme in schemes)


def test_only_whole_nets_of_rectifiers_are_mirrored() -> None:
    def schemes(*extra: Callable[[], nn.Module]) -> set[type]:
        plan = planned(
            lambda: nn.Sequential(*stack(12, nn.ReLU)[:-1], *(build() for build in extra), nn.Linear(16, 2)), 2, 16
        )
        return {type(row.scheme) for row in plan if row.node.is_weight and not row.node.output}

    assert schemes() == {LooksLinear}

    def layer() -> nn.Module:
        return nn.Linear(16, 16)

    assert schemes(layer, nn.Mish) == {LooksLinear}, "several rectifiers"
    assert schemes(layer, nn.Tanh) == {ScaledOrthogonal}, "tanh is no rectifier"
    assert schemes(layer) == {ScaledOrthogonal}, "two linear layers in a row"
    grouped = (lambda: nn.Unflatten(1, (16, 1)), lambda: nn.Conv1d(16, 16, 1, groups=4), nn.ReLU, nn.Flatten)
    assert schemes(*grouped) == {ScaledOrthogonal}, "a group has no mirror images of its own"


def test_deep_tanh_is_lowered_towards_criticality() -> None:
    scheme = planned(lambda: stack(30, nn.Tanh), 2, 16)["0.weight"].scheme
    assert isinstance(scheme, ScaledOrthogonal)
    assert 1.0 < scheme.gain < 1.4
    assert tamed_gain("tanh", 1.592537, 100) < tamed_gain("tanh", 1.592537, 10)


@pytest.mark.parametrize("depth", [2, 3, 10, 20])
def test_nets_of_sigmoids_start_as_nets_of_tanh(depth: int) -> None:
    """σ(z) = ½ + tanh(z/2)/2, and the ½ goes no further: the same outputs as of the net of tanh with those weights."""
    with torch.random.fork_rng(devices=[]):
        model = stack(depth, nn.Sigmoid, 64)
    plan = planned(lambda: model, 2, 64)
    schemes = [row.scheme for row in plan if row.node.is_weight]
    assert any(isinstance(scheme, CentredOrthogonal) for scheme in schemes) == (depth > 2)
    if depth == 2:
        return
    like_tanh = tamed_gain("tanh", gain("tanh"), depth)
    assert [scheme.gain for scheme in schemes] == pytest.approx([2 * like_tanh] + [4 * like_tanh] * (depth - 2) + [2.0])
    fanin.apply(plan, model)
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    other = x
    with torch.no_grad():
        for index, layer in enumerate(layer for layer in model if isinstance(layer, nn.Linear)):
            other = torch.tanh(other) if index else other
            other = other @ layer.weight.T * (0.5 if index == 0 or index == depth - 1 else 0.25)
        made = model(x)
    assert torch.allclose(made, other, atol=1e-4)
    assert made.std() > 0.2, "and no sample is like another"


def test_a_lone_sigmoid_among_others_gets_its_centred_gain() -> None:
    def build() -> nn.Module:
        layers = [nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(16, 4))

    scheme = planned(build, 2, 16)["2.weight"].scheme
    assert isinstance(scheme, VarianceScaling)
    assert math.sqrt(scheme.scale) == pytest.approx(4.801313, rel=1e-5)


class Cosine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(x)


def test_cosines_do_not_make_gradients_explode() -> None:
    """Their mean is larger than their spread, as the sigmoid's, but their slopes are larger yet."""
    scheme = planned(lambda: stack(10, Cosine), 2, 16)["0.weight"].scheme
    assert isinstance(scheme, ScaledOrthogonal)
    assert scheme.gain == pytest.approx(gain("cos"), rel=1e-5)
    assert scheme.gain**2 * gains.moments("cos").derivative_second_moment < 1


@pytest.mark.parametrize(("branches", "width", "orthogonal"), [(2, 32, False), (4, 32, True), (4, 513, False)])
def test_deep_nets_draw_orthogonal_matrices_of_the_same_size(branches: int, width: int, orthogonal: bool) -> None:
    """From eight layers on, and up to 512 wide."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(16, width), *[Wide(width) for _ in range(branches)], nn.Linear(width, 4))

    rows = [row for row in planned(build, 2, 16) if row.node.residual_last]
    assert [isinstance(row.scheme, ScaledOrthogonal) for row in rows] == [orthogonal] * branches
    assert all(row.std == pytest.approx(1 / math.sqrt(width * branches), rel=1e-6) for row in rows)


class Wide(nn.Module):
    """x + W relu(W norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = nn.Linear(width, width), nn.Linear(width, width)
        self.f = nn.Sequential(nn.LayerNorm(width), first, nn.ReLU(), second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


@pytest.mark.parametrize(("attends", "laws"), [(False, {ScaledOrthogonal}), (True, {VarianceScaling})])
def test_deep_nets_that_attend_stay_gaussian(attends: bool, laws: set[type]) -> None:
    def build() -> nn.Module:
        attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) if attends else nn.Identity()
        return nn.Sequential(nn.Linear(16, 16), *[Wide(16) for _ in range(4)], attention, nn.Linear(16, 4))

    rows = [row for row in planned(build, 2, 3, 16) if row.node.is_weight and not row.node.output]
    assert {type(row.scheme) for row in rows if not row.node.axes.blocks} == laws


def branched(norm: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), *[Branch(norm) for _ in range(9)], nn.Linear(16, 4))


def test_the_last_weight_of_a_branch_is_divided_by_the_root_of_branches() -> None:
    plan = planned(lambda: branched(norm=True), 2, 8)
    assert plan["3.fc2.weight"].std == pytest.approx(1 / math.sqrt(32) / 3, rel=1e-6)
    assert "÷ √9" in plan["3.fc2.weight"].reason
    assert plan["3.fc1.weight"].std == pytest.approx(1.533530 / 4, rel=1e-6)
    assert plan["10.weight"].scheme == VarianceScaling(HEAD**2)


def test_without_norms_all_weights_of_a_branch_share_the_division() -> None:
    plan = planned(lambda: branched(norm=False), 2, 8)
    assert plan["3.fc2.weight"].std == pytest.approx(1 / math.sqrt(32) / math.sqrt(3), rel=1e-6)
    assert plan["3.fc1.weight"].std == pytest.approx(1.533530 / 4 / math.sqrt(3), rel=1e-6)
    assert "9 in the stream, without norms: ÷ ∜9, for its 2 weights share 1/√9" in plan["3.fc2.weight"].reason
    assert plan["10.weight"].scheme == VarianceScaling(HEAD**2)


class Long(nn.Module):
    """x + f(x) through three weights, ended by an activation or not."""

    def __init__(self, end: nn.Module, inner: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        layers = (nn.Linear(16, 16), inner(), nn.Linear(16, 16), inner(), nn.Linear(16, 16), end)
        self.f = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


def test_three_weights_share_by_the_sixth_root_and_bounded_branches_need_none() -> None:
    plan = planned(lambda: nn.Sequential(*[Long(nn.Identity()) for _ in range(8)]), 2, 16)
    assert [plan[f"4.f.{k}.weight"].std for k in (0, 2)] == pytest.approx([(2 / 16) ** 0.5 / 2**0.5] * 2, rel=1e-6)
    assert plan["4.f.4.weight"].std == pytest.approx(1 / 4 / 2**0.5, rel=1e-6)
    bounded = planned(lambda: nn.Sequential(*[Long(nn.Tanh()) for _ in range(8)]), 2, 16)
    assert "÷ ∜8" in bounded["4.f.4.weight"].reason
    assert bounded["4.f.0.weight"].std == pytest.approx((2 / 16) ** 0.5, rel=1e-6)
    inside = planned(lambda: nn.Sequential(*[Long(nn.Identity(), nn.Tanh) for _ in range(8)]), 2, 16)
    assert "÷ √8" in inside["4.f.4.weight"].reason
    assert "÷" not in inside["4.f.0.weight"].reason


@pytest.mark.parametrize("norm_first", [True, False])
def test_both_weights_of_branches_behind_post_norms_are_divided_by_the_fourth_root(norm_first: bool) -> None:
    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=norm_first)
        return nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)

    plan = planned(encoder, 2, 5, 16)
    for name, fan_in in (("layers.3.linear2.weight", 32), ("layers.3.self_attn.out_proj.weight", 16)):
        assert plan[name].node.post_norm is not norm_first
        assert plan[name].std == pytest.approx(fan_in**-0.5 * 16 ** (-0.5 if norm_first else -0.25))
        assert ("÷ √16" if norm_first else "÷ ∜16") in plan[name].reason
    hidden, gain = plan["layers.3.linear1.weight"], 1.533530 / 4
    assert hidden.std == pytest.approx(gain if norm_first else gain / 2, rel=1e-6)
    parts = plan["layers.3.self_attn.in_proj_weight"].scheme
    stds = [parts.part(block).expected(Fans(16, 16)).std for block in "qkv"]
    assert stds == pytest.approx([1 / 4, 1 / 4, 1 / 4 if norm_first else 1 / 8])


def test_the_weights_of_bare_gated_branches_multiply_to_one_over_their_number() -> None:
    plan = planned(lambda: nn.Sequential(nn.Linear(8, 16), *[Gated() for _ in range(8)], nn.Linear(16, 4)), 2, 8)
    assert plan["1.gate.weight"].std == pytest.approx(1 / 4 / 2, rel=1e-6)
    assert plan["1.up.weight"].std == pytest.approx(1 / 4 / 2, rel=1e-6)
    assert plan["1.down.weight"].std == pytest.approx(1 / math.sqrt(32) / 2, rel=1e-6)


def test_bare_gated_branches_say_something_and_not_too_much() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = nn.Sequential(*[Gated() for _ in range(32)]), torch.randn(64, 16)
    fanin.initialize(model, x)
    share = (model(x) - x).square().mean().sqrt() / x.square().mean().sqrt()
    assert 0.02 < share < 1


class BoundedGates(Gated):
    """A value and a gate that a sigmoid bounds, packed in one layer or not."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        if packed:
            self.gate, self.up = nn.Linear(16, 64), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed:
            return x + self.down(functional.glu(self.gate(x)))
        return x + self.down(torch.sigmoid(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("packed", [False, True])
def test_the_value_makes_up_for_what_a_bounded_gate_lets_pass(packed: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(8, 16), *[BoundedGates(packed) for _ in range(9)], nn.Linear(16, 4))
    plan = planned(lambda: model, 2, 8)
    passed = fanin.gains.moments("sigmoid").second_moment
    value = plan["1.gate.weight"].block_std["up"] if packed else plan["1.up.weight"].std
    assert value == pytest.approx(1 / 4 / math.sqrt(passed), rel=1e-6)
    assert plan["1.down.weight"].std == pytest.approx(1 / math.sqrt(32) / 3, rel=1e-6)
    shares = []
    for seed in range(100):  # a share of 1/9 each; an error of √2 in a weight would double it
        fanin.apply(plan, model[1], seed=seed, prefix="1.")
        stream = torch.randn(256, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            shares.append((model[1](stream) - stream).square().mean())
    assert torch.stack(shares).mean().item() == pytest.approx(1 / 9, rel=0.15)


def test_an_ungated_recurrence_leaves_the_state_room() -> None:
    plain = planned(lambda: nn.RNN(8, 64), 5, 2, 8)["weight_ih_l0"]
    gated = planned(lambda: nn.GRU(8, 64), 5, 2, 8)["weight_ih_l0"]
    assert plain.std == pytest.approx(math.sqrt(2 / 72))
    assert gated.block_std["n"] == pytest.approx(math.sqrt(1 / 8))


def test_a_recurrence_of_rectifiers_takes_in_as_much_as_its_state_brings() -> None:
    for layer in (lambda: nn.RNN(8, 64, nonlinearity="relu"), lambda: nn.RNNCell(8, 64, nonlinearity="relu")):
        plan = planned(layer, 5, 8)
        rows = [row for row in plan if row.node.feeds_state]
        assert [row.scheme for row in rows] == [VarianceScaling(1.0)]
        assert "recurrence of rectifiers" in rows[0].reason
    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(Again(functional.relu, driven=True), torch.zeros(2, 20, 16))
    assert plan["enter.weight"].scheme == VarianceScaling(1.0)


def test_an_input_that_comes_in_at_every_step_is_no_residual_stream() -> None:
    class Equilibrium(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.again, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = self.enter(x)
            state = torch.zeros_like(given)
            for _ in range(12):
                state = torch.relu(self.again(state) + given)
            return self.head(state)

    plan = planned(Equilibrium, 2, 8)
    assert plan["again.weight"].scheme == Orthogonal()
    assert plan["enter.weight"].scheme == VarianceScaling(1.0)
    assert plan["enter.weight"].node.feeds_state


class WrittenByHand(nn.Module):
    """A GRU of two linear layers, or an Elman network."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated, parts = gated, 3 if gated else 1
        self.inward, self.around = nn.Linear(4, 8 * parts), nn.Linear(8, 8 * parts, bias=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), 8)
        for time in range(x.shape[1]):
            inward, around = self.inward(x[:, time]), self.around(state)
            if self.gated:
                (r, z, n), (reset, update, new) = inward.chunk(3, -1), around.chunk(3, -1)
                kept = torch.sigmoid(z + update)
                state = (1 - kept) * torch.tanh(n + torch.sigmoid(r + reset) * new) + kept * state
            else:
                state = torch.tanh(inward + around)
        return self.head(state)


@pytest.mark.parametrize("gated", [False, True])
def test_a_recurrence_written_by_hand_starts_like_a_layer(gated: bool) -> None:
    plan = planned(lambda: WrittenByHand(gated), 2, 5, 4)
    written, around = plan["inward.weight"], plan["around.weight"]
    assert around.node.feedback
    assert written.node.feeds_state
    assert not plan["head.weight"].node.feeds_state
    assert written.node.stream is None, "the sum of two steps is no residual sum"
    assert around.scheme == Orthogonal()
    assert written.scheme == (VarianceScaling(1.0) if gated else xavier_normal())
    assert len(written.node.blocks) == (3 if gated else 0)
    assert sum(len(rows) for parts in written.node.blocks.values() for rows in parts) == (24 if gated else 0)


class Highway(nn.Module):
    """Layers whose gates share out between what they make and what they take in, packed or not."""

    def __init__(self, depth: int, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        width = 32 if packed else 16
        self.made = nn.ModuleList(nn.Linear(16, width) for _ in range(depth))
        self.transform = nn.ModuleList(nn.Linear(16, 16) for _ in range(0 if packed else depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, made in enumerate(self.made):
            value, gate = made(x).chunk(2, -1) if self.packed else (made(x), self.transform[layer](x))
            gate = torch.sigmoid(gate)
            x = gate * torch.relu(value) + (1 - gate) * x
        return x


@pytest.mark.parametrize("packed", [False, True])
def test_a_deep_highway_starts_mostly_open(packed: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Highway(30, packed), torch.randn(256, 16, requires_grad=True)
    plan = fanin.plan(model, x)
    assert plain_depth(fanin.trace(model, x)) == 0
    bias = plan["made.7.bias" if packed else "transform.7.bias"].scheme
    opening = Constant(-math.log(29))
    assert bias == (Packed.of(gate=Zeros(), write=opening) if packed else opening)
    fanin.apply(plan, model, seed=0)
    out = model(x)
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), x)
    assert out.square().mean() > 1 / (3 * math.e**2)
    assert gradient.square().sum(1).mean() > 1 / (3 * math.e**2)


def test_a_reset_gate_of_its_own_layer_is_part_of_the_recurrence() -> None:
    class Reset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reset, self.update, self.new = (nn.Linear(12, 8) for _ in range(3))
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = x.new_zeros(len(x), 8)
            for time in range(x.shape[1]):
                both = torch.cat([x[:, time], state], -1)
                kept = torch.sigmoid(self.update(both))
                new = self.new(torch.cat([x[:, time], torch.sigmoid(self.reset(both)) * state], -1))
                state = kept * state + (1 - kept) * torch.tanh(new)
            return self.head(state)

    plan = planned(Reset, 2, 5, 4)
    fed_back = {row.node.name for row in plan if row.node.feedback}
    assert fed_back == {"reset.weight", "update.weight", "new.weight"}


def test_layers_that_share_weights_through_depth_are_no_recurrence() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.around = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = torch.relu(self.second(torch.relu(self.first(x))))
            for _ in range(3):
                x = x + self.around(x)
            return x

    assert not any(row.node.feedback or row.node.feeds_state for row in planned(Shared, 2, 8))


class Waves(nn.Module):
    def __init__(self, depth: int, omega: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128 if layer else 2, 128) for layer in range(depth))
        self.head, self.omega = nn.Linear(128, 1), omega

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


@pytest.mark.parametrize("omega", [5.0, 30.0])
def test_layers_of_waves_make_up_for_their_frequency(omega: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Waves(6, omega), torch.rand(512, 2) * 2 - 1
    plan = fanin.plan(model, x)
    fanin.apply(plan, model, seed=0)
    assert plan["layers.0.weight"].std == pytest.approx(1 / 2 / math.sqrt(3))
    states = [model.layers[0](x)]
    for layer in model.layers[1:]:
        states.append(layer(torch.sin(omega * states[-1])))
    sizes = torch.tensor([(omega * state).std().item() for state in states[1:]])
    assert ((sizes > 0.7) & (sizes < 1.4)).all()
    gradients = torch.autograd.grad(model.head(torch.sin(omega * states[-1])).sum(), states)
    norms = [gradient.norm().item() for gradient in gradients]
    assert 0.1 < norms[0] / norms[-1] < 10


def test_a_matrix_that_decodes_what_it_encoded_is_no_recurrence() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(functional.linear(x, self.weight)) @ self.weight

    row = planned(Tied, 4, 32)["weight"]
    assert not row.node.feedback
    assert row.scheme == VarianceScaling(2.0)


def test_a_branch_that_its_activation_bounds_is_divided_by_the_fourth_root() -> None:
    class Bounded(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tanh(super().forward(x))

    plan = planned(lambda: nn.Sequential(nn.Linear(8, 16), *[Bounded(16, 16) for _ in range(16)]), 2, 8)
    assert plan["1.weight"].std == pytest.approx(1.592537 / 4 / 2, rel=1e-6)
    assert "∜16" in plan["1.weight"].reason


@pytest.mark.parametrize(("kind", "open_gate"), [(nn.LSTM, "f"), (nn.GRU, "z")])
def test_recurrent_layers_start_with_open_memory(kind: type[nn.Module], open_gate: str) -> None:
    plan = planned(lambda: kind(8, 16), 5, 2, 8)
    assert plan["weight_hh_l0"].scheme == Orthogonal()
    bias = plan["bias_ih_l0"].scheme
    assert isinstance(bias, Packed)
    assert {name: scheme.label for name, scheme in bias.parts if scheme.label != "zeros"} == {open_gate: "ones"}
    assert plan["bias_hh_l0"].scheme == Zeros()
    assert plan["weight_ih_l0"].std == pytest.approx(1 / math.sqrt(8), rel=1e-6)


class Read(nn.Module):
    """What a recurrent layer holds at its end, read by one layer."""

    def __init__(self, kind: type[nn.RNNBase], outputs: int) -> None:
        super().__init__()
        self.layer, self.head = kind(16, 128, batch_first=True), nn.Linear(128, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize(("kind", "size"), [(nn.LSTM, 0.225), (nn.GRU, 0.328)])
@pytest.mark.parametrize("outputs", [64, 1])
def test_classes_read_a_state_at_unit_size_and_forecasts_do_not(
    kind: type[nn.RNNBase], size: float, outputs: int
) -> None:
    x = torch.randn(200, 40, 16, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        models = [Read(kind, outputs) for _ in range(8 if outputs == 1 else 1)]
    made = []
    for seed, model in enumerate(models):
        fanin.initialize(model, x, seed=seed)
        with torch.no_grad():
            made.append(model(x).flatten())
    assert torch.cat(made).square().mean().sqrt().item() == pytest.approx(size if outputs == 1 else 1.0, rel=0.2)


def test_a_norm_behind_a_weight_takes_its_gain_away() -> None:
    node = ParameterNode("conv.weight", (16, 8, 3, 3), Role.CONV, Axes(), activation="relu", norm_after=True)
    row = recipe_named("auto")(Graph((node,)))["conv.weight"]
    assert row.std == pytest.approx(1 / math.sqrt(72))
    assert "a norm follows" in row.reason


def test_auto_trains_where_the_default_is_lost() -> None:
    """The signal at the end of a 30-layer net: kept by auto, gone as constructed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = stack(30, nn.ReLU), torch.randn(64, 16)
    lost = model(images).std(0).mean().item()
    fanin.initialize(model, images)
    assert lost < 1e-6 < 1e-3 < model(images).std(0).mean().item()


def test_the_bias_of_a_rate_is_kept() -> None:
    """Mamba draws it so that steps lie between 0.001 and 0.1 (Gu & Dao 2023); zero would make them 0.69."""
    config = pytest.importorskip("transformers").MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    with torch.random.fork_rng(devices=[]):
        model = pytest.importorskip("transformers").MambaForCausalLM(config)
    plan = fanin.plan(model, torch.zeros(2, 8, dtype=torch.long))
    assert isinstance(plan["backbone.layers.0.mixer.dt_proj.bias"].scheme, Keep)
    assert plan["backbone.layers.0.mixer.conv1d.bias"].scheme == Zeros()


@pytest.mark.parametrize(("activation", "depth"), [(nn.GELU, 40), (nn.SiLU, 40), (nn.Softplus, 20)])
def test_smooth_rectifiers_run_where_they_keep_lengths_and_gradients(activation: type[nn.Module], depth: int) -> None:
    """A deviation of the length stays what it was, the signal is as long as predicted, and the gradient arrives.

    With convolutions in groups, since plain layers are mirrored.
    """
    width = 256
    with torch.random.fork_rng(devices=[]):
        inner = [layer for _ in range(depth - 2) for layer in (nn.Conv1d(width, width, 1, groups=2), activation())]
        model = nn.Sequential(nn.Conv1d(64, width, 1), activation(), *inner, nn.Conv1d(width, 10, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 64, 1, generator=generator)
    plan = fanin.initialize(model, x, seed=0)
    (name,) = {plan[f"{2 * layer}.weight"].node.activation for layer in range(depth - 1)}
    running = stable_length(name, depth)
    assert running is not None
    assert plan["0.weight"].scheme == ScaledOrthogonal(running.std)
    assert plan["2.weight"].scheme == ScaledOrthogonal(running.gain)
    hidden = model[:-1]
    with torch.no_grad():
        powers = [hidden(factor * x).square().mean().item() for factor in (1.0, 1.1)]
    assert 0.4 < powers[0] / running.power < 2.5, "what a width of 256 leaves to chance"
    assert powers[1] / powers[0] == pytest.approx(1.1**2, rel=0.1)
    first = model[0](x).detach().requires_grad_()
    last = model[1:-1](first)
    last.backward(torch.randn(last.shape, generator=generator) / last.numel() ** 0.5)
    assert first.grad is not None
    assert 0.2 < first.grad.norm() < 3
    assert model(x).std().item() == pytest.approx(HEAD, rel=0.5)


def test_rectifiers_and_shallow_nets_run_at_unit_variance() -> None:
    for activation, depth in (("relu", 100), ("leaky_relu", 100), ("gelu", 10), ("tanh", 50), ("selu", 40)):
        assert stable_length(activation, depth) is None, activation
    deepest = stable_length("silu", 200)
    assert deepest is not None
    assert deepest.std == LENGTHS[-1], "not quite stable, and far better than unit variance"
    for activation in ("relu2", "sin", "no such activation"):
        assert stable_length(activation, 30) is None, "no length is stable"


@pytest.mark.parametrize("link", [nn.Sigmoid(), nn.Tanh(), nn.Softmax(-1), nn.Softplus()])
def test_a_function_that_gives_outputs_their_range_makes_no_hidden_layer(link: nn.Module) -> None:
    plan = planned(lambda: nn.Sequential(*stack(4, nn.ReLU), link), 2, 16)
    assert plan["6.weight"].node.output
    assert plan["6.weight"].scheme == VarianceScaling(HEAD**2)
    features = planned(lambda: nn.Sequential(*stack(4, nn.ReLU), nn.ReLU()), 2, 16)
    assert not features["6.weight"].node.output, "features, not the range of a target"


@pytest.mark.parametrize(("inputs", "activation"), [(1, nn.ReLU), (2, nn.Tanh), (4, nn.GELU)])
def test_the_bias_of_a_narrow_layer_is_one_more_input(inputs: int, activation: type[nn.Module]) -> None:
    """Weights and bias share the power that a wide layer's weights have alone: what the layer puts out is as large."""

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 512), activation(), nn.Linear(512, 16), activation(), nn.Linear(16, 1))

    plan = planned(lambda: net(inputs), 4, inputs)
    wide = planned(lambda: net(16), 4, 16)
    assert plan["0.bias"].std == pytest.approx(plan["0.weight"].std, rel=1e-6)
    assert (inputs + 1) * plan["0.weight"].std ** 2 == pytest.approx(16 * wide["0.weight"].std ** 2, rel=1e-6)
    for name in ("2.bias", "4.bias"):
        assert plan[name].scheme == Zeros()
    assert wide["0.bias"].scheme == Zeros()


@pytest.mark.parametrize("stem", [False, True])
def test_a_net_of_one_input_knows_more_than_its_sign(stem: bool) -> None:
    """With zero biases f(2x) = 2 f(x) for every x, and the net is one straight line on either side of zero."""

    def build() -> nn.Module:
        first = [nn.Linear(1, 32)] if stem else [nn.Linear(1, 32), nn.ReLU()]
        return nn.Sequential(*first, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    with torch.random.fork_rng(devices=[]):
        model = build()
    x = torch.linspace(0.2, 2, 64).unsqueeze(1)
    fanin.initialize(model, x, seed=0)
    with torch.no_grad():
        values = model(x)
    bends = values.diff(dim=0).diff(dim=0).abs()
    assert bends.max() > 1e-2 * values.abs().max()


class Narrow(nn.Module):
    """Layers of few inputs whose biases stay at zero: convolutions, a gate, the end of a branch, the output."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.up, self.down, self.mix, self.head = nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(x)).mean(-1)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x))))
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(torch.relu(self.mix(x)))


class TalkingHeads(nn.Module):
    """Attention whose four heads are mixed by linear layers before and behind the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.before, self.behind, self.head = (
            nn.Linear(32, 96),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(32, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.mT / 8**0.5).permute(0, 2, 3, 1)).softmax(-2)
        mixed = self.behind(scores).permute(0, 3, 1, 2) @ v
        return self.head(mixed.transpose(1, 2).flatten(2))


def test_mixed_attention_heads_have_no_bias() -> None:
    plan = planned(TalkingHeads, 2, 10, 32)
    assert {row.scheme for row in plan if row.role == "bias"} == {Zeros()}


def test_few_inputs_alone_do_not_spread_a_bias() -> None:
    plan = planned(Narrow, 2, 16, 10)
    for name in ("depthwise", "excite", "down", "head"):
        assert plan[f"{name}.weight"].node.fans.fan_in <= 4
    assert {row.name: row.scheme for row in plan if row.role == "bias" and row.scheme != Zeros()} == {}


class Flow(nn.Module):
    """Couplings whose factors are exponentials of what a net makes of the other half."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        nets = [nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(layers)]
        self.nets = nn.ModuleList(nets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for net in self.nets:
            first, second = x.chunk(2, -1)
            scale, shift = net(first).chunk(2, -1)
            x = torch.cat([second * torch.exp(scale) + shift, first], -1)
        return x


@pytest.mark.parametrize("layers", [4, 32])
def test_a_flow_starts_near_the_identity(layers: int) -> None:
    """Exponents add up, and what they scale makes the next ones: at gain 1 a flow of 32 couplings is infinite."""
    with torch.random.fork_rng(devices=[]):
        model = Flow(layers)
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    plan = fanin.initialize(model, x, seed=0)
    assert plan["nets.1.2.weight"].std == pytest.approx(1 / layers / 8, rel=1e-6)
    assert f"one of {layers}" in plan["nets.1.2.weight"].reason
    with torch.no_grad():
        assert 0.5 < model(x).square().mean().sqrt() < 2.0


def test_a_lone_exponent_has_its_room() -> None:
    plan = planned(lambda: Flow(1), 2, 16)
    assert plan["nets.0.2.weight"].std == pytest.approx(1 / 8, rel=1e-6)


class Multiplied(nn.Module):
    """Gated layers in a chain, each φ(gate x) · (value x)."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor], layers: int, *, bias: bool = True) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(32, 32, bias=bias) for _ in range(layers))
        self.values = nn.ModuleList(nn.Linear(32, 32) for _ in range(layers))
        self.head, self.activation = nn.Linear(32, 4), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for gate, value in zip(self.gates, self.values, strict=True):
            x = self.activation(gate(x)) * value(x)
        return self.head(x)


@pytest.mark.parametrize("activation", [functional.silu, functional.gelu, functional.relu, torch.sigmoid])
def test_chains_of_gated_layers_start_open(activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Ten layers neither blow up single samples nor lose any, forward and backward."""
    with torch.random.fork_rng(devices=[]):
        model = Multiplied(activation, 10)
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plan = fanin.initialize(model, x, seed=0)
    sizes = model(x).square().sum(1).sqrt()
    assert sizes.max() < 20 * sizes.median()
    assert 0.2 < sizes.median() < 10
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    assert gradient.norm(dim=1).max() < 20 * gradient.norm(dim=1).median()
    assert 0.1 < gradient.norm(dim=1).median() < 10
    assert "one of 10 gated layers" in plan["values.0.weight"].reason


def test_only_chains_of_gates_with_biases_start_open() -> None:
    def gate(*shape: int, **settings: bool) -> float:
        with torch.random.fork_rng(devices=[]):
            plan = fanin.plan(Multiplied(functional.silu, *shape, **settings), torch.zeros(2, 32))
        return plan["gates.0.weight"].std

    assert gate(10) == pytest.approx(1 / 10 / math.sqrt(32))
    assert gate(10, bias=False) == pytest.approx(gate(2)) == pytest.approx(gain("silu") / math.sqrt(32))


class Normed(nn.Module):
    """relu(x + f(x)), whose branch ends in a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(32, 32, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm1d(32), nn.BatchNorm1d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm2(self.second(torch.relu(self.norm1(self.first(x))))))


@pytest.mark.parametrize("branches", [6, 40])
def test_gradients_do_not_explode_through_many_batch_norms(branches: int) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(16, 32), *[Normed() for _ in range(branches)], nn.Linear(32, 4))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    plan = fanin.initialize(model, x, seed=0)
    first = model[0](x).detach().requires_grad_()
    last = model[1:-1](first)
    projection = torch.randn(last.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((last * projection).sum(), first)
    assert gradient.norm() < 50 * projection.norm()
    scale = branches**-0.25 if branches > 12 else 1.0
    assert plan["1.norm2.weight"].expected.mean == pytest.approx(scale)
    assert plan["1.norm1.weight"].expected.mean == 1.0
    assert not [finding for finding in fanin.diagnose(model, x).findings if finding.code == "F205"]


def test_a_learned_scale_and_shift_do_not_end_a_stream() -> None:
    """As MobileBERT's, which stand where others have norms: what is added behind them is added to the same stream."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = Branch(norm=False)
            self.scale, self.shift = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.branch(x) * self.scale + self.shift

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(16, 16), *[Scaled() for _ in range(12)], nn.Linear(16, 4))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    plan = fanin.initialize(model, x, seed=0)
    assert {plan[f"{place}.branch.fc2.weight"].node.stream_depth for place in range(1, 13)} == {12}
    assert model[:-1](x).square().mean().sqrt() < 3


class Single(nn.Module):
    """x + W x."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x)


def test_branches_of_one_weight_and_of_three_do_not_share_as_if_they_had_two() -> None:
    plan = planned(lambda: nn.Sequential(*[kind for _ in range(4) for kind in (Single(), Long(nn.Identity()))]), 2, 16)
    assert plan["0.layer.weight"].std == pytest.approx(1 / 4 / math.sqrt(8), rel=1e-6)
    assert "÷ √8" in plan["1.f.4.weight"].reason


def stages(branch: Callable[[], nn.Module], count: int, width: int) -> nn.Module:
    """Residual streams of two branches one after the other, each behind a layer that no skip goes around."""
    inner = [[nn.Linear(width, width), nn.ReLU(), branch(), branch()] for _ in range(count)]
    return nn.Sequential(*[module for stage in inner for module in stage], nn.Linear(width, 4))


def test_streams_in_a_row_without_norms_are_divided_by_all_of_their_branches() -> None:
    rows = planned(lambda: stages(Single, 4, 16), 2, 16)
    lasts = [row for row in rows if row.node.residual_last]
    assert {row.node.stream_depth for row in lasts} == {2}
    assert all(row.std == pytest.approx(1 / 4 / math.sqrt(8), rel=1e-6) for row in lasts)
    assert "8 in streams one after the other" in lasts[0].reason


@pytest.mark.parametrize(("count", "scale"), [(5, 1.0), (6, 12**-0.25)])
def test_batch_norms_that_end_branches_are_counted_over_streams_in_a_row(count: int, scale: float) -> None:
    rows = planned(lambda: stages(Normed, count, 32), 8, 32)
    ends = [rows[row.node.tamed_by] for row in rows if row.node.tamed_by]
    assert len(ends) == 2 * count
    assert all((row.scheme.value if isinstance(row.scheme, Constant) else 1.0) == pytest.approx(scale) for row in ends)


@pytest.mark.parametrize(("count", "mirrored"), [(2, False), (3, True)])
def test_layers_between_streams_are_mirrored_from_four_on_and_branches_are_not(count: int, mirrored: bool) -> None:
    rows = planned(lambda: stages(Normed, count, 32), 8, 32)
    weights = [row for row in rows if row.node.is_weight and not row.node.output]
    between = [isinstance(row.scheme, LooksLinear) for row in weights if row.node.stream is None]
    assert between == [mirrored] * count
    assert not any(isinstance(row.scheme, LooksLinear) for row in weights if row.node.stream is not None)


def test_streams_that_start_behind_a_projection_are_not_mirrored() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), stages(Single, 5, 16))

    assert not any(isinstance(row.scheme, LooksLinear) for row in planned(build, 2, 16))


class Scaled(nn.Module):
    """A layer scale by its module's name, with a skip around it or without."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.scale = LayerScale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        branch = self.scale(self.second(functional.gelu(x)))
        return self.head(x + branch if self.skip else branch)


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((16,), 1e-5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


def test_a_layer_scale_is_kept_where_a_skip_goes_around_it_and_one_elsewhere() -> None:
    assert planned(lambda: Scaled(skip=True), 2, 16)["scale.gamma"].scheme == Keep()
    row = planned(lambda: Scaled(skip=False), 2, 16)["scale.gamma"]
    assert row.scheme == Ones()
    assert row.node.role is Role.LAYER_SCALE


class StandardizedConv(nn.Conv1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return functional.conv1d(x, weight.reshape_as(self.weight), self.bias)


def test_a_weight_that_the_model_standardizes_has_a_plain_scale() -> None:
    plan = planned(lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), StandardizedConv(8, 8, 3), nn.Tanh()), 2, 4, 16)
    row = plan["2.weight"]
    assert row.node.standardized
    assert not plan["0.weight"].node.standardized
    assert row.scheme == VarianceScaling(1.0)
    assert "standardizes" in row.reason
