"""Units that start equal: those that stay so, and those that something tells apart."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.comparison.workers import one_thread
from fanin.diagnoses import Severity
from fanin.fans import Axes
from fanin.measuring.parameters import equal_groups, shared_gradient
from judging import Build, Case, classes, judged, mended, serious


class Bayesian(nn.Module):
    """Mean and spread of each weight are learned, and every run draws the weights anew."""

    def __init__(self, inputs: int, outputs: int, *, drawn: bool = True, noise: bool = True) -> None:
        super().__init__()
        mean = torch.randn(outputs, inputs) / inputs**0.5
        self.mean = nn.Parameter(mean if drawn else torch.full_like(mean, 0.1))
        self.spread = nn.Parameter(torch.full_like(mean, -4.0))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(self.mean) if self.noise else 1.0
        return functional.linear(x, self.mean + functional.softplus(self.spread) * noise)


class Masked(nn.Linear):
    """A weight with a learned mask, which starts open."""

    def __init__(self, inputs: int, outputs: int, *, drawn: bool = True) -> None:
        super().__init__(inputs, outputs)
        self.mask = nn.Parameter(torch.ones(outputs, inputs))
        if not drawn:
            nn.init.constant_(self.weight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask.sigmoid(), self.bias)


def stacked(layer: Callable[[int, int], nn.Module]) -> Case:
    model = nn.Sequential(layer(20, 64), nn.ReLU(), layer(64, 5))
    return Case(model, torch.randn(64, 20), classes(5, 64))


def normalized(*, drawn: bool) -> Case:
    def layer(inputs: int, outputs: int) -> nn.Module:
        plain = nn.Linear(inputs, outputs)
        if not drawn:
            nn.init.constant_(plain.weight, 0.1)
        return nn.utils.parametrizations.weight_norm(plain)

    return stacked(layer)


def coloured(*, gray: bool, shut: bool = False) -> Case:
    """A convolution that is repeated over the colours, whose images are gray or are not."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:, :1].expand(-1, 3, -1, -1).clone() / 3)
    if shut:
        nn.init.zeros_(model[5].weight)
    images = torch.randn(16, 1 if gray else 3, 16, 16).expand(-1, 3, -1, -1)
    return Case(model, images, classes(10, 16))


def flat() -> Case:
    """A convolution each of whose kernels is one number, over places and colours."""
    case = coloured(gray=False)
    with torch.no_grad():
        case.model[0].weight.copy_(torch.randn(32, 1, 1, 1).expand(32, 3, 3, 3) / 27**0.5)
    return case


class Placed(nn.Module):
    """Attention over places that are learned, averaged at the end."""

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.first, self.places = nn.Linear(12, 32), nn.Parameter(places)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, norm_first=True, batch_first=True)
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.block(self.first(x) + self.places).flatten(1)[:, :32])
        return result


def placed(places: Callable[[], Tensor]) -> Case:
    return Case(Placed(places()), torch.randn(16, 10, 12), classes(4, 16))


class Mixture(nn.Module):
    """A mixture of normal laws whose head, or heads, start at zero."""

    def __init__(self, components: int, *, together: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 64), nn.Tanh())
        sizes = [3 * components] if together else [components] * 3
        self.heads = nn.ModuleList(nn.Linear(64, size) for size in sizes)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.trunk(x)
        return torch.cat([head(x) for head in self.heads], -1).chunk(3, -1)


def mixed(components: int, *, together: bool = True) -> Case:
    target = torch.randn(64, 1)

    def loss(output: tuple[Tensor, ...]) -> Tensor:
        logits, mean, scale = output
        density = -0.5 * ((target - mean) / scale.exp()).square() - scale
        return -torch.logsumexp(logits.log_softmax(-1) + density, -1).mean()

    return Case(Mixture(components, together=together), torch.randn(64, 4), loss)


def shut_head(outputs: int, loss: Callable[[Tensor], Tensor]) -> Case:
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, outputs))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return Case(model, torch.randn(16, 8), loss)


def absent(output: Tensor) -> Tensor:
    """Of twenty labels, the batch holds three."""
    return functional.binary_cross_entropy_with_logits(output, functional.one_hot(torch.arange(16) % 3, 20).float())


def none(output: Tensor) -> Tensor:
    """Of twenty labels, the batch holds none."""
    return functional.binary_cross_entropy_with_logits(output, torch.zeros(16, 20))


