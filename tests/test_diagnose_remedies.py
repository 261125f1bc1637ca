"""What `fix` does: it mends the fault, leaves alone what is right, and plans nothing that cannot be written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.diagnoses import Severity
from fanin.measuring.ignorance import knowing_nothing
from judging import Case, classes, judged, mended, serious


class Adapted(nn.Module):
    """A frozen layer with a correction of low rank, both of whose factors are zero."""

    def __init__(self, inputs: int, outputs: int, *, merged: bool, gated: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.zeros(4, inputs)), nn.Parameter(torch.zeros(outputs, 4))
        self.gate = nn.Parameter(torch.zeros(1)) if gated else None
        self.merged = merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return functional.linear(x, self.layer.weight + self.up @ self.down, self.layer.bias)
        correction = functional.linear(functional.linear(x, self.down), self.up)
        result: Tensor = self.layer(x) + 2 * (correction if self.gate is None else self.gate * correction)
        return result


def adapted(*, merged: bool = False, gated: bool = False) -> Case:
    layers = (Adapted(20, 64, merged=merged, gated=gated), nn.ReLU(), Adapted(64, 5, merged=merged, gated=gated))
    return Case(nn.Sequential(*layers), torch.randn(32, 20), classes(5, 32))


@pytest.mark.parametrize(("merged", "gated"), [(False, False), (True, False), (False, True)])
def test_of_zeros_in_a_row_the_last_is_kept(merged: bool, gated: bool) -> None:
    case, diagnosis = judged(lambda: adapted(merged=merged, gated=gated))
    assert {"0.down", "0.up"} <= {found.place for found in diagnosis.of("F401")}
    before = case.model(case.inputs)
    assert not serious(mended(case, diagnosis))
    torch.testing.assert_close(case.model(case.inputs), before)
    loss = case.loss
    assert loss is not None
    loss(case.model(case.inputs)).backward()
    last = case.model.get_parameter("0.gate" if gated else "0.up")
    assert not last.any()
    assert last.grad is not None
    assert last.grad.any()


def test_where_no_way_leads_around_two_zeros_both_are_drawn() -> None:
    def build() -> Case:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        for layer in (model[0], model[2]):
            nn.init.zeros_(layer.weight)
        return Case(model, torch.randn(32, 8), classes(4, 32))

    case, diagnosis = judged(build)
    assert {edit.pattern for found in diagnosis.of("F401") for edit in found.edits} >= {"0.weight", "2.weight"}
    assert "F401" not in mended(case, diagnosis).codes


def normed(depth: int, normalize: Callable[[nn.Module], nn.Module]) -> Case:
    """A deep net whose spectral norms let less and less through."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [normalize(nn.Linear(8 if index == 0 else 32, 32, bias=False)), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(32, 1))
    return Case(model, torch.randn(32, 8), lambda x: functional.softplus(-x).mean())


def test_what_a_spectral_norm_cannot_hold_is_scaled_to_what_it_can() -> None:
    case, diagnosis = judged(lambda: normed(10, nn.utils.parametrizations.spectral_norm))
    (found,) = diagnosis.of("F301")
    schemes = {edit.scheme for edit in found.edits if edit.pattern.endswith("original")}
    assert schemes == {fanin.schemes.Orthogonal()}
    assert "spectral_norm cannot hold" in found.remedy
    reached = fanin.measure(case.model, case.inputs, case.loss).layer("18").rms
    after = mended(case, diagnosis)
    assert after.signals.layer("18").rms > 5 * reached


def test_what_the_older_spectral_norm_cannot_hold_is_left_to_the_reader() -> None:
    case, diagnosis = judged(lambda: normed(10, nn.utils.spectral_norm))
    (found,) = diagnosis.of("F301")
    assert not [edit for edit in found.edits if edit.pattern.endswith("orig")]
    assert "spectral_norm cannot hold" in found.remedy
    mended(case, diagnosis)


def test_what_a_weight_norm_holds_is_planned_as_it_is() -> None:
    def small(layer: nn.Module) -> nn.Module:
        nn.init.normal_(layer.get_parameter("weight"), std=0.01)
        return nn.utils.parametrizations.weight_norm(layer)

    case, diagnosis = judged(lambda: normed(10, small))
    assert diagnosis.of("F301")
    assert not any("cannot hold" in found.remedy for found in diagnosis.findings)
    assert "F301" not in mended(case, diagnosis).codes


