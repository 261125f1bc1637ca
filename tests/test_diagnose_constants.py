"""What is no parameter and still decides how a model starts: tables of places, powers, plain numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.comparison.workers import one_thread
from judging import Case, judged, serious


def sinusoids(length: int, width: int) -> Tensor:
    angles = torch.arange(length)[:, None] * torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Placed(nn.Module):
    """Tokens and sinusoids, which are a buffer, a frozen parameter, or computed on the way."""

    def __init__(self, kind: str, *, scale: float = 1.0, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.norm, self.head = nn.Embedding(90, 64), nn.LayerNorm(64), nn.Linear(64, 90, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight
        self.kind, self.scale = kind, scale
        if kind == "buffer":
            self.register_buffer("places", sinusoids(32, 64))
        if kind == "frozen":
            self.places = nn.Parameter(sinusoids(32, 64), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = sinusoids(ids.shape[1], 64) if self.kind == "computed" else self.places[: ids.shape[1]]
        x = self.tokens(ids) * self.scale
        result: Tensor = self.head(self.norm(x + places))
        return result


def placed(kind: str, **settings: Any) -> Case:
    ids = torch.randint(90, (8, 32))
    return Case(Placed(kind, **settings), ids, lambda x: functional.cross_entropy(x.flatten(0, 1), ids.flatten()))


@pytest.mark.parametrize(("kind", "place"), [("buffer", "places"), ("frozen", "places"), ("computed", "add")])
def test_places_that_drown_the_tokens_are_found_whatever_they_are(kind: str, place: str) -> None:
    assert ("F207", place) in serious(judged(lambda: placed(kind))[1])


@pytest.mark.parametrize("kind", ["buffer", "frozen", "computed"])
def test_tokens_that_are_scaled_up_are_healthy(kind: str) -> None:
    assert not serious(judged(lambda: placed(kind, scale=8.0))[1])


def test_tokens_far_over_their_places_are_found() -> None:
    assert ("F207", "places") in serious(judged(lambda: placed("buffer", scale=1e4))[1])


def test_the_tokens_are_drawn_larger_where_the_places_are_fixed() -> None:
    case, diagnosis = judged(lambda: placed("buffer"))
    (edit,) = diagnosis.of("F207")[0].edits
    assert edit.pattern == "tokens.weight"
    with one_thread():
        fanin.apply(diagnosis.fix(), case.model, seed=0)
        assert not serious(fanin.diagnose(case.model, case.inputs, loss=case.loss))


def test_a_table_that_gives_the_logits_too_is_left_alone() -> None:
    _, diagnosis = judged(lambda: placed("buffer", tied=True))
    (found,) = diagnosis.of("F207")
    assert not found.edits


class Offset(nn.Module):
    """A layer whose output something constant is added to, that tells no places apart: noise's mean, a mask."""

    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(functional.layer_norm(self.first(x), (16,)) + self.constant)
        return result


@pytest.mark.parametrize("constant", [torch.full((16,), 30.0), torch.full((6, 16), -1e9).triu(1)])
def test_what_is_no_table_of_places_is_none(constant: Tensor) -> None:
    assert "F207" not in judged(lambda: Case(Offset(constant), torch.randn(5, 6, 8)))[1].codes


class Grown(nn.Module):
    """A net in half precision whose signal grows on its way by something else than a weight, and is normalized."""

    def __init__(self, by: str, size: float) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 5)
        self.factor = nn.Parameter(torch.tensor(min(size, 1e4)))
        self.by, self.size = by, size
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[:1, None] * 0 + torch.eye(64, dtype=x.dtype)) * -self.size
        x = self.first(x)
        if self.by == "number":
            x = x.relu() * self.size
        elif self.by == "parameter":
            x = x * self.factor
        elif self.by == "power":
            x = (x * self.size).square()
        elif self.by == "mask":
            x = (x[:, None] * x[:, :, None] / 8 + mask).softmax(-1).mean(1)
        result: Tensor = self.last(self.norm(x))
        absent = torch.arange(5) > 3
        if self.by == "added class":
            return result + torch.zeros(5, dtype=x.dtype).masked_fill(absent, -self.size)
        return result.masked_fill(absent, -self.size) if self.by == "class" else result


def grown(by: str, size: float) -> Case:
    return Case(Grown(by, size), torch.randn(32, 64).half(), lambda x: x[:, :4].float().square().mean())


@pytest.mark.parametrize(
    ("by", "size", "place"), [("number", 9000.0, "mul"), ("parameter", 9000.0, "mul"), ("power", 60.0, "square")]
)
def test_what_comes_near_the_end_of_half_precision_is_found(by: str, size: float, place: str) -> None:
    assert ("F310", place) in serious(judged(lambda: grown(by, size))[1])


@pytest.mark.parametrize(
    ("by", "size"),
    [
        ("number", 900.0),
        ("parameter", 900.0),
        ("power", 6.0),
        ("mask", 65504.0),
        ("class", 65504.0),
        ("class", math.inf),
        ("added class", math.inf),
        ("nothing", 65504.0),
    ],
)
def test_what_stays_far_from_it_and_what_is_masked_are_healthy(by: str, size: float) -> None:
    assert "F310" not in judged(lambda: grown(by, size))[1].codes


def test_a_factor_that_is_a_parameter_is_mended() -> None:
    case, diagnosis = judged(lambda: grown("parameter", 9000.0))
    with one_thread():
        fanin.apply(diagnosis.fix(), case.model, seed=0)
        assert "F310" not in fanin.diagnose(case.model, case.inputs, loss=case.loss).codes
