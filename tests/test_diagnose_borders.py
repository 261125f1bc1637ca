"""Where a rule stops to hold: the healthy models beyond its border, and the faults on this side of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fanin.diagnoses import Severity
from fanin.graph import Role
from judging import Case, classes, judged, mended, serious


class Unrolled(nn.Module):
    """A recurrence by hand, whose steps are unrolled: all read the same weights."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "matrices":
            self.enter = nn.Parameter(torch.randn(16, 64) / 4)
            self.again = nn.Parameter(nn.init.orthogonal_(torch.empty(64, 64)))
        elif how == "joined":
            self.both = nn.Linear(16 + 64, 64)
        elif how == "gates":
            self.gates = nn.ModuleList(nn.Linear(16 + 64, 64) for _ in range(3))
        else:
            self.cell = nn.RNNCell(16, 64)
        self.out = nn.Linear(64, 5)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        if self.how == "matrices":
            return torch.tanh(x @ self.enter + state @ self.again)
        both = torch.cat([x, state], 1)
        if self.how == "joined":
            return torch.tanh(self.both(both))
        if self.how == "cell":
            return self.cell(x, state)  # type: ignore[no-any-return]
        keep, reset = (torch.sigmoid(gate(both)) for gate in self.gates[:2])
        new = torch.tanh(self.gates[2](torch.cat([x, reset * state], 1)))
        return (1 - keep) * state + keep * new  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 64)
        for moment in range(x.shape[1]):
            state = self.step(x[:, moment], state)
        result: Tensor = self.out(state)
        return result


@pytest.mark.parametrize("how", ["matrices", "joined", "gates", "cell"])
def test_a_weight_of_every_step_is_judged_by_its_whole_gradient(how: str) -> None:
    assert not serious(judged(lambda: Case(Unrolled(how), torch.randn(32, 20, 16), classes(5, 32)))[1])


class Read(nn.Module):
    """The input comes in at the first step alone, and the state is multiplied by one small matrix again and again."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 5)
        nn.init.orthogonal_(self.again.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.enter(x))
        for _ in range(6):
            state = torch.tanh(self.again(state))
        result: Tensor = self.out(state)
        return result


@pytest.mark.parametrize(("gain", "found"), [(1.0, False), (0.01, True)])
def test_what_the_first_step_alone_brings_may_be_lost(gain: float, found: bool) -> None:
    diagnosis = judged(lambda: Case(Read(gain), torch.randn(32, 16), classes(5, 32)))[1]
    assert bool(diagnosis.of("F402")) is found


def gabor() -> Tensor:
    """Filters of edges in eight directions: most of a kernel is next to zero, and its centre is not."""
    line = torch.linspace(-1, 1, 7)
    x, y = torch.meshgrid(line, line, indexing="ij")
    turned = [x * math.cos(angle) + y * math.sin(angle) for angle in torch.linspace(0, 2.7, 8).tolist()]
    return torch.stack([torch.exp(-3 * (x**2 + y**2)) * torch.cos(6 * along) for along in turned])[:, None] / 3


def filtered(change: Callable[[Tensor], Any] | None = None) -> Case:
    """A first convolution of written filters, one of which may be changed."""
    first = nn.Conv2d(1, 8, 7, padding=3)
    first.weight.data = gabor()
    if change is not None:
        change(first.weight.data)
    layers = (first, nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Case(nn.Sequential(*layers, nn.Linear(16, 5)), torch.randn(16, 1, 16, 16), classes(5, 16))


def drawn_filters(size: int, change: Callable[[Tensor], Any]) -> Case:
    model = nn.Sequential(nn.Conv2d(3, 16, size), nn.ReLU(), nn.Flatten(), nn.Linear(16 * (13 - size) ** 2, 5))
    change(model[0].weight.data)
    return Case(model, torch.randn(16, 3, 12, 12), classes(5, 16))


def one_value(weight: Tensor) -> None:
    weight[3, 0, 1, 2] = 5.0


def test_the_form_of_written_filters_is_no_outlier() -> None:
    assert not judged(filtered)[1].of("F106")


@pytest.mark.parametrize("change", [one_value, lambda weight: weight[3].mul_(40.0)])
def test_what_stands_out_among_filters_is(change: Callable[[Tensor], Any]) -> None:
    assert judged(lambda: drawn_filters(3, change))[1].of("F106")
    assert judged(lambda: drawn_filters(7, change))[1].of("F106")


def upsampled(kernel: Tensor) -> Case:
    """A transposed convolution with one kernel for each channel, which raises the resolution."""
    raised = nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=16, bias=False)
    raised.weight.data.copy_(kernel)
    layers = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), raised, nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    return Case(nn.Sequential(*layers), torch.randn(8, 3, 16, 16))


def test_channels_may_be_raised_by_one_bilinear_kernel() -> None:
    side = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert not serious(judged(lambda: upsampled(side[:, None] * side))[1])
    assert serious(judged(lambda: upsampled(torch.full((4, 4), 0.25)))[1])


class Chained(nn.Module):
    """The output layer's scores go through a sum over all ways of labels, as in the loss of a random field."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(16, 32), nn.Linear(32, 5)
        self.moves = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(torch.tanh(self.enter(x)))
        ways = scores[:, 0]
        for step in range(1, x.shape[1]):
            ways = torch.logsumexp(ways[:, :, None] + self.moves, 1) + scores[:, step]
        return torch.logsumexp(ways, 1) - scores[:, :, 0].sum(1)