def test_what_is_left_on_meta_gets_values_by_the_plan() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, device="meta"))
    kept = model[0].weight.detach().clone()
    diagnosis = fanin.diagnose(model, torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))
    assert serious(diagnosis) == [("F109", "2.weight")]
    with pytest.raises(fanin.FaninError, match=r"fanin\.apply\(plan, model, device="):
        fanin.apply(diagnosis.fix(), model)
    fanin.apply(diagnosis.fix(), model, device="cpu")
    assert torch.equal(model[0].weight, kept)
    assert fanin.diagnose(model).ok


class Cosine(nn.Module):
    """Logits are cosines times a factor: learned, learned by its logarithm, or a plain number."""

    def __init__(self, size: float, kind: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 64), nn.Linear(20, 64)
        self.kind = kind
        if kind != "number":
            self.factor = nn.Parameter(torch.tensor(size).log() if kind == "logarithm" else torch.tensor(size))
        else:
            self.factor = size

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factor.exp() if self.kind == "logarithm" else self.factor
        first = functional.normalize(self.first(x[:, 0]), dim=-1) * factor
        return first @ functional.normalize(self.second(x[:, 1]), dim=-1).mT


class Ended(nn.Module):
    """A norm ends the net, whose scale is the size of the logits."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(20, 16, bias=False), nn.LayerNorm(16, bias=False)
        nn.init.constant_(self.norm.weight, size)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.first(x[:, 0]))
        return result


def cosines(model: nn.Module) -> Case:
    return Case(model, torch.randn(64, 2, 20), classes(16, 64))


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (lambda: Cosine(2000.0, "factor"), "factor"),
        (lambda: Cosine(2000.0, "logarithm"), "factor"),
        (lambda: Ended(20.0), "norm.weight"),
    ],
)
def test_the_factor_behind_normalized_outputs_is_to_blame(model: Callable[[], nn.Module], place: str) -> None:
    case, diagnosis = judged(lambda: cosines(model()))
    (found,) = diagnosis.of("F309")
    assert [edit.pattern for edit in found.edits] == [place]
    assert "F309" not in mended(case, diagnosis).codes


def test_a_factor_that_is_no_parameter_is_named_and_nothing_is_planned() -> None:
    _, diagnosis = judged(lambda: cosines(Cosine(2000.0, "number")))
    (found,) = diagnosis.of("F309")
    assert not found.edits
    assert "no plan sets" in found.seen


@pytest.mark.parametrize("kind", ["factor", "logarithm", "number"])
def test_cosines_of_a_usual_temperature_are_healthy(kind: str) -> None:
    assert "F309" not in judged(lambda: cosines(Cosine(10.0, kind)))[1].codes


def test_an_output_layer_is_to_blame_where_its_scale_counts() -> None:
    def build() -> Case:
        model = nn.Sequential(nn.Flatten(), nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 16))
        nn.init.normal_(model[3].weight, std=3.0)
        return cosines(model)

    case, diagnosis = judged(build)
    assert [edit.pattern for found in diagnosis.of("F309") for edit in found.edits] == ["3.weight", "3.bias"]
    assert "F309" not in mended(case, diagnosis).codes


class Biased(nn.Module):
    """Two layers of attention whose scores get one bias for each distance, looked up in one table."""

    def __init__(self, std: float, *, looked_up: bool, gain: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.head = nn.Linear(32, 3)
        places = nn.Parameter(torch.zeros(4, 10, 10))
        self.table: nn.Module | nn.Parameter = nn.Embedding(21, 4) if looked_up else places
        nn.init.normal_(self.table.weight if isinstance(self.table, nn.Embedding) else self.table, std=std)
        for layer in self.layers:
            nn.init.normal_(layer.weight[:64], std=gain / 32**0.5)

    def forward(self, x: Tensor) -> Tensor:
        distances = torch.arange(10)[:, None] - torch.arange(10) + 10
        bias = self.table(distances).permute(2, 0, 1) if isinstance(self.table, nn.Embedding) else self.table
        for layer, norm in zip(self.layers, self.norms, strict=True):
            q, k, v = layer(norm(x)).view(len(x), 10, 3, 4, 8).permute(2, 0, 3, 1, 4)
            attention = (q @ k.mT / 8**0.5 + bias).softmax(-1)
            x = x + (attention @ v).transpose(1, 2).flatten(2)
        result: Tensor = self.head(x.mean(1))
        return result


def biased(std: float, **settings: Any) -> Case:
    return Case(Biased(std, **settings), torch.randn(16, 10, 32), classes(3, 16))


@pytest.mark.parametrize(("looked_up", "name"), [(True, "table.weight"), (False, "table")])
def test_biases_of_scores_that_make_attention_sharp_are_made_small(looked_up: bool, name: str) -> None:
    case, diagnosis = judged(lambda: biased(12.0, looked_up=looked_up))
    assert {edit.pattern for found in diagnosis.of("F308") for edit in found.edits} == {name}
    assert not {"F308", "F201", "F207"} & set(mended(case, diagnosis).codes)


def test_queries_are_mended_where_the_biases_are_small() -> None:
    case, diagnosis = judged(lambda: biased(0.02, looked_up=True, gain=5.0))
    patterns = {edit.pattern for found in diagnosis.of("F308") for edit in found.edits}
    assert patterns == {"layers.0.weight", "layers.1.weight"}
    assert "F308" not in mended(case, diagnosis).codes


def test_queries_and_biases_are_mended_where_both_are_large() -> None:
    case, diagnosis = judged(lambda: biased(12.0, looked_up=True, gain=5.0))
    patterns = {edit.pattern for found in diagnosis.of("F308") for edit in found.edits}
    assert patterns == {"table.weight", "layers.0.weight", "layers.1.weight"}
    assert "F308" not in mended(case, diagnosis).codes


def looked_up(std: float, value: float) -> Case:
    model = nn.Sequential(nn.Embedding(200, 32), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.normal_(model[0].weight, std=std)
    with torch.no_grad():
        model[0].weight[7] = value
    return Case(model, torch.arange(200).view(100, 2), classes(4, 100))


def test_a_table_with_an_infinite_row_is_drawn_by_its_own_scale() -> None:
    case, diagnosis = judged(lambda: looked_up(0.05, float("inf")))
    (found,) = diagnosis.of("F104")
    assert len(found.edits) == 1
    scheme = found.edits[0].scheme
    assert scheme is not None
    assert scheme.expected(fanin.Fans(1, 32)).std == pytest.approx(0.05, rel=0.05)
    assert not serious(mended(case, diagnosis))


def test_a_table_of_no_known_scale_is_drawn_by_the_recommended_one() -> None:
    _, diagnosis = judged(lambda: looked_up(1e-6, float("nan")))
    (found,) = diagnosis.of("F104")
    scheme = found.edits[0].scheme
    assert scheme is not None
    assert scheme.expected(fanin.Fans(1, 32)).std > 0.01


class Policy(nn.Module):
    """A normal law whose spread is learned: by its logarithm, as it is, or by the network."""

    def __init__(self, spread: float, kind: str, *, nested: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(9, 64), nn.Tanh())
        self.mean, self.head = nn.Linear(64, 3), nn.Linear(64, 3)
        self.kind, self.nested = kind, nested
        size = torch.full((3,), spread)
        if kind == "head":
            nn.init.constant_(self.head.bias, float(size[0].log()))
        else:
            self.spread = nn.Parameter(size.log() if kind == "logarithm" else size)

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        mean = self.mean(x)
        if self.kind == "head":
            spread = self.head(x).exp()
        else:
            spread = self.spread.exp() if self.kind == "logarithm" else self.spread
        law = torch.distributions.Normal(mean, spread.expand_as(mean))
        return torch.distributions.Independent(law, 1) if self.nested else law


def policy(spread: float, kind: str, *, nested: bool = False) -> Case:
    actions = torch.randn(64, 3)
    return Case(
        Policy(spread, kind, nested=nested), torch.randn(64, 9), lambda law: -law.log_prob(actions).sum() / len(actions)
    )


@pytest.mark.parametrize(
    ("kind", "nested", "place"),
    [
        ("logarithm", False, "spread"),
        ("logarithm", True, "spread"),
        ("plain", False, "spread"),
        ("head", False, "head.bias"),
    ],
)
def test_a_distribution_that_is_far_too_narrow_is_found(kind: str, nested: bool, place: str) -> None:
    case, diagnosis = judged(lambda: policy(0.0025, kind, nested=nested))
    (found,) = diagnosis.of("F309")
    assert (found.severity, found.place) == (Severity.ERROR, place)
    assert "F309" not in mended(case, diagnosis).codes


@pytest.mark.parametrize("kind", ["logarithm", "plain", "head"])
@pytest.mark.parametrize("spread", [0.4, 1.0])
def test_a_distribution_of_a_usual_spread_is_healthy(spread: float, kind: str) -> None:
    assert "F309" not in judged(lambda: policy(spread, kind))[1].codes


def test_of_an_output_that_cannot_be_seen_nothing_is_known() -> None:
    class Hidden:
        def __init__(self, value: Tensor) -> None:
            self.value = value

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Hidden:
            return Hidden(self.layer(x))

    with torch.random.fork_rng(devices=[]):
        signals = fanin.measure(Wrapped(), torch.randn(8, 9), lambda output: 1e6 * output.value.square().mean())
    assert signals.loss is not None
    assert signals.uninformed is None
    assert signals.uninformed_from == ""


@pytest.mark.parametrize(
    "law",
    [
        torch.distributions.Categorical(logits=torch.randn(4, 3)),
        torch.distributions.Categorical(probs=torch.tensor([[0.1, 0.2, 0.7]])),
        torch.distributions.Bernoulli(probs=torch.tensor([0.1, 0.2])),
        torch.distributions.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]])),
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.tensor([0.9, 0.1])),
            torch.distributions.Normal(torch.tensor([-1.0, 1.0]), 0.1),
        ),
    ],
    ids=lambda law: type(law).__name__,
)
def test_the_standard_law_of_a_family_is_even_and_of_unit_size(law: torch.distributions.Distribution) -> None:
    neutral, words = knowing_nothing(law)
    assert "standard" in words
    shares = getattr(neutral, "probs", None)
    if shares is not None:
        assert len(set(shares.flatten().tolist())) == 1
    else:
        assert not neutral.mean.any()
        torch.testing.assert_close(neutral.variance, torch.ones_like(neutral.variance))


class UNet(nn.Module):
    """Two levels with torch's default and no norms; what went down is joined to what comes up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down, self.lower = self.pair(3, width), self.pair(width, 2 * width)
        self.middle = self.pair(2 * width, 4 * width)
        self.up, self.upper = (nn.ConvTranspose2d(2**n * width, 2 ** (n - 1) * width, 2, 2) for n in (2, 1))
        self.join, self.end = self.pair(4 * width, 2 * width), self.pair(2 * width, width)
        self.head = nn.Conv2d(width, 5, 1)

    @staticmethod
    def pair(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        second = self.lower(functional.max_pool2d(first, 2))
        up = self.join(torch.cat([second, self.up(self.middle(functional.max_pool2d(second, 2)))], 1))
        result: Tensor = self.head(self.end(torch.cat([first, self.upper(up)], 1)))
        return result


def test_logits_behind_joined_ways_bear_what_no_rule_knows_of_their_size() -> None:
    target = torch.arange(8 * 16 * 16).reshape(8, 16, 16) % 5
    case, diagnosis = judged(
        lambda: Case(UNet(), torch.randn(8, 3, 16, 16), lambda out: functional.cross_entropy(out, target))
    )
    assert "F301" in diagnosis.codes
    assert not serious(mended(case, diagnosis))


class Hypernet(nn.Module):
    """A small net makes the weights of another, of which the last are twice as large as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 16 * 32), nn.Linear(32, 32 * 3)
        nn.init.normal_(self.first.weight, std=math.sqrt(2 / 16 / 32))
        nn.init.normal_(self.second.weight, std=2 / 32)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        made = self.embed(condition)
        hidden = functional.relu(torch.einsum("bi,bio->bo", x, self.first(made).view(-1, 16, 32)))
        return torch.einsum("bi,bio->bo", hidden, self.second(made).view(-1, 32, 3))


def test_a_weight_that_makes_weights_is_shrunk_by_the_size_of_what_they_put_out() -> None:
    target = torch.randn(64, 3)
    case, diagnosis = judged(
        lambda: Case(
            Hypernet(), (torch.randn(64, 16), 2 * torch.randn(64, 4)), lambda out: functional.mse_loss(out, target)
        )
    )
    assert serious(diagnosis) == [("F309", "second.weight")]
    after = mended(case, diagnosis)
    assert not serious(after)
    assert after.signals.loss is not None
    assert after.signals.uninformed is not None
    assert after.signals.loss < 1.5 * after.signals.uninformed


class Decaying(nn.Module):
    """A state of a few decay rates, whose logarithms are a parameter, and its sum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.arange(8.0).log().repeat(16, 1))
        self.enter, self.lengths, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(16, 8)
        for step, length in zip(self.enter(x).unbind(1), functional.softplus(self.lengths(x)).unbind(1), strict=True):
            state = state * torch.exp(-length[..., None] * self.rates.exp()) + step[..., None]
        result: Tensor = self.head(state.mean(-1))
        return result


