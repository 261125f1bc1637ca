"""The record of a race and its judgement, on hand-written runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from fanin.errors import InputsError
from fanin.race import Comparison, Run, Start, Verdict
from fanin.race.standings import best_lr, judge

CHANCE = math.log(10)


def runs_of(recipe: str, by_lr: dict[float, list[float]]) -> list[Run]:
    """Runs of constant loss: for each learning rate one a seed; infinity diverged."""
    return [
        Run(recipe, lr, seed, () if math.isinf(loss) else (loss,) * 20, diverged=math.isinf(loss), accuracy=0.9)
        for lr, losses in by_lr.items()
        for seed, loss in enumerate(losses)
    ]


@pytest.fixture
def comparison() -> Comparison:
    """Four recipes with the four fates, over two learning rates and three seeds."""
    fates = {
        "stuck": {0.01: [2.3, 2.3, 2.31], 0.1: [2.31, 2.31, 2.31]},
        "good": {0.01: [1.0, 1.1, 1.2], 0.1: [0.1, 0.3, 2.0]},
        "late": {0.01: [1.9, 1.8, 2.0], 0.1: [2.2, 2.2, 2.2]},
        "wild": {0.01: [math.inf, math.inf, 0.1], 0.1: [math.inf, math.inf, math.inf]},
    }
    starts = (
        Start("stuck", ("0", "2"), (1.0, 1e-9), (1.0, 1e-9), (1e-9, 1e-9)),
        Start("good", ("0", "2"), (1.0, 0.5), (1.0, 0.5), (0.1, 0.1)),
        Start("late", ("0", "2"), (0.0, None), (0.0, None), (0.0, 0.0)),
        Start("wild", ("0", "2"), (1.0, None), (1.0, 1e6), (None, 0.1)),
    )
    return Comparison(
        task="four fates",
        recipes=tuple(fates),
        lrs=(0.01, 0.1),
        seeds=(0, 1, 2),
        steps=20,
        batch_size=8,
        optimizer="sgd",
        chance=CHANCE,
        chance_from="the entropy of the labels",
        runs=tuple(run for name, by_lr in fates.items() for run in runs_of(name, by_lr)),
        starts=starts,
    )


def test_each_recipe_is_judged_at_its_own_best_learning_rate(comparison: Comparison) -> None:
    found = {s.recipe: (s.verdict, s.lr, s.loss, s.low, s.high) for s in comparison.standings}
    assert found["good"] == (Verdict.TRAINS, 0.1, 0.3, pytest.approx(0.1), 2.0)
    assert found["late"] == (Verdict.SLOW, 0.01, pytest.approx(1.9), pytest.approx(1.8), 2.0)
    assert found["stuck"][:2] == (Verdict.STUCK, 0.01)
    assert found["wild"][0] == Verdict.DIVERGED
    assert [s.recipe for s in comparison.standings] == ["good", "late", "stuck", "wild"]


@pytest.mark.parametrize(
    ("loss", "best", "verdict"),
    [
        (0.949 * CHANCE, 0.949 * CHANCE, Verdict.TRAINS),
        (0.951 * CHANCE, 0.951 * CHANCE, Verdict.STUCK),
        (0.51 * CHANCE, 0.0, Verdict.SLOW),
        (0.49 * CHANCE, 0.0, Verdict.TRAINS),
        (1.9 * CHANCE, 0.0, Verdict.STUCK),
        (2.1 * CHANCE, 0.0, Verdict.DIVERGED),
        (math.nan, 0.0, Verdict.DIVERGED),
    ],
)
def test_thresholds_are_where_the_definitions_say(loss: float, best: float, verdict: Verdict) -> None:
    assert judge(loss, CHANCE, best) is verdict


def test_one_lucky_seed_does_not_choose_the_learning_rate() -> None:
    lucky = runs_of("he", {0.01: [0.5, 0.5, 0.5], 0.1: [0.1, 2.0, 2.0]})
    assert {run.lr for run in best_lr(lucky)} == {0.01}
    unlucky = runs_of("he", {0.01: [0.5, 0.5, 0.5], 0.1: [0.1, 0.1, math.inf]})
    assert {run.lr for run in best_lr(unlucky)} == {0.1}


def test_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert Run("he", 0.1, 0, (5.0,) * 18 + (1.0, 2.0)).final == 1.5
    assert Run("he", 0.1, 0, (3.0,)).final == 3.0
    assert Run("he", 0.1, 0, (3.0,), diverged=True).final == math.inf


def test_prints_verdicts_causes_and_definitions(comparison: Comparison) -> None:
    text = comparison.report(80)
    assert "good trains (loss 0.3000, chance 2.3026)." in text
    assert "stuck stays at chance (loss 2.3026) at every learning rate: before the first step" in text.replace(
        "\n", " "
    )
    assert "at most 1e-09" in text
    assert "wild diverges at every learning rate: before the first step the last layer's signal is at least 1e+06" in (
        text.replace("\n", " ")
    )
    assert "slow: left chance" in text
    assert max(map(len, text.splitlines())) <= 80


def test_survives_json(comparison: Comparison, tmp_path: Path) -> None:
    assert Comparison.from_json(comparison.to_json()) == comparison
    path = comparison.save(tmp_path / "race.json")
    assert Comparison.load(path) == comparison
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["standings"][0]["verdict"] == "trains"
    assert record["standings"][-1]["loss"] is None, "JSON has no infinity"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fanin": "comparison", "schema": 1}', '{"fanin": "plan"}'])
def test_refuses_what_is_no_comparison(text: str) -> None:
    with pytest.raises(InputsError, match="no comparison"):
        Comparison.from_json(text)


def test_refuses_unknown_suffixes(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(InputsError, match=r"\.json"):
        comparison.save(tmp_path / "race.docx")


def test_an_interrupted_race_is_judged_by_what_is_there(comparison: Comparison) -> None:
    part = replace(comparison, runs=tuple(run for run in comparison.runs if run.recipe in ("good", "stuck")))
    assert [s.recipe for s in part.standings] == ["good", "stuck"]
    assert not part.complete
    assert comparison.complete
    assert "late" not in part.table()


def test_signal_ratio_of_a_dead_start_is_zero() -> None:
    assert Start("zero", ("0", "2"), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)).signal_ratio == 0.0
    assert Start("one", ("0",), (1.0,), (1.0,), (1.0,)).signal_ratio is None