EQUAL: list[tuple[str, str, Severity, Build]] = [
    ("constant means without noise", "0.mean", Severity.ERROR, lambda: stacked(constant_mean)),
    ("a constant weight under a mask", "0.weight", Severity.ERROR, lambda: stacked(constant_under_mask)),
    ("a constant direction", "0.parametrizations.weight.original1", Severity.ERROR, lambda: normalized(drawn=False)),
    ("colours that are one", "0.weight", Severity.ERROR, lambda: coloured(gray=True)),
    ("kernels of one number", "0.weight", Severity.ERROR, flat),
    ("positions", "places", Severity.WARNING, lambda: placed(lambda: torch.randn(32).expand(10, 32) * 0.5)),
    ("components of a mixture", "heads.0.weight", Severity.ERROR, lambda: mixed(5)),
    ("components of a mixture of three heads", "heads.1.weight", Severity.ERROR, lambda: mixed(5, together=False)),
]
"""What it is, where, how bad, and the model."""

TOLD_APART: list[tuple[str, Build]] = [
    ("spreads of one number", lambda: stacked(Bayesian)),
    ("masks of ones", lambda: stacked(Masked)),
    ("a drawn direction", lambda: normalized(drawn=True)),
    ("a kernel repeated over colours", lambda: coloured(gray=False)),
    ("a repeated kernel behind a head of zeros", lambda: coloured(gray=False, shut=True)),
    ("a single component", lambda: mixed(1)),
    ("positions of zeros", lambda: placed(lambda: torch.zeros(10, 32))),
    ("drawn positions", lambda: placed(lambda: torch.randn(10, 32) * 0.5)),
    ("a head of zeros", lambda: shut_head(6, lambda output: (output - torch.arange(6.0)).square().mean())),
    ("classes that the batch does not hold", lambda: shut_head(20, classes(4, 16))),
    ("labels that the batch does not hold", lambda: shut_head(20, absent)),
    ("a batch without a label", lambda: shut_head(20, none)),
]
"""What it is, and the model."""


def constant_mean(inputs: int, outputs: int) -> nn.Module:
    return Bayesian(inputs, outputs, drawn=False, noise=False)


def constant_under_mask(inputs: int, outputs: int) -> nn.Module:
    return Masked(inputs, outputs, drawn=False)


@pytest.mark.parametrize(("place", "severity", "build"), [row[1:] for row in EQUAL], ids=[row[0] for row in EQUAL])
def test_units_that_stay_equal_are_found(place: str, severity: Severity, build: Build) -> None:
    _, diagnosis = judged(build)
    assert severity in [finding.severity for finding in diagnosis.of("F101") if finding.place == place], diagnosis


@pytest.mark.parametrize("build", [row[1] for row in TOLD_APART], ids=[row[0] for row in TOLD_APART])
def test_units_that_something_tells_apart_are_healthy(build: Build) -> None:
    _, diagnosis = judged(build)
    assert diagnosis.ok, diagnosis


def test_columns_that_part_are_told_and_nothing_is_mended() -> None:
    case, diagnosis = judged(lambda: coloured(gray=False))
    (found,) = diagnosis.of("F101")
    assert found.severity is Severity.NOTE
    assert not found.edits
    assert fanin.measure(case.model, case.inputs, case.loss).parameter("0.weight").grad_duplicate_columns == 0


def test_values_alone_are_judged_by_their_columns() -> None:
    case, _ = judged(lambda: coloured(gray=False))
    (found,) = fanin.diagnose(case.model).of("F101")
    assert found.severity is Severity.ERROR


def test_gradients_that_differ_by_rounding_are_shared() -> None:
    weight = torch.ones(4, 3)
    gradient = torch.tensor([1.0, 1.0 + 2**-20, 1.01]).expand(4, 3)
    assert shared_gradient(weight, gradient, Axes()) == pytest.approx(1 / 3)


def test_drawing_the_head_tells_the_components_apart() -> None:
    case, diagnosis = judged(lambda: mixed(5))
    with one_thread():
        fanin.apply(diagnosis.fix(), case.model, seed=0)
        assert fanin.diagnose(case.model, case.inputs, loss=case.loss).ok


def test_rows_of_groups_that_differ_in_size_say_nothing() -> None:
    rows = torch.tensor([[1.0], [1.0], [2.0], [2.0], [2.0]]).expand(5, 3)
    assert equal_groups(rows, Axes()) == {}
    assert equal_groups(rows[:4], Axes()) == {"grad_groups": 2, "grad_group_size": 2}


@pytest.mark.parametrize(
    ("place", "axis", "code", "severity"),
    [
        ("3.weight", 1, "F103", Severity.WARNING),  # what comes in differs
        ("3.weight", 0, "F103", Severity.ERROR),
        ("0.weight", 1, "F103", Severity.ERROR),  # of a table all tokens stay alike
    ],
)
def test_shards_that_are_equal_are_found_along_any_axis(place: str, axis: int, code: str, severity: Severity) -> None:
    def build() -> Case:
        model = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 40))
        weight = model.get_parameter(place).detach()
        half = weight.chunk(2, axis)[0]
        weight.copy_(torch.cat([half, half], axis))
        return Case(model, torch.arange(40).view(4, 10))

    case, diagnosis = judged(build)
    found = {(item.code, item.place, item.severity) for item in diagnosis.findings if item.code[:2] == "F1"}
    assert found == {(code, place, severity)}
    assert code not in mended(case, diagnosis).codes