def test_what_is_of_no_known_role_is_drawn_as_its_finite_values_are() -> None:
    case, diagnosis = judged(lambda: Case(Decaying(), torch.randn(8, 12, 8)))
    assert serious(diagnosis) == [("F104", "rates")]
    mended(case, diagnosis)
    rates = case.model.get_parameter("rates").detach()
    finite = torch.arange(1.0, 8.0).log()
    torch.testing.assert_close(rates.mean(), finite.mean(), rtol=0.2, atol=0.0)
    torch.testing.assert_close(rates.std(), finite.std(correction=0), rtol=0.2, atol=0.0)


def test_one_bias_of_all_outputs_of_a_binary_cross_entropy_is_blamed_itself() -> None:
    def build() -> Case:
        model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))
        nn.init.constant_(model[2].bias, 10.0)
        target = (torch.rand(8, 1, 12, 12) < 0.5).float()
        loss = functional.binary_cross_entropy_with_logits
        return Case(model, torch.randn(8, 3, 12, 12), lambda out: loss(out, target))

    case, diagnosis = judged(build)
    assert [str(edit) for found in diagnosis.of("F309") for edit in found.edits] == ["2.bias → zeros"]
    assert not serious(mended(case, diagnosis))


class Autoencoder(nn.Module):
    """A variational one, which returns its input beside what it makes of it."""

    def __init__(self, log_variance: float) -> None:
        super().__init__()
        self.enter, self.mean, self.spread, self.out = map(nn.Linear, (16, 32, 32, 4), (32, 4, 4, 16))
        nn.init.constant_(self.spread.bias, log_variance)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = functional.relu(self.enter(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        made = self.out(mean + torch.randn_like(mean) * (spread / 2).exp())
        return {"made": made, "mean": mean, "spread": spread, "x": x}


def evidence_bound(out: dict[str, Tensor]) -> Tensor:
    prior = (out["spread"].exp() + out["mean"].square() - 1 - out["spread"]) / 2
    return ((out["made"] - out["x"]).square().sum(-1) + prior.sum(-1)).mean()


@pytest.mark.parametrize(("log_variance", "places"), [(20.0, ["spread.bias"]), (0.0, [])])
def test_what_makes_exponents_is_to_blame_for_a_loss_that_grows_exponentially(
    log_variance: float, places: list[str]
) -> None:
    case, diagnosis = judged(lambda: Case(Autoencoder(log_variance), torch.randn(32, 16), evidence_bound))
    assert diagnosis.signals.uninformed == pytest.approx(float(case.inputs.square().sum(-1).mean()))
    assert [found.place for found in diagnosis.of("F309")] == places
    assert not serious(mended(case, diagnosis))


class Added(nn.Module):
    """x + W relu(V x) in a row, without norms, whose weights are far too large."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(32, 32) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(32, 32) for _ in range(blocks))
        self.head = nn.Linear(32, 5)
        for layer in (*self.inner, *self.outer):
            nn.init.normal_(layer.weight, std=3 * 32**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(functional.relu(inner(x)))
        result: Tensor = self.head(x)
        return result


def test_a_stream_without_norms_is_mended_by_all_weights_of_its_branches() -> None:
    case, found = judged(lambda: Case(Added(8), torch.randn(32, 32), classes(5, 32)))
    assert "F307" in found.codes
    assert "F307" not in mended(case, found).codes


class Places(nn.Module):
    """Positions that are one vector of the size of small tokens, before an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(30, 16), nn.Linear(16, 5)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.places = nn.Parameter(torch.randn(16).mul(0.02).expand(10, 16).clone())
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.attention(self.tokens(x) + self.places).mean(1))
        return result


def test_equal_positions_are_drawn_as_large_as_they_were() -> None:
    case, found = judged(lambda: Case(Places(), torch.randint(30, (32, 10)), classes(5, 32)))
    assert "F101" in found.codes
    assert not {"F101", "F207"} & set(mended(case, found).codes)
