"""The automatic recipe: weights go by what they take in, as sums, means and rows of tables."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import fanin
from fanin.graph import Role
from fanin.recipes import recipe_named
from fanin.schemes import Keep
from fanin.tracing.modules import graph_of
from small_nets import Branch, planned

pytestmark = pytest.mark.usefixtures("untouched_random_state")


def test_positions_are_no_louder_than_the_tied_embedding() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(40, 16), nn.Embedding(8, 16)
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 40, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.tokens(x) + self.places(torch.arange(x.shape[1]))))

    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(Language(), torch.zeros(2, 8, dtype=torch.long))
    assert plan["tokens.weight"].std == pytest.approx(1 / 4)
    assert plan["places.weight"].role == Role.POSITION
    assert plan["places.weight"].std == pytest.approx(1 / 8)


class Attending(nn.Module):
    """Patches and places before an attention, with a bias for its scores, or before convolutions."""

    def __init__(self, attends: bool = True, trained: bool = True, factor: float | None = None) -> None:
        super().__init__()
        self.patches, self.head, self.attends = nn.Linear(6, 16), nn.Linear(16, 3), attends
        self.places = nn.Parameter(torch.zeros(1, 8, 16), requires_grad=trained)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.between, self.factor = nn.Parameter(torch.zeros(8, 8)), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x) + self.places
        if self.attends:
            scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
            scores = scores + (self.between if self.factor is None else self.factor * self.between)
            x = x + scores.softmax(-1) @ self.value(x)
        else:
            x = functional.relu(self.value(x))
        return self.head(x.mean(1))


def test_positions_are_half_as_large_as_what_stands_beside_them_and_as_large_as_scores() -> None:
    plan = planned(Attending, 2, 8, 6)
    assert plan["places"].std == pytest.approx(1 / 2)
    assert plan["between"].std == pytest.approx(1)
    assert planned(lambda: Attending(factor=8.0), 2, 8, 6)["between"].scheme == Keep()
    assert planned(lambda: Attending(attends=False), 2, 8, 6)["places"].scheme == Keep()
    assert planned(lambda: Attending(trained=False), 2, 8, 6)["places"].scheme == Keep()


class Factors(nn.Module):
    """Two tables whose rows meet, in a dot product or place by place."""

    def __init__(self, meet: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.users, self.items, self.head = nn.Embedding(60, 64), nn.Embedding(60, 64), nn.Linear(64, 1)
        self.meet = meet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        met = self.meet(self.users(x[:, 0]), self.items(x[:, 1]))
        return self.head(met) if met.shape[-1] == 64 else met


MEETINGS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], bool]] = {
    "summed": (lambda u, i: (u * i).sum(-1), True),
    "weighed and summed": (lambda u, i: (0.5 * u * i).sum(-1, keepdim=True), True),
    "matrices": (lambda u, i: torch.bmm(u.unsqueeze(1), i.unsqueeze(2)).flatten(1), True),
    "einsum": (lambda u, i: torch.einsum("nd,nd->n", u, i), True),
    "place by place": (lambda u, i: u * i, False),
    "pooled": (lambda u, i: (torch.stack([u, i], 1) * torch.stack([i, u], 1)).sum(1), False),
}


@pytest.mark.parametrize("kind", MEETINGS)
def test_embeddings_in_a_dot_product_have_rows_of_unit_length(kind: str) -> None:
    meet, dotted = MEETINGS[kind]
    with torch.random.fork_rng(devices=[]):
        model, x = Factors(meet), torch.stack([torch.arange(60), torch.arange(60).flip(0)], 1)
    plan = fanin.plan(model, x)
    assert plan["users.weight"].node.dot_product == dotted
    assert plan["users.weight"].std == plan["items.weight"].std == (1 / 8 if dotted else 1)
    fanin.apply(plan, model, seed=0)
    assert model(x).square().mean() < 4


class DeepSet(nn.Module):
    """A layer of each element, what the elements come to, and a layer of that."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.each, self.all, self.head = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 2)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.all(self.pool(torch.relu(self.each(x))))))


def test_what_takes_in_a_sum_divides_by_its_terms() -> None:
    """A net of the sum over a set puts out what a net of the mean would, however large the set is."""
    answers = []
    for pool in (lambda y: y.sum(1), lambda y: y.mean(1)):
        with torch.random.fork_rng(devices=[]):
            model = DeepSet(pool)
        x = torch.randn(8, 100, 16, generator=torch.Generator().manual_seed(0))
        fanin.initialize(model, x, seed=0)
        with torch.no_grad():
            answers.append(model(x))
    torch.testing.assert_close(answers[0], answers[1])


def attention(y: torch.Tensor) -> torch.Tensor:
    return (y * y.mean(-1, keepdim=True).softmax(1)).sum(1)


def halves(y: torch.Tensor) -> torch.Tensor:
    """Sums of five elements each, beside one another."""
    return y.unflatten(1, (2, 5)).sum(2).flatten(1)[:, :64]