def test_what_comes_behind_the_last_weight_is_the_losss_own() -> None:
    assert not serious(judged(lambda: Case(Chained(), torch.randn(8, 12, 16), Tensor.mean))[1])


class Trunks(nn.Module):
    """A policy and its critic, whose trunks may be copies."""

    def __init__(self, *, copied: bool) -> None:
        super().__init__()
        self.policy, self.critic = (
            nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, width))
            for width in (4, 1)
        )
        if copied:
            for place in (0, 2):
                self.policy[place].load_state_dict(self.critic[place].state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(x), self.critic(x)


def of_both(output: tuple[Tensor, Tensor]) -> Tensor:
    return classes(4, 64)(output[0]) + output[1].square().mean()


def test_two_trunks_that_are_copies_are_no_experts() -> None:
    found = judged(lambda: Case(Trunks(copied=True), torch.randn(64, 12), of_both))[1].of("F102")
    assert [(one.place, one.severity) for one in found] == [
        ("policy.0.weight", Severity.WARNING),
        ("policy.2.weight", Severity.WARNING),
    ]
    assert not serious(judged(lambda: Case(Trunks(copied=False), torch.randn(64, 12), of_both))[1])


class Recommender(nn.Module):
    """The rows of two tables side by side, before a few layers."""

    def __init__(self, users: float, items: float, gain: float) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(200, 32), nn.Embedding(300, 32)
        nn.init.normal_(self.user.weight, std=users)
        nn.init.normal_(self.item.weight, std=items)
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        for layer in self.layers[::2]:
            layer.get_parameter("weight").data *= gain

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        result: Tensor = self.layers(torch.cat([self.user(users), self.item(items)], -1))
        return result


@pytest.mark.parametrize(
    ("users", "items", "gain", "found"), [(1e-6, 0.1, 1.0, False), (0.1, 1e-6, 1.0, False), (0.1, 1e-6, 20.0, True)]
)
def test_a_signal_starts_as_large_as_the_larger_table(users: float, items: float, gain: float, found: bool) -> None:
    inputs = (torch.randint(200, (128,)), torch.randint(300, (128,)))
    case = Case(Recommender(users, items, gain), inputs, lambda output: output.square().mean())
    assert bool(judged(lambda: case)[1].of("F302")) is found


def density(bias: float) -> Case:
    """A rate by a softplus at the end, which a large bias keeps at zero."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Softplus())
    nn.init.constant_(model[4].bias, bias)
    return Case(model, torch.randn(128, 16), lambda output: (output - 0.5).square().mean())


@pytest.mark.parametrize(("bias", "found"), [(-6.0, []), (-40.0, [("F303", "5")])])
def test_a_bias_may_leave_nothing_of_a_rate(bias: float, found: list[tuple[str, str]]) -> None:
    assert serious(judged(lambda: density(bias))[1]) == found


class Amplified(nn.Module):
    """What a layer puts out is made larger by the model's own code before it is bounded."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.enter, self.middle, self.out = nn.Linear(20, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.middle(torch.relu(self.enter(x))) * self.factor
        result: Tensor = self.out(hidden + torch.sin(hidden))
        return result


def test_what_the_code_amplifies_is_no_wrong_fan() -> None:
    assert not judged(lambda: Case(Amplified(10.0), torch.randn(64, 20), classes(5, 64)))[1].of("F201")


def frozen(name: str, change: Callable[[Tensor], Any]) -> Case:
    """A frozen body whose values came from elsewhere, before a head that learns."""
    body = nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    with torch.no_grad():
        change(body.get_parameter(name))
    return Case(nn.Sequential(*body.requires_grad_(False), nn.Linear(64, 5)), torch.randn(64, 20), classes(5, 64))


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("3.weight", lambda weight: weight[2].fill_(math.nan), "F104"),
        ("3.weight", lambda weight: weight[2].fill_(1e9), "F105"),
        ("1.weight", lambda weight: nn.init.normal_(weight, std=0.02), "F205"),
        ("3.weight", lambda weight: weight[2].fill_(1e-40), ""),  # what weight decay leaves of units that died
        ("3.weight", lambda weight: weight[2].fill_(9.0), ""),
        ("1.weight", lambda weight: nn.init.normal_(weight, 0.2, 0.05), ""),  # as in the first layers of GPT-2
    ],
)
def test_no_training_leaves_garbage_in_what_is_frozen(name: str, change: Callable[[Tensor], Any], found: str) -> None:
    case, diagnosis = judged(lambda: frozen(name, change))
    assert {code for code in diagnosis.codes if code in ("F104", "F105", "F205")} == ({found} if found else set())
    assert not found or not serious(mended(case, diagnosis))


