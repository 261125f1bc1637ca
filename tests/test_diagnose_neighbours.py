"""Faults, and the healthy models that stand beside them, in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import fanin
from fanin.comparison.workers import one_thread
from fanin.diagnoses import Diagnosis, Severity
from fanin.fans import Fans
from fanin.findings import Evidence
from fanin.measuring.attention import entropy_of_scores
from fanin.measuring.counted import counted_by
from fanin.schemes import Constant, Packed, Zeros
from judging import Build, Case, judged, mended


class Physics(nn.Module):
    """A network that is to solve ``u' = -u`` with ``u(0) = 1``: it differentiates itself on its way."""

    def __init__(self, depth: int, gain: float) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in pairwise([1, *[32] * depth])]
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(32, 1)
        for layer in layers:
            nn.init.xavier_normal_(layer.weight, gain)

    def solution(self, t: Tensor) -> Tensor:
        for layer in self.layers:
            t = layer(t).tanh()
        result: Tensor = self.head(t)
        return result

    def forward(self, t: Tensor) -> Tensor:
        t.requires_grad_()
        u = self.solution(t)
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return (slope + u).square().mean() + (self.solution(torch.zeros(1, 1)) - 1).square().mean()


class Latents(nn.Module):
    """A Perceiver: learned latents look at a set, and are averaged."""

    def __init__(self, std: float, *, positions: bool = False, alike: bool = True) -> None:
        super().__init__()
        one = torch.randn(32).expand(6, 32) if alike else torch.randn(6, 32)
        self.latents = nn.Parameter(one * std)
        self.positions = nn.Parameter(torch.randn(6, 32) * 0.02) if positions else None
        self.embed, self.look = nn.Linear(8, 32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.inner, self.outer, self.head = nn.LayerNorm(32), *map(nn.Linear, (32, 64, 32), (64, 32, 4))

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents if self.positions is None else self.latents + self.positions
        latents, x = latents.expand(len(x), -1, -1), self.embed(x)
        latents = latents + self.look(latents, x, x)[0]
        latents = latents + self.outer(self.inner(self.norm(latents)).relu())
        result: Tensor = self.head(latents.mean(1))
        return result


class Written(nn.Module):
    """Attention written by hand, of one head, for sequences with or without a batch."""

    def __init__(self, factor: float, *, packed: bool = False) -> None:
        super().__init__()
        self.factor, self.packed = factor, packed
        self.embed, self.norm, self.head = nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 4)
        self.qkv = nn.Linear(64, 192) if packed else nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        for part in (self.qkv,) if packed else self.qkv:
            nn.init.normal_(part.weight, std=1 / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        q, k, v = self.qkv(x).chunk(3, -1) if self.packed else (part(x) for part in self.qkv)
        result: Tensor = self.head(x + (q @ k.transpose(-1, -2) * self.factor).softmax(-1) @ v)
        return result


class Cosines(nn.Module):
    """Attention by cosines times a learned scale, or its exponential."""

    def __init__(self, scale: float, *, logarithm: bool) -> None:
        super().__init__()
        self.embed, self.query, self.key = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.scale = nn.Parameter(torch.full((1,), math.log(scale) if logarithm else scale))
        self.logarithm = logarithm
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k = (functional.normalize(part(x), dim=-1) for part in (self.query, self.key))
        scale = self.scale.exp() if self.logarithm else self.scale
        result: Tensor = self.head(x + (q @ k.transpose(-1, -2) * scale).softmax(-1) @ x)
        return result


class Tempered(Written):
    """The same with a learned temperature, or its logarithm."""

    def __init__(self, temperature: float, *, logarithm: bool = False) -> None:
        super().__init__(1 / 8)
        self.logarithm = logarithm
        self.temperature = nn.Parameter(torch.tensor(math.log(temperature) if logarithm else temperature))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        q, k, v = (part(x) for part in self.qkv)
        scores = (
            q @ k.transpose(-1, -2) * self.factor / (self.temperature.exp() if self.logarithm else self.temperature)
        )
        result: Tensor = self.head(x + scores.softmax(-1) @ v)
        return result


class Pooled(nn.Module):
    """Places weighed by a softmax over one number each."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.embed, self.score, self.head = nn.Linear(8, 64), nn.Linear(64, 1), nn.Linear(64, 4)
        nn.init.normal_(self.score.weight, std=gain / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        result: Tensor = self.head((self.score(x).softmax(1) * x).sum(1))
        return result


def counting(std: float = 1.0, mean: float = 0.0, *, batches: int = 0) -> Case:
    """A batch norm with running statistics as given, and of so many batches of large inputs."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    norm = model[1]
    norm.running_var.fill_(std**2)
    norm.running_mean.fill_(mean)
    for _ in range(batches):
        model(torch.randn(8, 3, 8, 8) * 1e4 + 5e4)
    return Case(model, torch.randn(8, 3, 8, 8) * (1e4 if batches else 1.0) + (5e4 if batches else 0.0))


def holding(*values: float) -> Case:
    """A layer with a buffer of some of these values."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model.register_buffer("table", torch.tensor(values).repeat(64))
    return Case(model, torch.randn(32, 8))


class Squeezed(nn.Module):
    """A residual block with squeeze and excitation; the squeeze is large by the rule for its 2 outputs, or by none."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.squeeze, self.excite = nn.Conv2d(64, 2, 1), nn.Conv2d(2, 64, 1)
        nn.init.normal_(self.squeeze.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.conv(x)).relu()
        gate = self.excite(self.squeeze(inner.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + inner * gate


def squeezed(std: float) -> Case:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), Squeezed(std), nn.Flatten(), nn.Linear(64 * 36, 4))
    return Case(model, torch.randn(8, 3, 8, 8))


class Stacked(nn.Module):
    """A residual mixture of experts that are kept in stacks, drawn by a function of torch's or by their fans."""

    def __init__(self, fill: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.embed, self.norm, self.router = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 6)
        self.inner, self.outer = nn.Parameter(torch.empty(6, 32, 64)), nn.Parameter(torch.empty(6, 64, 32))
        self.head = nn.Linear(32, 4)
        fill(self.inner)
        fill(self.outer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        normed = self.norm(x)
        each = torch.einsum("ebh,ehd->ebd", torch.einsum("bd,edh->ebh", normed, self.inner).relu(), self.outer)
        result: Tensor = self.head(x + torch.einsum("ebd,be->bd", each, self.router(normed).softmax(-1)))
        return result


def by_inputs(stack: Tensor) -> None:
    nn.init.normal_(stack, std=math.sqrt(1 / stack.shape[1]))


class Set(nn.Module):
    """A deep set: the mean of a function of each member, and a function of that."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.whole = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        for layer in (self.each[0], self.each[2], self.whole[0]):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data *= gain

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.whole(self.each(x).mean(1))
        return result


class Chain(nn.Module):
    """Batch norms one behind the other, and a way beside them that may be joined at the end."""

    def __init__(self, depth: int, *, joined: bool = False) -> None:
        super().__init__()
        parts = [part for _ in range(depth) for part in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())]
        self.chain, self.joined, self.head = nn.Sequential(*parts), joined, nn.Linear(64 if joined else 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        end = self.chain(x)
        result: Tensor = self.head(torch.cat([end, x], -1) if self.joined else end)
        return result


class Offsets(nn.Module):
    """Two layers that add to what they read scores of places, by weights that are written or drawn once for both."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.places = nn.ModuleList(nn.Linear(3, 16) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)
        for place in self.places:
            place.weight.data.copy_(weight)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        for layer, place in zip(self.layers, self.places, strict=True):
            x = x + self.norm(layer(x) + place(offsets)).relu()
        result: Tensor = self.head(x)
        return result


class Scaled(nn.Module):
    """A small stream, whose branches begin with a norm and end with a layer scale, or without."""

    def __init__(self, size: float, scale: float) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, 4)
        self.scales = nn.ParameterList(nn.Parameter(torch.full((32,), scale)) for _ in range(3 * (scale < 1)))
        nn.init.normal_(self.first.weight, std=size / 4)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for place, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            inner = layer(norm(x)).relu()
            x = x + (self.scales[place] * inner if len(self.scales) else inner)
        result: Tensor = self.head(x)
        return result


def averaged(size: float) -> Case:
    """A norm of the mean over so many places that a thirtieth is left of what differs."""
    end = nn.Sequential(Mean(), nn.LayerNorm(32, eps=1e-3))
    model = nn.Sequential(nn.Conv1d(8, 32, 1, bias=False), end, nn.Linear(32, 4))
    nn.init.normal_(model[0].weight, std=size * 0.7 / math.sqrt(8))
    return Case(model, torch.randn(64, 8, 1024))


class Mean(nn.Module):
    """The mean over places."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


def single(bias: float) -> Case:
    """A density: a rectified number, whose weights happen to be all negative, behind what is all positive."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1), nn.ReLU())
    model[2].weight.data.abs_().neg_()
    nn.init.constant_(model[2].bias, bias)
    return Case(model, torch.randn(64, 16))


class Compared(nn.Module):
    """The cosines of two towers' outputs, times the exponential of a learned number, as in CLIP."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Linear(width, 24) for width in (12, 8))
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        parts = zip(self.towers, (first, second), strict=True)
        a, b = (functional.normalize(tower(part), dim=-1) for tower, part in parts)
        return self.scale.exp() * a @ b.T


def compared(scale: float) -> Case:
    inputs = (torch.randn(32, 12), torch.randn(32, 8))
    return Case(Compared(scale), inputs, lambda logits: functional.cross_entropy(logits, torch.arange(32)))


class Summed(nn.Module):
    """A graph network whose nodes add up what they and five neighbours say, or take their mean."""

    def __init__(self, *, mean: bool) -> None:
        super().__init__()
        self.mean, self.layers = mean, nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, 4)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            around = torch.stack([x.roll(step, 0) for step in range(6)])
            x = layer(around.mean(0) if self.mean else around.sum(0)).relu()
        result: Tensor = self.head(x)
        return result


def summed(*, mean: bool) -> Case:
    labels = torch.randint(4, (64,))
    return Case(Summed(mean=mean), torch.randn(64, 32), lambda logits: functional.cross_entropy(logits, labels))


def itself(output: Tensor) -> Tensor:
    return output


PAIRS: list[tuple[str, str, str, Build, Build]] = [
    (
        "a network that differentiates itself",
        "F301",
        "layers",
        lambda: Case(Physics(8, 0.3), torch.rand(64, 1), itself),
        lambda: Case(Physics(2, 1.0), torch.rand(64, 1), itself),
    ),
    (
        "latents that are one",
        "F101",
        "latents",
        lambda: Case(Latents(0.02), torch.randn(8, 20, 8)),
        lambda: Case(Latents(0.02, positions=True), torch.randn(8, 20, 8)),
    ),
    (
        "latents of zeros",
        "F101",
        "latents",
        lambda: Case(Latents(0.0), torch.randn(8, 20, 8)),
        lambda: Case(Latents(0.02, alike=False), torch.randn(8, 20, 8)),
    ),
    (
        "scores that nothing divides, without a batch",
        "F308",
        "softmax",
        lambda: Case(Written(1.0), torch.randn(24, 8)),
        lambda: Case(Written(1 / 8), torch.randn(24, 8)),
    ),
    (
        "packed scores that nothing divides",
        "F308",
        "softmax",
        lambda: Case(Written(1.0, packed=True), torch.randn(6, 24, 8)),
        lambda: Case(Written(1 / 8, packed=True), torch.randn(6, 24, 8)),
    ),
    (
        "a learned scale of cosines",
        "F308",
        "softmax",
        lambda: Case(Cosines(200.0, logarithm=False), torch.randn(6, 24, 8)),
        lambda: Case(Cosines(10.0, logarithm=False), torch.randn(6, 24, 8)),
    ),
    (
        "the logarithm of a scale of cosines",
        "F308",
        "softmax",
        lambda: Case(Cosines(200.0, logarithm=True), torch.randn(24, 8)),
        lambda: Case(Cosines(10.0, logarithm=True), torch.randn(24, 8)),
    ),
    (
        "a running variance of 10⁶",
        "F108",
        "1.running_var",
        lambda: counting(std=1e3),
        lambda: counting(batches=3),
    ),
    (
        "a running mean far aside",
        "F108",
        "1.running_mean",
        lambda: counting(mean=30.0),
        lambda: counting(mean=0.3),
    ),
    (
        "a running variance that is infinite",
        "F104",
        "1.running_var",
        lambda: counting(std=math.inf),
        lambda: holding(-math.inf, 0.0),
    ),
    (
        "a buffer that nothing wrote",
        "F105",
        "table",
        lambda: holding(1e-40, 1e20, 0.0),
        lambda: holding(1e-40, -torch.finfo(torch.float32).max, 0.0),
    ),
    (
        "experts drawn by torch's reading of a stack",
        "F201",
        "inner",
        lambda: Case(Stacked(nn.init.kaiming_normal_), torch.randn(64, 8)),
        lambda: Case(Stacked(by_inputs), torch.randn(64, 8)),
    ),
    (
        "two layers that drew the same",
        "F102",
        "places",
        lambda: Case(Offsets(torch.randn(16, 3)), (torch.randn(64, 16), torch.randn(64, 3))),
        lambda: Case(
            Offsets(torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)[:16]),
            (torch.randn(64, 16), torch.randn(64, 3)),
        ),
    ),
    (
        "a norm under its ε, in a branch that is open",
        "F301",
        "norms.0",
        lambda: Case(Scaled(4e-4, 1.0), torch.randn(64, 16)),
        lambda: Case(Scaled(4e-4, 1e-6), torch.randn(64, 16)),
    ),
    (
        "a norm of a vanished mean",
        "F301",
        "1.1",
        lambda: averaged(0.004),
        lambda: averaged(0.2),
    ),
    (
        "one unit that its bias holds down",
        "F303",
        "3",
        lambda: single(-10.0),
        lambda: single(0.1),
    ),
    (
        "a logit scale whose logarithm was forgotten",
        "F309",
        "scale",
        lambda: compared(1 / 0.07),
        lambda: compared(math.log(1 / 0.07)),
    ),
    (
        "sums over neighbours",
        "F309",
        "head",
        lambda: summed(mean=False),
        lambda: summed(mean=True),
    ),
    (
        "a squeeze that is large by no rule",
        "F201",
        "2.squeeze",
        lambda: squeezed(std=1.4),
        lambda: squeezed(std=1.0),
    ),
    (
        "a set that vanishes before its mean",
        "F301",
        "whole",
        lambda: Case(Set(0.15), torch.randn(64, 400, 3)),
        lambda: Case(Set(1.0), torch.randn(64, 400, 3)),
    ),
    (
        "fifty batch norms without a way beside them",
        "F403",
        "chain.0",
        lambda: Case(Chain(50), torch.randn(64, 32)),
        lambda: Case(Chain(50, joined=True), torch.randn(64, 32)),
    ),
    (
        "as many batch norms as no published chain has",
        "F403",
        "chain.0",
        lambda: Case(Chain(45), torch.randn(64, 32)),
        lambda: Case(Chain(19), torch.randn(64, 32)),
    ),
    (
        "a learned temperature",
        "F308",
        "softmax",
        lambda: Case(Tempered(0.02), torch.randn(6, 24, 8)),
        lambda: Case(Tempered(1.0), torch.randn(6, 24, 8)),
    ),
    (
        "the logarithm of a temperature",
        "F308",
        "softmax",
        lambda: Case(Tempered(0.02, logarithm=True), torch.randn(6, 24, 8)),
        lambda: Case(Tempered(1.0, logarithm=True), torch.randn(6, 24, 8)),
    ),
    (
        "places weighed by one number",
        "F308",
        "softmax",
        lambda: Case(Pooled(30.0), torch.randn(6, 24, 8)),
        lambda: Case(Pooled(1.0), torch.randn(6, 24, 8)),
    ),
]
"""What it is, the code, where, the fault, and its healthy neighbour."""


def serious(diagnosis: Diagnosis) -> list[str]:
    return [str(finding) for finding in diagnosis.findings if finding.severity is not Severity.NOTE]


@pytest.mark.parametrize(("code", "place", "build"), [pair[1:4] for pair in PAIRS], ids=[pair[0] for pair in PAIRS])
def test_the_fault_is_found_where_it_is(code: str, place: str, build: Build) -> None:
    _, diagnosis = judged(build)
    places = [
        where
        for finding in diagnosis.findings
        if finding.code == code and finding.severity is not Severity.NOTE
        for where in (finding.place, *finding.places)
    ]
    assert any(where.startswith(place) for where in places), diagnosis


@pytest.mark.parametrize("build", [pair[4] for pair in PAIRS], ids=[pair[0] for pair in PAIRS])
def test_its_neighbour_is_healthy(build: Build) -> None:
    _, diagnosis = judged(build)
    assert not serious(diagnosis)


MENDED = [pair for pair in PAIRS if pair[2] not in ("1.running_var", "1.running_mean", "table", "chain.0")]
"""What a plan can mend: parameters, and neither buffers nor a depth."""


@pytest.mark.parametrize(("code", "build"), [(pair[1], pair[3]) for pair in MENDED], ids=[pair[0] for pair in MENDED])
def test_what_a_plan_can_mend_it_mends(code: str, build: Build) -> None:
    case, diagnosis = judged(build)
    with one_thread():
        fanin.apply(diagnosis.fix(), case.model, seed=0)
        assert code not in fanin.diagnose(case.model, case.inputs, loss=case.loss).codes


def test_a_model_that_differentiates_itself_is_traced() -> None:
    with torch.random.fork_rng(devices=[]):
        model = Physics(2, 1.0)
    graph = fanin.trace(model, torch.rand(8, 1))
    assert graph.source == "fake"
    assert [graph[f"layers.{i}.weight"].activation for i in range(2)] == ["tanh", "tanh"]


def test_a_potential_of_which_only_the_force_is_returned_ends_the_model() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            energy = self.last(self.first(x.requires_grad_()).tanh()).sum()
            return -torch.autograd.grad(energy, x, create_graph=True)[0]

    with torch.random.fork_rng(devices=[]):
        model = Force()
    graph = fanin.trace(model, torch.rand(8, 3))
    assert graph["last.weight"].output
    assert not graph["first.weight"].output


def test_one_vector_alone_says_nothing_of_what_differs() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(4, 8)
    alone, two = (fanin.measure(model, torch.rand(count, 4)).layers[0] for count in (1, 2))
    assert alone.varying is None
    assert alone.offset is None
    assert two.varying is not None


def test_scores_that_nothing_divides_are_made_smaller_by_their_queries_alone() -> None:
    _, diagnosis = judged(lambda: Case(Written(1.0, packed=True), torch.randn(6, 24, 8)))
    edit, bias = (edit for finding in diagnosis.of("F308") for edit in finding.edits)
    assert (edit.pattern, bias.pattern, bias.scheme) == ("qkv.weight", "qkv.bias", Zeros())
    assert isinstance(edit.scheme, Packed)
    q, k, v = (edit.scheme.part(block).expected(Fans(64, 64)).std for block in "qkv")
    assert k == v
    assert q < k / 4


def test_a_softmax_over_classes_is_no_attention() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5), nn.Softmax(-1))
        nn.init.normal_(model[2].weight, std=10.0)
        layer = fanin.measure(model, torch.randn(24, 8)).layer("3")
    assert layer.entropy is None


def test_the_spread_of_scores_leaves_out_what_is_masked() -> None:
    scores = torch.tensor([[1.0, 3.0, -1e9], [2.0, 2.0, 2.0]])
    found = entropy_of_scores(scores)
    assert found is not None
    assert found.score_std == pytest.approx(math.sqrt(0.5))


def test_what_a_norm_counted_is_compared_channel_by_channel() -> None:
    values = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 1001.0)
    counted = counted_by("batch_norm", (values, values.mean(0), values.var(0)), {})
    assert counted is not None
    assert counted.spread == pytest.approx(1.0, abs=0.02)
    assert counted.shift == pytest.approx(0.0, abs=0.02)


class Streamed(nn.Module):
    """Residual blocks on a small embedding; what they add has one size behind norms, and the stream's without."""

    def __init__(self, blocks: int, norm: str) -> None:
        super().__init__()
        self.norm, self.table = norm, nn.Embedding(50, 32)
        nn.init.normal_(self.table.weight, std=0.02)
        self.mix = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(blocks))
        self.head = nn.Linear(32, 50)
        with torch.no_grad():
            for layer in self.mix:
                layer.weight.normal_(std=32**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        for layer in self.mix:
            if self.norm == "pre":
                x = x + layer(functional.layer_norm(x, (32,)))
            elif self.norm == "post":
                x = functional.layer_norm(x + layer(x), (32,))
            else:
                x = x + 2 * layer(x)
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize(("norm", "grows"), [("pre", False), ("post", False), ("none", True)])
@pytest.mark.parametrize("blocks", [2, 6])
def test_a_stream_that_a_norm_lifts_once_does_not_grow(norm: str, grows: bool, blocks: int) -> None:
    _, found = judged(lambda: Case(Streamed(blocks, norm), torch.randint(50, (8, 12))))
    assert ("F307" in found.codes) == (grows and blocks > 2)


class Decaying(nn.Module):
    """Learned rates that are added to what is summed over time, as exponentials or as they are."""

    def __init__(self, rate: bool) -> None:
        super().__init__()
        self.first, self.head, self.rate = nn.Linear(16, 32), nn.Linear(32, 4), rate
        self.decay = nn.Parameter(torch.linspace(-5, 3, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) + (-torch.exp(self.decay) if self.rate else self.decay)
        result: Tensor = self.head(torch.relu(x))
        return result


@pytest.mark.parametrize("rate", [True, False])
def test_a_rate_is_no_bias_that_drowns(rate: bool) -> None:
    _, found = judged(lambda: Case(Decaying(rate), torch.randn(32, 16)))
    assert ("F208" in found.codes) != rate


@pytest.mark.parametrize(("layers", "severity"), [(4, Severity.NOTE), (6, Severity.WARNING)])
def test_the_default_of_few_layers_is_no_more_than_a_note(layers: int, severity: Severity) -> None:
    def build() -> Case:
        net = [part for _ in range(layers) for part in (nn.Linear(128, 128), nn.ReLU())]
        return Case(nn.Sequential(*net, nn.Linear(128, 4)), torch.randn(64, 128))

    _, found = judged(build)
    assert {item.severity for item in found.findings if item.code == "F301"} == {severity}


class Beside(nn.Module):
    """Every layer is a sum of two ways, of which one is next to nothing."""

    def __init__(self, larger: float) -> None:
        super().__init__()
        self.small = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(3))
        self.large = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(3))
        self.first, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        for small, large in zip(self.small, self.large, strict=True):
            nn.init.normal_(small.weight, std=1e-4)
            nn.init.normal_(large.weight, std=larger / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for small, large in zip(self.small, self.large, strict=True):
            x = functional.gelu(small(x) + large(x))
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize(("larger", "vanishes"), [(1.5, False), (0.05, True)])
def test_of_ways_side_by_side_the_larger_carries_the_signal(larger: float, vanishes: bool) -> None:
    _, found = judged(lambda: Case(Beside(larger), torch.randn(64, 16)))
    assert ("F301" in found.codes) == vanishes


def test_what_differs_is_compared_between_members_of_one_set() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        signals = fanin.measure(Set(1.0), torch.randn(64, 400, 3))
    evidence = Evidence(signals.graph, signals)
    assert evidence.averaged(signals.layer("each.2")) == 1.0
    assert evidence.averaged(signals.layer("whole.0")) == 400.0
    assert evidence.averaged(signals.layer("whole.0"), steps=1) == 400.0
    assert evidence.averaged(signals.layer("whole.2"), steps=2) == 1.0


def test_small_factors_of_what_is_joined_shut_it_as_layer_scales_do() -> None:
    class Dense(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.first = nn.Linear(32, 32)
            self.layers = nn.ModuleList(nn.Linear(32 * depth, 32) for depth in range(1, 6))
            self.norms = nn.ModuleList(nn.LayerNorm(32 * depth) for depth in range(1, 6))
            self.factors = nn.ParameterList(nn.Parameter(torch.full((32,), factor)) for _ in range(5))
            self.head = nn.Linear(32 * 6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for norm, layer, factor in zip(self.norms, self.layers, self.factors, strict=True):
                x = torch.cat([x, layer(norm(x)).relu() * factor], -1)
            result: Tensor = self.head(x)
            return result

    _, diagnosis = judged(lambda: Case(Dense(1e-6), torch.randn(32, 32)))
    assert not diagnosis.of("F40")


def test_a_fixed_factor_of_cosines_is_no_plans() -> None:
    def build() -> Case:
        case = Case(Cosines(200.0, logarithm=False), torch.randn(6, 24, 8))
        scale = case.model.scale
        del case.model.scale
        case.model.register_buffer("scale", scale.detach())
        return case

    _, diagnosis = judged(build)
    (found,) = diagnosis.of("F308")
    assert not found.edits
    assert "in the model's code" in found.remedy


@pytest.mark.parametrize(
    ("model", "name", "grows"),
    [
        (lambda: Tempered(0.02), "temperature", True),
        (lambda: Tempered(0.02, logarithm=True), "temperature", True),
        (lambda: Cosines(200.0, logarithm=True), "scale", False),
    ],
)
def test_a_factor_of_scores_is_changed_where_it_is_learned(
    model: Callable[[], nn.Module], name: str, grows: bool
) -> None:
    _, diagnosis = judged(lambda: Case(model(), torch.randn(6, 24, 8)))
    (edit,) = (edit for finding in diagnosis.of("F308") for edit in finding.edits)
    assert isinstance(edit.scheme, Constant)
    assert (edit.pattern, edit.scheme.value > diagnosis.signals.parameter(name).mean) == (name, grows)


def test_one_channel_far_off_is_found() -> None:
    case = counting()
    case.model[1].running_var[3] = 1e20
    _, diagnosis = judged(lambda: case)
    (found,) = diagnosis.of("F108")
    assert found.place == "1.running_var"


def test_a_mean_beside_a_norm_is_not_the_norms() -> None:
    class Beside(nn.Module):
        """A norm of tokens, after a mean over others of another way was taken and left to the end."""

        def __init__(self) -> None:
            super().__init__()
            self.other, self.after, self.first = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(8, 16)
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(32, 4)

        def forward(self, x: Tensor, others: Tensor) -> Tensor:
            mean = self.after(self.other(others).relu().mean(1))
            result: Tensor = self.head(torch.cat([mean, self.norm(self.first(x))], -1))
            return result

    _, diagnosis = judged(lambda: Case(Beside(), (torch.randn(64, 8), torch.randn(64, 100, 8))))
    assert not serious(diagnosis)


def test_a_large_shift_of_scores_is_a_choice() -> None:
    class Decaying(nn.Module):
        """Places weighed by a softmax of steps and of decays, one for each state, as in state space models."""

        def __init__(self) -> None:
            super().__init__()
            self.step, self.decay = nn.Linear(32, 16), nn.Parameter(torch.rand(16) * 15 + 1)
            self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).relu()
            weights = (0.1 * self.step(x) + self.decay).softmax(1)
            result: Tensor = self.head((weights.mT @ x).mean(1))
            return result

    _, diagnosis = judged(lambda: Case(Decaying(), torch.randn(8, 24, 8)))
    assert "F208" not in diagnosis.codes


class Detector(nn.Module):
    """Two heads on one trunk of batch norms, of which one starts small, as of boxes."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1)) for _ in range(heads)
        )
        for part in (self.heads[-1][0], self.heads[-1][2]):
            nn.init.normal_(part.weight, std=3e-4)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        return [head(features) for head in self.heads]


def test_a_small_head_beside_another_is_no_explosion() -> None:
    def loss(output: list[Tensor]) -> Tensor:
        return torch.stack([(part - 1).square().mean() for part in output]).sum()

    _, found = judged(lambda: Case(Detector(2), torch.randn(8, 3, 16, 16), loss))
    assert "F403" not in found.codes


def generator(width: int, kernel: int, stride: int, *, misread: bool) -> Case:
    """A transposed convolution drawn by He's rule, with the fans that torch reads from its shape or the true ones."""
    up = nn.ConvTranspose2d(width, 10, kernel, stride)
    if misread:
        nn.init.kaiming_normal_(up.weight)
    else:
        nn.init.normal_(up.weight, std=math.sqrt(2 / fanin.fans_of(up).fan_in))
    layers = (nn.Conv2d(8, width, 1), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(10, 3, 1))
    return Case(nn.Sequential(*layers), torch.randn(8, 8, 6, 6))


@pytest.mark.parametrize(("width", "kernel", "stride"), [(160, 4, 2), (160, 3, 1), (16, 8, 8)])
def test_a_transposed_convolution_by_the_fans_that_torch_misreads_is_found(
    width: int, kernel: int, stride: int
) -> None:
    (found,) = judged(lambda: generator(width, kernel, stride, misread=True))[1].of("F201")
    assert found.place == "2.weight"
    assert "torch.nn.init reads" in found.seen
    assert not judged(lambda: generator(width, kernel, stride, misread=False))[1].of("F201")


def test_torchs_own_default_of_a_transposed_convolution_is_healthy() -> None:
    def build() -> Case:
        case = generator(160, 4, 2, misread=True)
        case.model.get_submodule("2").reset_parameters()  # type: ignore[operator]  # torch's own
        return case

    assert not judged(build)[1].of("F201")


class FortySteps(nn.Module):
    """A recurrence over 40 steps, of packed sequences or with the steps first, and a head on its last state."""

    def __init__(self, gain: float, how: str) -> None:
        super().__init__()
        self.how, self.rnn = how, nn.RNN(8, 128, batch_first=how == "batch first")
        self.head = nn.Linear(128, 5)
        nn.init.normal_(self.rnn.weight_hh_l0, std=gain / math.sqrt(128))
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "steps first":
            x = x.transpose(0, 1)
        if self.how == "packed":
            x = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 40), batch_first=True)  # type: ignore[assignment]
        result: Tensor = self.head(self.rnn(x)[1][0])
        return result