@pytest.mark.parametrize(
    ("pool", "terms"), [(lambda y: y.sum(dim=1, keepdim=True).squeeze(1), 10), (halves, 5), (attention, 1)]
)
def test_sums_are_told_from_means_and_weighted_sums(pool: Callable[[torch.Tensor], torch.Tensor], terms: int) -> None:
    plan = planned(lambda: DeepSet(pool), 3, 10, 16)
    assert plan["all.weight"].node.summed == terms
    assert plan["all.weight"].std == pytest.approx(math.sqrt(2) / 8 / terms, rel=1e-6)
    assert plan["head.weight"].std == pytest.approx(1 / 8, rel=1e-6)


def by_index(y: torch.Tensor) -> torch.Tensor:
    """Sums of five elements each, as over the neighbours in a graph."""
    flat, to = y.flatten(0, 1), torch.arange(30).div(5, rounding_mode="floor")
    return torch.zeros(6, y.shape[-1]).index_add(0, to, flat)


def scattered(y: torch.Tensor) -> torch.Tensor:
    flat, to = y.flatten(0, 1), torch.arange(30).div(5, rounding_mode="floor")
    return torch.zeros(6, y.shape[-1]).scatter_add_(0, to[:, None].expand_as(flat), flat)


def reduced(y: torch.Tensor) -> torch.Tensor:
    flat, to = y.flatten(0, 1), torch.arange(30).div(5, rounding_mode="floor")
    index = to[:, None].expand_as(flat)
    return torch.zeros(6, y.shape[-1]).scatter_reduce_(0, index, flat, "mean", include_self=False)


def beside_itself(y: torch.Tensor) -> torch.Tensor:
    return y[:2].flatten(0, 1)[:6] + by_index(y)


def by_matrix(y: torch.Tensor) -> torch.Tensor:
    """As by_index: who is whose neighbour stands in a matrix of zeros and ones."""
    return torch.eye(6).repeat_interleave(5, dim=1) @ y.flatten(0, 1)


def by_signs(y: torch.Tensor) -> torch.Tensor:
    """Differences of pairs, which no common mean adds up in."""
    return torch.tensor([[1.0, -1.0]]).repeat(6, 15) @ y.flatten(0, 1)


@pytest.mark.parametrize(
    ("pool", "terms"),
    [(by_matrix, 5), (lambda y: y[:2].flatten(0, 1)[:6] + by_matrix(y), 6), (by_signs, 1)],
    ids=["neighbours", "beside itself", "differences"],
)
def test_sums_by_a_constant_matrix_divide_by_what_its_rows_add_up_to(
    pool: Callable[[torch.Tensor], torch.Tensor], terms: int
) -> None:
    assert planned(lambda: DeepSet(pool), 3, 10, 16)["all.weight"].node.summed == terms


@pytest.mark.parametrize(("pool", "terms"), [(by_index, 5), (scattered, 5), (reduced, 1), (beside_itself, 6)])
def test_sums_by_index_divide_by_the_mean_degree(pool: Callable[[torch.Tensor], torch.Tensor], terms: int) -> None:
    plan = planned(lambda: DeepSet(pool), 3, 10, 16)
    assert plan["all.weight"].node.summed == terms
    assert plan["all.weight"].std == pytest.approx(math.sqrt(2) / 8 / terms, rel=1e-6)


@pytest.mark.parametrize(
    ("activation", "pool", "averaged"),
    [
        (torch.tanh, lambda y: y.mean(1), 10),
        (torch.relu, lambda y: y.mean(1), 1),
        (torch.tanh, lambda y: y.amax(1), 1),
        (torch.tanh, lambda y: functional.adaptive_avg_pool1d(y.transpose(1, 2), 1).flatten(1), 10),
    ],
)
def test_what_takes_in_a_mean_makes_up_for_half_of_what_is_lost(
    activation: Callable[[torch.Tensor], torch.Tensor], pool: Callable[[torch.Tensor], torch.Tensor], averaged: int
) -> None:
    """tanh has no mean, so that an average of its values is small; rectified values have one, and it stays."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.head = nn.Linear(16, 64), nn.Linear(64, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(pool(activation(self.each(x))))

    row = planned(Pooled, 3, 10, 16)["head.weight"]
    assert row.node.averaged == averaged
    assert row.std == pytest.approx(averaged**0.25 / 8, rel=1e-6)


@pytest.mark.parametrize(("mode", "factor"), [("mean", 40**0.25), ("sum", 1 / 40), ("max", 1.0)])
def test_what_takes_in_a_bag_makes_up_for_its_size(mode: str, factor: float) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.EmbeddingBag(20, 16, mode=mode), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = fanin.plan(model, torch.randint(20, (5, 40), generator=torch.Generator().manual_seed(0)))
    assert plan["1.weight"].std == pytest.approx(factor * math.sqrt(2) / 4, rel=1e-6)


def test_tokens_of_a_stream_keep_the_head_as_it_is() -> None:
    """Attention and mixing make positions alike, so that their mean is as large as they are."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(16, 16), Branch(norm=True), nn.LayerNorm(16))
            self.head = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).mean(1))

    row = planned(Pooled, 3, 10, 16)["head.weight"]
    assert row.node.averaged == 10
    assert row.std == pytest.approx(1 / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("behind", "std"),
    [
        (lambda: [nn.Flatten(), nn.Linear(128, 8), nn.ReLU()], 1 / 4),
        (lambda: [nn.Flatten(), nn.Linear(128, 8), nn.LayerNorm(8), nn.ReLU()], 1 / 4),
        (lambda: [nn.LayerNorm(16), nn.Flatten(), nn.Linear(128, 8), nn.ReLU()], 1.0),
        (lambda: [Branch(norm=True), nn.LayerNorm(16), nn.Flatten(), nn.Linear(128, 8)], 1.0),
    ],
)
def test_embeddings_before_plain_layers_have_rows_of_unit_length(
    behind: Callable[[], list[nn.Module]], std: float
) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Embedding(20, 16), *behind(), nn.Linear(8, 2))
        plan = fanin.plan(model, torch.randint(20, (4, 8)))
    assert plan["0.weight"].std == pytest.approx(std)