class Added(nn.Module):
    """A constant that is added to the output, where one is to be left out or moved."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(20, 6)
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.values  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (torch.full((6,), 3e33), True),
        (torch.tensor([1.0, 0.3, 2e20, 0.1, -7e25, 0.0]), True),
        (torch.tensor([0.0, 0.0, -math.inf, 0.0, -1e9, 0.0]), False),
        (torch.tensor([0.0, 0.0, torch.finfo(torch.float32).min, 0.0, -1e30, -1e4]), False),
        (torch.tensor([0.0, 0.0, torch.finfo(torch.float32).max, 0.0, 1e15, 1e9]), False),  # for a minimum
        (torch.tensor(1e30), False),  # a best value so far
    ],
)
def test_what_no_sum_can_hold_is_no_constant(values: Tensor, found: bool) -> None:
    diagnosis = judged(lambda: Case(Added(values), torch.randn(64, 20), lambda output: output.tanh().mean()))[1]
    assert bool(diagnosis.of("F105")) is found


class Patches(nn.Module):
    """Positions that are learned, before a layer that reads twice as many values as the last one made."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(12, 32)
        self.places = nn.Parameter(torch.randn(1, 16, 32) * 0.5)
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x) + self.places
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        result: Tensor = self.head(x.mean(1))
        return result


def patches(name: str, change: Callable[[Tensor], Any]) -> Case:
    model = Patches()
    with torch.no_grad():
        change(model.get_parameter(name))
    return Case(model, torch.randn(16, 16, 12), classes(5, 16))


