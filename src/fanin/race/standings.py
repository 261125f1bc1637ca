"""The judgement: each recipe at its own best learning rate, against chance and against the best recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from fanin.race.runs import Run

STUCK = 0.05
"""Less than this share of the way from chance to zero loss: stuck at chance."""
SLOW = 0.5
"""Less than this share of the best recipe's way down from chance: slow."""
BLOWN_UP = 2.0
"""A final loss above this multiple of chance: diverged, though still a number."""


class Verdict(StrEnum):
    """What became of a recipe at its best learning rate, by the median over seeds."""

    TRAINS = "trains"
    SLOW = "slow"
    STUCK = "stuck at chance"
    DIVERGED = "diverged"


DEFINITIONS = {
    Verdict.TRAINS: f"came down from chance at least {SLOW:.0%} as far as the best recipe",
    Verdict.SLOW: f"left chance, but came down less than {SLOW:.0%} as far as the best recipe",
    Verdict.STUCK: f"the loss fell less than {STUCK:.0%} below chance",
    Verdict.DIVERGED: f"the loss stopped being a number or ended above {BLOWN_UP:g} × chance",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """One recipe at the learning rate that suits it best.

    Args:
        recipe: its name.
        verdict: in words.
        lr: the learning rate with the lowest median loss.
        loss: the median over seeds of the final training loss.
        low, high: the lowest and highest over seeds.
        accuracy: the median over seeds of the accuracy on held-out examples, where it is known.
        runs: the runs at that learning rate, by seed.
    """

    recipe: str
    verdict: Verdict
    lr: float
    loss: float
    low: float
    high: float
    accuracy: float | None
    runs: tuple[Run, ...]


def best_lr(runs: Iterable[Run]) -> tuple[Run, ...]:
    """One recipe's runs at the learning rate with the lowest median final loss; the smallest one when they tie."""
    by_lr: dict[float, list[Run]] = {}
    for run in runs:
        by_lr.setdefault(run.lr, []).append(run)
    chosen = min(sorted(by_lr), key=lambda lr: median(run.final for run in by_lr[lr]))
    return tuple(sorted(by_lr[chosen], key=lambda run: run.seed))


def judge(loss: float, chance: float, best: float) -> Verdict:
    """The verdict on a final loss.

    Args:
        loss: the median over seeds, at the best learning rate.
        chance: the loss of the best constant prediction.
        best: the lowest such loss among the recipes.

    >>> [str(judge(loss, chance=2.3, best=0.1)) for loss in (0.2, 1.9, 2.3, math.inf)]
    ['trains', 'slow', 'stuck at chance', 'diverged']
    """
    if not math.isfinite(loss) or loss > BLOWN_UP * chance:
        return Verdict.DIVERGED
    if loss >= (1 - STUCK) * chance:
        return Verdict.STUCK
    return Verdict.TRAINS if chance - loss >= SLOW * (chance - best) else Verdict.SLOW


def standings(recipes: Sequence[str], runs: Iterable[Run], chance: float) -> tuple[Standing, ...]:
    """The recipes that have runs, best first; those with the same verdict and loss keep their order."""
    by_recipe: dict[str, list[Run]] = {recipe: [] for recipe in recipes}
    for run in runs:
        by_recipe[run.recipe].append(run)
    chosen = {recipe: best_lr(of_recipe) for recipe, of_recipe in by_recipe.items() if of_recipe}
    losses = {recipe: median(run.final for run in of_recipe) for recipe, of_recipe in chosen.items()}
    best = min(losses.values(), default=math.inf)
    result = []
    for recipe, of_recipe in chosen.items():
        accuracies = [run.accuracy for run in of_recipe if run.accuracy is not None]
        finals = [run.final for run in of_recipe]
        result.append(
            Standing(
                recipe=recipe,
                verdict=judge(losses[recipe], chance, best),
                lr=of_recipe[0].lr,
                loss=losses[recipe],
                low=min(finals),
                high=max(finals),
                accuracy=median(accuracies) if accuracies else None,
                runs=of_recipe,
            )
        )
    order = list(Verdict)
    # Among the stuck and the diverged, differences in loss are noise: they stay in the order that was asked for.
    return tuple(sorted(result, key=lambda s: (order.index(s.verdict), s.loss if s.verdict in order[:2] else 0.0)))