def test_a_last_weight_before_the_unknown_has_no_rectifier_behind_it() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.pairwise_distance(self.tower(x[:, 0]), self.tower(x[:, 1]))

    plan = planned(Pairs, 4, 2, 16)
    assert plan["tower.0.weight"].std == pytest.approx(math.sqrt(2) / 4)
    assert plan["tower.2.weight"].std == pytest.approx(1 / 4)
    assert "no weight comes after" in plan["tower.2.weight"].reason


@pytest.mark.parametrize("tied", [True, False])
def test_a_layer_that_takes_in_a_tied_table_makes_up_for_its_size(tied: bool) -> None:
    """As the projection of MobileBERT and of small OPT does; three neighbours are joined as in the former."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.project = nn.Embedding(50, 16), nn.Linear(48, 64)
            self.head = nn.Linear(16, 50, bias=False)
            self.body = nn.Sequential(nn.Linear(64, 16), Branch(norm=True))
            if tied:
                self.head.weight = self.table.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.table(tokens)
            x = self.project(torch.cat([x.roll(1, 1), x, x.roll(-1, 1)], -1))
            return self.head(self.body(x))

    with torch.random.fork_rng(devices=[]):
        model, tokens = Projected(), torch.arange(20).view(2, 10)
    fanin.initialize(model, tokens, seed=0)
    x = model.table(tokens)
    made = model.project(torch.cat([x, x, x], -1)[..., :48])
    assert 0.5 < made.square().mean().sqrt() < 2
    assert fanin.trace(model, tokens)["project.weight"].table_before == "table.weight"


def test_long_sums_are_followed_no_further_than_one_step() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x
            for _ in range(3000):
                total = total + torch.sin(x)
            return self.head(total)

    plan = planned(Running, 2, 8)
    assert not plan.notes, "described by its module's type, where the walk fails"
    assert "output layer" in plan["head.weight"].reason


def test_tables_of_a_net_with_norms_that_was_not_traced_keep_unit_variance() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 2))
    plan = recipe_named("auto")(graph_of(model))
    assert plan["0.weight"].std == 1.0


class Weighed(nn.Module):
    """Sinusoids times a learned number, added to what an attention takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.alpha = nn.Linear(16, 16), nn.Parameter(torch.ones(()))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.register_buffer("waves", torch.randn(5, 16).sin())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x) + self.alpha * self.waves
        return self.attention(x, x, x)[0]


def test_a_number_before_fixed_positions_is_kept() -> None:
    assert planned(Weighed, 2, 5, 16)["alpha"].scheme == Keep()


class Modulated(nn.Module):
    """A branch with a shift and a factor, from a condition and a table of the block's own, as in PixArt."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.condition = nn.Linear(6, 16), nn.Linear(6, 32)
        self.table = nn.Parameter(torch.randn(2, 16) / 4)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.table + self.condition(x[:, 0]).reshape(len(x), 2, 16)).chunk(2, 1)
        x = self.enter(x)
        h = x * (1 + scale) + shift
        return self.head(x + self.attention(h, h, h)[0])


def test_a_table_of_shifts_and_factors_is_kept() -> None:
    assert planned(Modulated, 2, 5, 6)["table"].scheme == Keep()


class Seeing(nn.Module):
    """Patches beside words whose table is the output layer too; both have positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(40, 16), nn.Linear(6, 16)
        self.beside_words, self.beside_patches = (nn.Parameter(torch.zeros(5, 16)) for _ in range(2))
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.words(words) + self.beside_words, self.patches(patches) + self.beside_patches], 1)
        return self.head(self.attention(x, x, x)[0])


def test_positions_go_by_what_they_are_added_to_and_not_by_another_table() -> None:
    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(Seeing(), (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, 6)))
    assert plan["beside_words"].std == pytest.approx(1 / 8)
    assert plan["beside_patches"].std == pytest.approx(1 / 2)
