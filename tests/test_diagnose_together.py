"""What the edits of several findings give together: sums of tables, tied matrices, what an edit brings to light."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fanin.diagnoses import Diagnosis, Severity
from judging import Case, classes, judged, mended, serious

WIDTH, TOKENS, PLACES = 64, 96, 16


class Language(nn.Module):
    """Tokens and positions, two pre-norm branches, a norm, and logits from the tokens' own table or from another."""

    def __init__(self, *, tied: bool, std: float = 0.02) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        for weight in (self.tokens.weight, self.places.weight):
            nn.init.normal_(weight, std=std)
        for layer in (*self.ups, *self.downs, self.head):
            nn.init.normal_(layer.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(functional.gelu(up(norm(x))))
        result: Tensor = self.head(self.last(x))
        return result


def language(*, tied: bool, std: float = 0.02) -> Case:
    tokens = torch.randint(TOKENS, (8, PLACES))
    target = tokens.roll(-1, 1).flatten()
    return Case(Language(tied=tied, std=std), tokens, lambda out: functional.cross_entropy(out.flatten(0, 1), target))


def sizes(case: Case, *names: str) -> list[float]:
    return [float(case.model.get_parameter(name).detach().std()) for name in names]


def first_loss(diagnosis: Diagnosis) -> float:
    assert diagnosis.signals.loss is not None
    return diagnosis.signals.loss


@pytest.mark.parametrize("fault", ["shards", "rows"])
def test_a_tied_matrix_is_drawn_so_small_that_the_first_loss_knows_nothing(fault: str) -> None:
    def build() -> Case:
        case = language(tied=True)
        table = case.model.get_parameter("tokens.weight").data
        if fault == "shards":
            table.copy_(table[: TOKENS // 4].repeat(4, 1))
        else:
            table[-8:] = 0
        return case

    case, diagnosis = judged(build)
    assert serious(diagnosis) == [("F103" if fault == "shards" else "F107", "tokens.weight")]
    after = mended(case, diagnosis)
    assert not serious(after)
    assert first_loss(after) < math.log(TOKENS) + 0.3


class Relative(nn.Module):
    """Attention with a bias for each distance and head, looked up in a table, as T5 has it; the tokens are tied."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.tokens, self.distances = nn.Embedding(TOKENS, WIDTH), nn.Embedding(2 * PLACES, 4)
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.tokens.weight, std=std)
        nn.init.normal_(self.distances.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        place = torch.arange(tokens.shape[1])
        bias = self.distances(place[:, None] - place + PLACES).permute(2, 0, 1)[None]
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(attention.transpose(1, 2).flatten(2))
        return functional.linear(self.last(x), self.tokens.weight)


def test_a_bias_of_scores_is_no_position_beside_the_tokens() -> None:
    def build() -> Case:
        return language(tied=True)._replace(model=Relative(200.0))

    case, diagnosis = judged(build)
    assert "F204" in diagnosis.codes
    assert "F207" not in diagnosis.codes
    assert not serious(mended(case, diagnosis))


class Patches(nn.Module):
    """Fixed positions beside patches; a class is looked up for another use before them."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.patches, self.classes = nn.Linear(12, WIDTH), nn.Embedding(5, WIDTH)
        self.shift, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.places: Tensor
        angles = torch.arange(PLACES)[:, None] / 100 ** (torch.arange(WIDTH) / WIDTH)
        self.register_buffer("places", size * angles.sin())

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        shift = self.shift(self.classes(classes))[:, None]
        x = self.patches(x) + self.places
        x = x + self.up(self.norm(x) + shift)
        result: Tensor = self.head(x.mean(1))
        return result


def patches(size: float, gain: float) -> Case:
    model = Patches(size)
    nn.init.normal_(model.patches.weight, std=gain / 12**0.5)
    nn.init.zeros_(model.patches.bias)
    return Case(model, (torch.randn(16, PLACES, 12), torch.arange(16) % 5))


def test_beside_fixed_positions_the_layer_that_made_the_tokens_is_raised() -> None:
    case, diagnosis = judged(lambda: patches(1.0, 0.02))
    (found,) = diagnosis.of("F207")
    assert (found.place, [edit.pattern for edit in found.edits]) == ("places", ["patches.weight"])
    assert not serious(mended(case, diagnosis))


def test_fixed_positions_that_are_far_too_large_are_no_plans_to_mend() -> None:
    (found,) = judged(lambda: patches(60.0, 1.0))[1].of("F207")
    assert found.place == "places"
    assert not found.edits
    assert "in the model's code" in found.remedy


@pytest.mark.parametrize("tied", [False, True])
def test_tables_that_are_small_together_are_drawn_together(tied: bool) -> None:
    case, diagnosis = judged(lambda: language(tied=tied, std=1e-5))
    assert "F301" in diagnosis.codes
    assert not serious(mended(case, diagnosis))
    tokens, places = sizes(case, "tokens.weight", "places.weight")
    assert tokens == pytest.approx(places, rel=0.1)


@pytest.mark.parametrize(("tied", "size"), [(True, 1e15), (False, 1e15), (False, 1e-5)])
def test_positions_follow_tokens_as_they_will_be(tied: bool, size: float) -> None:
    def build() -> Case:
        case = language(tied=tied)
        nn.init.normal_(case.model.get_parameter("tokens.weight"), std=size)
        return case

    case, diagnosis = judged(build)
    assert "F207" in diagnosis.codes
    assert not serious(mended(case, diagnosis))
    tokens, places = sizes(case, "tokens.weight", "places.weight")
    assert 0.01 < places < 2
    assert 0.01 < tokens < 2


def test_what_a_weight_norm_hides_is_drawn_through_it() -> None:
    def build() -> Case:
        with pytest.warns(FutureWarning):
            layers = [nn.utils.weight_norm(nn.Linear(24, 24)) for _ in range(3)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), nn.Linear(24, 4))
        return Case(model, torch.randn(32, 24))

    case, diagnosis = judged(build)
    assert len(diagnosis.of("F202")) == 3
    assert not serious(mended(case, diagnosis))


def test_zeros_under_a_spectral_norm_are_drawn() -> None:
    def build() -> Case:
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(24, 32))
        nn.init.zeros_(first.get_parameter("parametrizations.weight.original"))
        return Case(nn.Sequential(first, nn.ReLU(), nn.Linear(32, 4)), torch.randn(32, 24))

    case, diagnosis = judged(build)
    assert serious(diagnosis) == [("F310", "0")]
    assert not serious(mended(case, diagnosis))


@pytest.mark.parametrize(("gain", "foreseen"), [(4.0, True), (0.5, False)])
def test_attention_that_a_mended_norm_would_make_sharp_is_mended_with_it(gain: float, foreseen: bool) -> None:
    def build() -> Case:
        model = Relative(1.0)
        model.tokens.weight = nn.Parameter(model.tokens.weight.detach() / 50)
        nn.init.normal_(model.qkv.weight, std=gain / WIDTH**0.5)
        nn.init.normal_(model.norm.weight, std=0.3)
        return language(tied=True)._replace(model=model)

    case, diagnosis = judged(build)
    assert serious(diagnosis) == [("F205", "norm.weight")]
    assert [found.severity for found in diagnosis.of("F308")] == [Severity.NOTE] * foreseen
    assert not serious(mended(case, diagnosis))


def shifted(norm: str, std: float) -> Case:
    case = language(tied=False)
    nn.init.normal_(case.model.get_parameter(f"{norm}.bias"), std=std)
    return case


@pytest.mark.parametrize("norm", ["norms.0", "last"])
@pytest.mark.parametrize("std", [6.0, 20.0])
def test_a_norms_shift_that_drowns_what_it_shifts_is_found_and_zeroed(norm: str, std: float) -> None:
    case, diagnosis = judged(lambda: shifted(norm, std))
    assert ("F208", f"{norm}.bias") in serious(diagnosis)
    assert [str(edit) for found in diagnosis.findings for edit in found.edits] == [f"{norm}.bias → zeros"]
    assert not serious(mended(case, diagnosis))


def test_a_norms_shift_beside_its_scale_is_healthy() -> None:
    assert not serious(judged(lambda: shifted("norms.1", 1.0))[1])


def test_a_head_is_left_alone_where_the_weights_before_it_make_its_logits_large() -> None:
    """He's rule with the kernel left out, in the two layers of four where it is 5 × 5."""

    def build() -> Case:
        sizes = (3, 5, 5, 3)
        convs = [nn.Conv2d(3 if not index else 32, 32, size, padding=size // 2) for index, size in enumerate(sizes)]
        layers = [part for conv in convs for part in (conv, nn.ReLU())]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8))
        for conv in convs:
            area = 1 if conv.kernel_size[0] == 5 else conv.kernel_size[0] ** 2
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.in_channels * area)))
        return Case(model, torch.randn(8, 3, 12, 12), classes(8, 8))

    case, diagnosis = judged(build)
    (loss,) = diagnosis.of("F309")
    assert "mended before the output layer" in loss.seen
    assert not loss.edits
    assert not serious(mended(case, diagnosis))


class Looking(nn.Module):
    """A layer that is drawn far too large, and an attention without a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.q, self.k, self.v, self.out = (nn.Linear(a, 32) for a in (8, 32, 32, 32, 32))
        self.head = nn.Linear(32, 5)
        nn.init.normal_(self.enter.weight, std=8.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        looked = (self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(32)).softmax(-1) @ self.v(x)
        result: Tensor = self.head(self.out(looked).mean(1))
        return result


def test_queries_are_left_alone_where_what_they_read_is_to_blame() -> None:
    case, diagnosis = judged(lambda: Case(Looking(), torch.randn(8, 24, 8), classes(5, 8)))
    assert {"F201", "F308"} <= set(diagnosis.codes)
    assert not any(found.edits for found in diagnosis.of("F308"))
    assert not serious(mended(case, diagnosis))
