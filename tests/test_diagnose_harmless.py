"""What is unusual and does no harm where it is, next to where it does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fanin.diagnoses import Severity
from judging import Case, classes, judged, serious


def classifier(std: float, classes_: int = 10) -> Case:
    """A net with norms whose output layer has the std of its outputs' number."""
    layers = (nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 512, 3, 2, bias=False))
    model = nn.Sequential(*layers, nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(512, classes_)
    nn.init.normal_(head.weight, std=std)
    nn.init.zeros_(head.bias)
    return Case(nn.Sequential(*model, head), torch.randn(16, 3, 24, 24), classes(classes_, 16))


def test_a_head_by_its_outputs_is_a_note_where_the_first_loss_bears_it() -> None:
    diagnosis = judged(lambda: classifier(0.25))[1]
    assert not diagnosis.of("F309")
    assert [found.severity for found in diagnosis.of("F201")] == [Severity.NOTE]


def test_without_a_loss_nobody_knows_what_it_costs() -> None:
    diagnosis = judged(lambda: classifier(0.25)._replace(loss=None))[1]
    assert [found.severity for found in diagnosis.of("F201")] == [Severity.WARNING]


def test_a_head_whose_loss_tells_of_it_is_more() -> None:
    diagnosis = judged(lambda: classifier(1.0))[1]
    assert diagnosis.of("F309")
    assert [found.severity for found in diagnosis.of("F201")] == [Severity.WARNING]


def separable(*, norms: bool) -> Case:
    """Depthwise convolutions drawn by the outputs that torch reads from their shape, each before a pointwise one."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(3):
        depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
        nn.init.kaiming_normal_(depthwise.weight, mode="fan_out")
        layers += [depthwise, nn.Conv2d(64, 64, 1, bias=False)]
        layers += [nn.BatchNorm2d(64), nn.ReLU()] if norms else [nn.ReLU()]
    return Case(nn.Sequential(*layers), torch.randn(8, 3, 20, 20))


def test_a_scale_that_a_norm_takes_away_is_a_note() -> None:
    assert {found.severity for found in judged(lambda: separable(norms=True))[1].of("F201")} == {Severity.NOTE}
    assert Severity.WARNING in {found.severity for found in judged(lambda: separable(norms=False))[1].of("F201")}


def biased(norm: nn.Module, std: float) -> Case:
    model = nn.Sequential(nn.Linear(12, 32), norm, nn.ReLU(), nn.Linear(32, 4))
    nn.init.normal_(model[0].bias, std=std)
    return Case(model, torch.randn(64, 12), classes(4, 64))


def test_a_bias_that_a_batch_norm_takes_away_is_a_note() -> None:
    assert not serious(judged(lambda: biased(nn.BatchNorm1d(32), 20.0))[1])
    assert serious(judged(lambda: biased(nn.LayerNorm(32), 20.0))[1]) == [("F208", "0.bias")]
    assert serious(judged(lambda: biased(nn.BatchNorm1d(32), 1e5))[1]) == [("F208", "0.bias")]


@pytest.mark.parametrize(
    ("depth", "severity"), [(4, Severity.NOTE), (7, Severity.WARNING), (8, Severity.WARNING), (30, Severity.ERROR)]
)
def test_torchs_default_is_an_error_only_where_it_does_not_train(depth: int, severity: Severity) -> None:
    def build() -> Case:
        layers = [layer for _ in range(depth) for layer in (nn.Linear(256, 256), nn.ReLU())]
        return Case(nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(32, 256), classes(10, 32))

    assert [found.severity for found in judged(build)[1].of("F301")] == [severity]


def test_weights_under_torchs_default_are_an_error_in_few_layers() -> None:
    def build() -> Case:
        layers = [layer for _ in range(7) for layer in (nn.Linear(256, 256), nn.ReLU())]
        for layer in layers[::2]:
            nn.init.normal_(layer.get_parameter("weight"), std=0.01)
        return Case(nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(32, 256), classes(10, 32))

    assert [found.severity for found in judged(build)[1].of("F301")] == [Severity.ERROR]


class Branches(nn.Module):
    """Normalized branches that are added to each other, as in RepVGG."""

    def __init__(self, mean: float, std: float, *, added: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.Conv2d(32, 32, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(2))
        self.head = nn.Linear(32, 4)
        self.added = added
        for norm in self.norms:
            nn.init.normal_(norm.get_parameter("weight"), mean, std)

    def forward(self, x: Tensor) -> Tensor:
        if self.added:
            x = functional.relu(self.norms[0](self.first(x)) + self.norms[1](self.second(x)))
        else:
            x = functional.relu(self.norms[1](self.second(functional.relu(self.norms[0](self.first(x))))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.mark.parametrize(
    ("mean", "std", "added", "severity"),
    [
        (0.1, 0.1, True, Severity.NOTE),
        (0.1, 0.1, False, Severity.WARNING),
        (0.1, 0.0, True, Severity.WARNING),
        (0.0, 0.1, True, Severity.ERROR),
    ],
)
def test_scales_drawn_for_a_sum_are_a_note(mean: float, std: float, added: bool, severity: Severity) -> None:
    diagnosis = judged(lambda: Case(Branches(mean, std, added=added), torch.randn(8, 32, 10, 10)))[1]
    assert {found.severity for found in diagnosis.of("F205")} == {severity}


class Highway(nn.Module):
    """Layers that write a share of what they make over what they take in."""

    def __init__(self, depth: int, bias: float, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.activation = activation
        self.made = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.share = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        for layer in (*self.made, *self.share):
            nn.init.xavier_normal_(layer.get_parameter("weight"))
        for layer in self.share:
            nn.init.constant_(layer.get_parameter("bias"), bias)

    def forward(self, x: Tensor) -> Tensor:
        for made, share in zip(self.made, self.share, strict=True):
            gate = torch.sigmoid(share(x))
            x = gate * self.activation(made(x)) + (1 - gate) * x
        return x


@pytest.mark.parametrize(("depth", "severity"), [(6, Severity.NOTE), (20, Severity.WARNING)])
def test_a_short_highway_may_start_as_a_plain_net(depth: int, severity: Severity) -> None:
    diagnosis = judged(lambda: Case(Highway(depth, 4.0), torch.randn(64, 32)))[1]
    assert {found.severity for found in diagnosis.of("F206")} == {severity}
    assert not judged(lambda: Case(Highway(depth, -2.0), torch.randn(64, 32)))[1].of("F206")


class Twice(nn.Module):
    """A small table, a norm whose ε outweighs it, and a second norm or none behind."""

    def __init__(self, std: float, *, again: bool) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.second = nn.LayerNorm(32) if again else nn.Identity()
        self.up, self.head = nn.Linear(32, 32), nn.Linear(32, 5)
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(self.table(tokens))
        x = x + self.up(self.second(x))
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize(
    ("std", "again", "expected"),
    [
        (1e-4, True, Severity.NOTE),
        (1e-4, False, Severity.WARNING),
        (1e-7, True, Severity.WARNING),
    ],
)
def test_a_norm_that_another_makes_up_for_is_a_note(std: float, again: bool, expected: Severity) -> None:
    diagnosis = judged(lambda: Case(Twice(std, again=again), torch.randint(50, (8, 12))))[1]
    assert next(found for found in diagnosis.of("F301") if found.place == "first").severity is expected


class Sampled(nn.Module):
    """Places to look at, around a grid that the bias of the offsets holds, as in deformable attention."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.enter, self.offsets, self.head = nn.Linear(16, 32), nn.Linear(32, 8), nn.Linear(36, 4)
        nn.init.normal_(self.offsets.weight, std=std)
        with torch.no_grad():
            self.offsets.bias.copy_(torch.linspace(-4, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        offsets = self.offsets(x).unflatten(-1, (4, 2))
        return self.head(torch.cat([x, functional.normalize(offsets, dim=-1).sum(-1)], -1))


@pytest.mark.parametrize(("std", "found"), [(0.0, False), (1e-4, True)])
def test_a_bias_beside_a_zero_weight_is_a_start_of_its_own(std: float, found: bool) -> None:
    diagnosis = judged(lambda: Case(Sampled(std), torch.randn(32, 16), classes(4, 32)))[1]
    assert ("F208", "offsets.bias") in serious(diagnosis) if found else not diagnosis.of("F208")


def test_gates_that_let_little_through_make_no_gradient_explode() -> None:
    """Before them lies all of the signal, in them a hundredth, and the loss is as sensitive to each."""

    def build() -> Case:
        model = nn.Sequential(nn.Linear(16, 32), Highway(5, -5.0), nn.Linear(32, 5))
        return Case(model, torch.randn(64, 16), classes(5, 64))

    assert not judged(build)[1].of("F403")


@pytest.mark.parametrize(("gain", "found"), [(math.sqrt(1 / 3), False), (math.sqrt(2), False), (6.0, True)])
def test_what_a_gate_lets_pass_is_not_judged_by_how_many_there_are(gain: float, found: bool) -> None:
    def build() -> Case:
        highway = Highway(15, -2.0, torch.relu)
        for layer in highway.made:
            nn.init.normal_(layer.get_parameter("weight"), std=gain / math.sqrt(32))
        return Case(nn.Sequential(nn.Linear(16, 32), highway, nn.Linear(32, 5)), torch.randn(64, 16), classes(5, 64))

    assert bool(judged(build)[1].of("F201")) == found


class OnSphere(nn.Module):
    """A branch that reads vectors of unit length, and makes up for it by √width before its activation."""

    def __init__(self, std: float, *, sphere: bool = True) -> None:
        super().__init__()
        self.sphere, self.enter, self.up, self.down = sphere, *map(nn.Linear, (8, 64, 256), (64, 256, 64))
        self.head = nn.Linear(64, 5)
        nn.init.normal_(self.up.weight, std=std)

    def unit(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1) if self.sphere else functional.layer_norm(x, (64,))

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit(self.enter(x))
        for _ in range(2):
            x = self.unit(x + 0.1 * self.unit(self.down(functional.silu(8 * self.up(x)))))
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize(("std", "sphere", "found"), [(0.125, True, False), (1.0, True, True), (0.125, False, True)])
def test_a_weight_makes_up_for_inputs_of_unit_length(std: float, sphere: bool, found: bool) -> None:
    diagnosis = judged(lambda: Case(OnSphere(std, sphere=sphere), torch.randn(32, 8)))[1]
    assert bool(diagnosis.of("F201")) == found, diagnosis


@pytest.mark.parametrize(("std", "found"), [(0.01, False), (0.001, False), (1e-4, True)])
def test_what_feeds_a_state_may_be_small(std: float, found: bool) -> None:
    """An identity that remembers (Le et al. 2015)."""

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(8, 64, nonlinearity="relu", batch_first=True)
            self.head = nn.Linear(64, 5)
            nn.init.normal_(self.rnn.weight_ih_l0, std=std)
            nn.init.eye_(self.rnn.weight_hh_l0)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.rnn(x)[0][:, -1])
            return result

    found_there = [one.place for one in judged(lambda: Case(Remembering(), torch.randn(8, 40, 8)))[1].of("F201")]
    assert found_there == (["rnn.weight_ih_l0"] if found else [])


class Critic(nn.Module):
    """A policy with a last layer of next to nothing beside a critic, which share the input alone."""

    def __init__(self, *, uneven: float = 1.0) -> None:
        super().__init__()
        self.policy, self.critic = (
            nn.Sequential(nn.Linear(11, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, last))
            for last in (3, 1)
        )
        nn.init.orthogonal_(self.policy[4].weight, 1e-3)
        nn.init.zeros_(self.policy[4].bias)
        with torch.no_grad():
            self.critic[0].weight *= uneven

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(x), self.critic(x)


def test_a_loss_near_its_least_on_one_way_is_no_weights_fault() -> None:
    def loss(out: tuple[Tensor, Tensor]) -> Tensor:
        return out[0].square().mean() + (out[1] - 1).square().mean()

    assert not judged(lambda: Case(Critic(), torch.randn(64, 11), loss))[1].of("F404")
    uneven = judged(lambda: Case(Critic(uneven=1e-6), torch.randn(64, 11), loss))[1]
    assert "critic.0.weight" in {found.place for found in uneven.of("F404")}