def sines(weight: Tensor) -> None:
    angles = torch.arange(16.0)[:, None] * torch.exp(-torch.arange(16) * 0.6)
    weight[0] = torch.cat([angles.sin(), angles.cos()], -1)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("places", lambda places: places[:, 9:].zero_(), ("F107", Severity.ERROR)),
        ("places", lambda places: places[0, 3, 5].fill_(200.0), ("F106", Severity.ERROR)),
        ("down.weight", lambda weight: weight[:, 32:].zero_(), ("F107", Severity.WARNING)),
        ("patch.weight", lambda weight: weight[:, 8:].zero_(), ("F107", Severity.NOTE)),  # inputs that come later
    ],
)
def test_a_part_of_positions_or_of_inputs_stands_out(
    name: str, change: Callable[[Tensor], Any], found: tuple[str, Severity]
) -> None:
    case, diagnosis = judged(lambda: patches(name, change))
    parts = [one for one in diagnosis.findings if one.place == name and one.code in ("F101", "F106", "F107")]
    assert [(one.code, one.severity) for one in parts] == [found]
    assert not serious(mended(case, diagnosis))


@pytest.mark.parametrize("change", [sines, Tensor.zero_, lambda places: places[:, 0].zero_()])
def test_positions_may_be_sines_and_zeros(change: Callable[[Tensor], Any]) -> None:
    assert not judged(lambda: patches("places", change))[1].findings


class Annotated(nn.Module):
    """A layer norm as the Annotated Transformer writes it: the scale multiplies before the division."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.beta


def annotated(std: float) -> Case:
    model = nn.Sequential(nn.Linear(20, 64), Annotated(64), nn.ReLU(), nn.Linear(64, 64), Annotated(64), nn.ReLU())
    if std:
        nn.init.normal_(model[1].gamma, std=std)
    return Case(nn.Sequential(*model, nn.Linear(64, 5)), torch.randn(64, 20), classes(5, 64))


def test_a_norm_may_scale_before_it_divides() -> None:
    case, diagnosis = judged(lambda: annotated(0.02))
    roles = {node.name: node.role for node in diagnosis.signals.graph}
    assert (roles["1.gamma"], roles["1.beta"]) == (Role.NORM_SCALE, Role.NORM_SHIFT)
    assert ("F205", "1.gamma") in serious(diagnosis)
    assert not serious(mended(case, diagnosis))
    assert not serious(judged(lambda: annotated(0.0))[1])


class BesideOne(nn.Module):
    """An RMS norm whose scale is what its parameter has over one, as Gemma's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.scale)


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        (0.0, 0.0, []),
        (0.0, 0.3, []),
        (4.0, 1.0, []),
        (-0.7, 0.0, [Severity.WARNING]),
        (-1.0, 0.0, [Severity.ERROR]),
    ],
)
def test_a_scale_beside_one_is_judged_with_it(mean: float, std: float, found: list[Severity]) -> None:
    def build() -> Case:
        norm = BesideOne(64)
        nn.init.normal_(norm.scale, mean, std)
        layers = (nn.Linear(20, 64), norm, nn.ReLU(), nn.Linear(64, 64), BesideOne(64), nn.ReLU(), nn.Linear(64, 5))
        return Case(nn.Sequential(*layers), torch.randn(64, 20), classes(5, 64))

    case, diagnosis = judged(build)
    assert [one.severity for one in diagnosis.of("F205")] == found
    assert not found or not serious(mended(case, diagnosis))