def test_kernels_repeated_over_frames_are_no_shards() -> None:
    def build() -> Case:
        model = nn.Sequential(nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
        weight = model[0].weight.detach()
        weight.copy_(weight[:, :3].repeat(1, 2, 1, 1))
        return Case(model, torch.randn(8, 6, 8, 8))

    assert not serious(judged(build)[1])


def test_identities_written_again_and_again_are_no_shards() -> None:
    """A sub-pixel convolution that starts by repeating what it takes in."""

    def build() -> Case:
        model = nn.Sequential(nn.Conv1d(4, 16, 3), nn.ReLU(), nn.Conv1d(16, 64, 3, padding=1), nn.ReLU())
        weight = model[2].weight.detach()
        weight.zero_()[:, :, 1] = torch.eye(16).repeat(4, 1)
        return Case(
            nn.Sequential(*model, nn.Unflatten(1, (4, 16)), nn.Flatten(), nn.Linear(896, 4)), torch.randn(8, 4, 16)
        )

    assert "F103" not in judged(build)[1].codes


@pytest.mark.parametrize(("noise", "equal"), [(0.0, True), (1e-8, True), (1e-3, False)])
def test_noise_that_tells_no_units_apart_is_none(noise: float, equal: bool) -> None:
    def build() -> Case:
        model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
        nn.init.normal_(model[2].weight, 0.05, noise)
        return Case(model, torch.randn(32, 16), classes(4, 32))

    assert (("F101", "2.weight") in serious(judged(build)[1])) is equal


class Upcycled(nn.Module):
    """Experts that are copies of one layer; a router chooses two for each sample, or weighs all of them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.enter, self.router, self.head = how, nn.Linear(8, 24), nn.Linear(24, 4), nn.Linear(24, 3)
        one = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))
        self.experts = nn.ModuleList(copy.deepcopy(one) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights = self.router(x).softmax(-1)
        if self.how != "all":
            least = weights.topk(2, -1).values[:, 1:]
            weights = weights * (weights >= least)
        made = torch.zeros_like(x)
        for weight, expert in zip(weights.unbind(1), self.experts, strict=True):
            if self.how == "by inputs":
                chosen = weight.nonzero()[:, 0]
                made = made.index_add(0, chosen, weight[chosen, None] * expert(x[chosen]))
            else:
                made = made + weight[:, None] * expert(x)
        result: Tensor = self.head(x + made)
        return result


@pytest.mark.parametrize(("how", "severity"), [("by inputs", "note"), ("by outputs", "note"), ("all", "warning")])
def test_experts_that_a_router_chooses_among_may_be_copies(how: str, severity: str) -> None:
    found = judged(lambda: Case(Upcycled(how), torch.randn(64, 8)))[1].of("F102")
    assert {one.severity.value for one in found} == {severity}
    assert all(bool(one.edits) == (severity == "warning") for one in found)


def test_units_that_are_all_equal_are_units_and_no_shards() -> None:
    def build(units: int) -> Case:
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten())
        weight = model[2].weight.detach()
        weight.copy_(weight[:units].repeat(32 // units, 1, 1, 1))
        return Case(nn.Sequential(*model, nn.Linear(32 * 64, 4)), torch.randn(8, 3, 12, 12))

    assert serious(judged(lambda: build(1))[1]) == [("F101", "2.weight")]
    assert serious(judged(lambda: build(8))[1]) == [("F103", "2.weight")]


class Relations(nn.Module):
    """A matrix for each of three kinds of neighbours, whose messages are summed."""

    def __init__(self, *, same: bool) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(3, 16, 24) / 7), nn.Linear(24, 4)
        if same:
            self.weight.detach().copy_(self.weight.detach()[:1].expand(3, 16, 24).clone())

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        result: Tensor = self.head(functional.relu(torch.einsum("rnm,md,rdh->nh", kinds, x, self.weight)))
        return result


@pytest.mark.parametrize("same", [True, False])
def test_relations_of_one_matrix_are_shards_that_their_inputs_tell_apart(same: bool) -> None:
    inputs = (torch.randn(40, 16), torch.rand(3, 40, 40) / 40)
    diagnosis = judged(lambda: Case(Relations(same=same), inputs, classes(4, 40)))[1]
    assert [(found.code, found.severity) for found in diagnosis.of("F1")] == [("F103", Severity.WARNING)] * same