@pytest.mark.parametrize("how", ["batch first", "steps first", "packed"])
def test_a_recurrence_in_the_chaotic_phase_is_found(how: str) -> None:
    (found,) = judged(lambda: Case(FortySteps(2.5, how), torch.randn(4, 40, 8)))[1].of("F306")
    assert found.place == "rnn"
    assert found.seen.startswith("40 steps")
    assert not judged(lambda: Case(FortySteps(1.5, how), torch.randn(4, 40, 8)))[1].of("F306")


def pruned(*, over: bool, container: bool) -> Case:
    """A pruned layer that was drawn again: what it was pruned from, or the product, which no forward keeps."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    for _ in range(1 + container):
        prune.random_unstructured(model[2], "weight", 0.3)  # type: ignore[no-untyped-call]
    nn.init.kaiming_normal_(model[2].weight.data if over else model[2].weight_orig.data)
    return Case(model, torch.randn(32, 16))


@pytest.mark.parametrize("container", [False, True])
def test_what_is_written_over_a_pruned_weight_is_written_in_vain(container: bool) -> None:
    found = judged(lambda: pruned(over=True, container=container))[1]
    assert [one.place for one in found.of("F202")] == ["2.weight_orig"]
    assert "F202" not in judged(lambda: pruned(over=False, container=container))[1].codes


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_equal_tokens_are_drawn_as_large_as_they_were(std: float) -> None:
    case, diagnosis = judged(lambda: Case(Latents(std), torch.randn(8, 20, 8)))
    size = float(case.model.get_parameter("latents").detach().square().mean().sqrt())
    assert diagnosis.fix()["latents"].expected.std == pytest.approx(size)
    unusual = judged(lambda: Case(Latents(1e-4), torch.randn(8, 20, 8)))[1]
    assert unusual.fix()["latents"].expected.std == pytest.approx(0.02)


class OwnTable(nn.Module):
    """A look-up in a parameter of the model's own."""

    def __init__(self, padding: int | None, *, bag: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(40, 16)), nn.Linear(16, 4)
        self.padding, self.look_up = padding, functional.embedding_bag if bag else functional.embedding

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.look_up(tokens, self.table, padding_idx=self.padding)  # type: ignore[operator]
        result: Tensor = self.head(found if found.ndim == 2 else found.mean(1))
        return result