class Packed(nn.Module):
    """Queries, keys and values of one layer, whose bias may drown them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2).mean(1))
        return result


@pytest.mark.parametrize(("std", "found"), [(0.2, False), (20.0, True)])
def test_a_packed_bias_may_drown_queries_keys_and_values(std: float, found: bool) -> None:
    def build() -> Case:
        model = Packed()
        nn.init.normal_(model.qkv.bias, std=std)
        return Case(model, torch.randn(16, 12, 32), classes(5, 16))

    case, diagnosis = judged(build)
    assert (("F208", "qkv.bias") in serious(diagnosis)) is found
    assert not serious(mended(case, diagnosis))


class Neighbours(nn.Module):
    """Attention over the nodes of a graph: scores are sums for pairs of nodes, and the softmax is not over the last."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(16, 32, bias=False), nn.Linear(32, 7)
        self.left, self.right = (nn.Parameter(torch.randn(1, 4, 8) * std) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.enter(x).view(len(x), 4, 8)
        ends = [(heads * side).sum(-1) for side in (self.left, self.right)]
        scores = functional.leaky_relu(ends[0][:, None] + ends[1][None], 0.2)
        mixed = torch.einsum("ijk,jkh->ikh", scores.softmax(1), heads)
        result: Tensor = self.out(functional.elu(mixed.flatten(1)))
        return result


@pytest.mark.parametrize(("std", "found"), [(0.3, False), (20.0, True)])
def test_attention_over_pairs_may_be_one_hot(std: float, found: bool) -> None:
    case, diagnosis = judged(lambda: Case(Neighbours(std), torch.randn(60, 16), classes(7, 60)))
    assert bool(diagnosis.of("F308")) is found
    assert not serious(mended(case, diagnosis))


def test_a_softmax_over_the_classes_of_places_is_no_attention() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Softmax(1), nn.Conv2d(8, 4, 1))
    model[2].weight.data *= 100
    assert not judged(lambda: Case(model, torch.randn(4, 3, 12, 12)))[1].of("F308")


class InUnits(nn.Module):
    """A weight in a unit of its own: the code, or a norm behind it, makes up for its size."""

    def __init__(self, size: float, how: str) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(20, 64), nn.Linear(64, 64, bias=False), nn.Linear(64, 5)
        self.factor = 1 / size if how == "factor" else 1.0
        self.norm = nn.LayerNorm(64, eps=1e-20) if how == "norm" else nn.Identity()
        self.middle.weight.data *= size
        self.branch = how == "branch"

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        inner = self.norm(self.middle(x) * self.factor)
        x = x + inner if self.branch else inner
        result: Tensor = self.out(torch.relu(x))
        return result


@pytest.mark.parametrize(
    ("size", "how", "found"),
    [
        (1e-6, "factor", True),
        (1e-6, "norm", True),
        (0.1, "factor", False),
        (0.1, "norm", False),
        (1e-6, "branch", False),
    ],
)
def test_a_weight_in_a_unit_that_no_step_fits_is_found(size: float, how: str, found: bool) -> None:
    diagnosis = judged(lambda: Case(InUnits(size, how), torch.randn(64, 20), classes(5, 64)))[1]
    assert [one.place for one in diagnosis.of("F404")] == ["middle.weight"] * found


class Stage(nn.Module):
    """Branches that a learned number each multiplies, if it does, behind a layer that may change the width."""

    def __init__(self, enters: int, width: int, blocks: int, factor: float | None) -> None:
        super().__init__()
        self.enter = nn.Linear(enters, width)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.factors = nn.ParameterList(nn.Parameter(torch.tensor(factor or 1.0)) for _ in range(blocks))
        self.tamed = factor is not None
        for layer in (self.enter, *self.first, *self.last):
            nn.init.kaiming_normal_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        for first, last, factor in zip(self.first, self.last, self.factors, strict=True):
            inner = last(torch.relu(first(x)))
            x = torch.relu(x + factor * inner if self.tamed else x + inner)
        return x


def staged(widths: tuple[int, ...], blocks: int, factor: float | None, size: float = 1.0) -> Case:
    model = nn.Sequential(
        *(Stage(enters, width, blocks, factor) for enters, width in zip((20, *widths[:-1]), widths, strict=True)),
        nn.Linear(widths[-1], 5),
    )
    model[-1].weight.data *= 0.01
    for stage in model[:-1]:
        for last in stage.last:
            last.weight.data *= size
    return Case(model, torch.randn(64, 20), classes(5, 64))


@pytest.mark.parametrize(("factor", "found"), [(1.0, True), (0.1, False), (None, True)])
def test_a_factor_of_one_keeps_no_branch_small(factor: float | None, found: bool) -> None:
    case, diagnosis = judged(lambda: staged((64,), 12, factor))
    assert bool(diagnosis.of("F307")) is found
    assert not mended(case, diagnosis).of("F307")