@pytest.mark.parametrize("bag", [False, True])
def test_the_padding_row_of_a_table_of_ones_own_is_judged(bag: bool) -> None:
    case, diagnosis = judged(lambda: Case(OwnTable(-2, bag=bag), torch.randint(38, (8, 10))))
    assert [(found.place, found.seen[:6]) for found in diagnosis.of("F203")] == [("table", "row 38")]
    assert not mended(case, diagnosis).of("F203")
    assert not judged(lambda: Case(OwnTable(None, bag=bag), torch.randint(40, (8, 10))))[1].of("F203")


class InItsUnit(nn.Module):
    """Outputs times a factor in a unit of its own, or a branch that such a factor shuts."""

    def __init__(self, size: float, *, made_up: bool) -> None:
        super().__init__()
        self.net, self.branch = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)), nn.Linear(8, 4)
        self.factor, self.unit = nn.Parameter(torch.full((4,), size)), 1 / size if made_up else None

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.net(x)
        return made + self.factor * self.branch(x) if self.unit is None else made * (self.factor * self.unit)


@pytest.mark.parametrize(("size", "made_up", "found"), [(1e-6, True, True), (1e-6, False, False), (0.1, True, False)])
def test_a_factor_in_a_unit_that_no_step_fits_is_found(size: float, made_up: bool, found: bool) -> None:
    case = Case(InItsUnit(size, made_up=made_up), torch.randn(64, 8), lambda out: (out - 1).square().mean())
    assert [one.place for one in judged(lambda: case)[1].of("F404")] == ["factor"] * found