@pytest.mark.parametrize(("size", "found"), [(0.2, False), (1.0, True)])
def test_streams_in_a_row_grow_together(size: float, found: bool) -> None:
    case, diagnosis = judged(lambda: staged((64, 48, 80, 64, 96), 3, None, size))
    assert [one.seen[:20] for one in diagnosis.of("F307")] == ["the streams in a row"] * found
    assert not mended(case, diagnosis).of("F307")


class Biased(nn.Module):
    """Fused attention whose scores get a table of biases for places, as T5's do."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 5)
        self.table = nn.Embedding(23, 4)
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        places = torch.arange(x.shape[1])
        bias = self.table(places[:, None] - places[None] + x.shape[1] - 1).permute(2, 0, 1).unsqueeze(0)
        mixed = functional.scaled_dot_product_attention(*parts, attn_mask=bias.contiguous())
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2).mean(1))
        return result


def test_a_table_of_biases_that_makes_attention_one_hot_is_mended_itself() -> None:
    case, diagnosis = judged(lambda: Case(Biased(30.0), torch.randn(16, 12, 32), classes(5, 16)))
    assert [edit.pattern for one in diagnosis.of("F308") for edit in one.edits] == ["table.weight"]
    assert not serious(mended(case, diagnosis))


def test_positions_are_not_lost_beside_a_bias_that_is_zeroed() -> None:
    def build() -> Case:
        case = patches("patch.bias", lambda bias: nn.init.normal_(bias, std=50.0))
        case.model.get_parameter("places").data *= 0.04
        return case

    case, diagnosis = judged(build)
    assert diagnosis.of("F208")
    assert not diagnosis.of("F207")
    assert not serious(mended(case, diagnosis))


class Small(nn.Module):
    """Branches of gated layers, all drawn with a std of 0.02, without a norm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(40, 64), nn.Linear(64, 40, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(5))
        self.gate, self.up = (nn.ModuleList(nn.Linear(64, 128, bias=False) for _ in range(4)) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(128, 64, bias=False) for _ in range(4))
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for norm, gate, up, down in zip(self.norms, self.gate, self.up, self.down, strict=False):
            inner = norm(x)
            x = x + down(functional.silu(gate(inner)) * up(inner))
        result: Tensor = self.head(self.norms[-1](x))
        return result


def halved(weight: Tensor) -> None:
    weight[64:] = weight[:64]


@pytest.mark.parametrize("change", [Tensor.zero_, halved, lambda weight: weight[64:].zero_()])
def test_a_branch_is_mended_by_the_scale_of_the_others(change: Callable[[Tensor], Any]) -> None:
    def build() -> Case:
        model = Small()
        with torch.no_grad():
            change(model.gate[2].weight)
            change(model.up[2].weight)
        return Case(model, torch.randint(40, (8, 16)))

    case, diagnosis = judged(build)
    assert {"gate.2.weight", "up.2.weight"} <= {place for _, place in serious(diagnosis)}
    assert not serious(mended(case, diagnosis))


class Tied(nn.Module):
    """Tokens of a table that gives the logits too, with sines added to them."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 48)
        nn.init.normal_(self.table.weight, std=std)
        angles = torch.arange(16.0)[:, None] * torch.exp(-torch.arange(24) * 0.4)
        self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], -1))
        self.up, self.down, self.norm = nn.Linear(48, 96), nn.Linear(96, 48), nn.LayerNorm(48)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.places
        x = self.norm(x + self.down(functional.gelu(self.up(x))))
        return functional.linear(x, self.table.weight)


def test_a_tied_table_is_not_lost_beside_sines() -> None:
    tokens, targets = torch.randint(60, (2, 8, 16), generator=torch.Generator().manual_seed(1))
    case, diagnosis = judged(
        lambda: Case(Tied(1.0), tokens, lambda out: functional.cross_entropy(out.flatten(0, 1), targets.flatten()))
    )
    assert {"F204", "F309"} <= set(diagnosis.codes)
    assert not serious(mended(case, diagnosis))
