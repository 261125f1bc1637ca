"""`compare`: what to race, the race itself, and the record of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from fanin.applying import apply
from fanin.comparison.batches import Batches, batches_of, labels_of
from fanin.comparison.objectives import CrossEntropy, LossFunction, MeanSquare, loss_for
from fanin.comparison.randomness import seeded
from fanin.comparison.training import Optimizer, Training, optimizer_for
from fanin.comparison.workers import CHILD, Failure, perform, usable_cores
from fanin.errors import FaninError, InputsError, article, compose
from fanin.planning import plan
from fanin.plans import Plan
from fanin.progress import track
from fanin.race import Comparison, Run, Start
from fanin.recipes import Recipe, resolve
from fanin.tracing.compatibility import settle_autograd

Contestant = Recipe | Plan
BUILT = "built"
"""The contestant that no recipe touches: the parameters stay as ``build`` made them."""

RECIPES: tuple[str, ...] = ("torch", "xavier", "he", "orthogonal", "auto")
LRS = (0.001, 0.003, 0.01, 0.03)

Lane = tuple[str, float | None, int]
"""A job: recipe, learning rate (None: measure the start) and seed."""


def compare(
    build: Callable[[], nn.Module],
    data: Any,
    *,
    recipes: Sequence[Contestant] | Mapping[str, Contestant] = RECIPES,
    lrs: Sequence[float] = LRS,
    seeds: int | Sequence[int] = 3,
    steps: int = 300,
    batch_size: int = 64,
    loss: str | LossFunction | None = None,
    optimizer: str | Optimizer = "sgd",
    inputs: Any = None,
    workers: int | None = None,
    progress: bool = True,
    task: str = "",
) -> Comparison:
    """Race initializations on your own task: every recipe, learning rate and seed, on the same batches.

    Each recipe is judged at its own best learning rate, by the median over seeds; beside the losses, the record holds
    the signal through the layers before the first step. Runs are on the CPU, in processes with one torch thread each;
    the result depends on the arguments alone, not on the number of processes. Ctrl-C keeps what is finished.

    Args:
        build: makes a new model; called once a run, with the global random state seeded.
        data: ``(x, y)`` tensors or arrays; ``((x, y), (x_test, y_test))``; a torch Dataset or DataLoader of such
            pairs, or two of them for training and testing; a list of batches; or a function from a seed to an iterator
            of batches. ``x`` is what the model is called with (a dict: keyword arguments).
        recipes: names, functions or plans; ``"built"`` leaves the model as ``build`` made it. A mapping gives them
            other names.
        lrs: learning rates, positive.
        seeds: how many (0, 1, …), or which. A seed decides the parameters and the order of the batches.
        steps: of the optimizer, at least 1.
        batch_size: for data that does not come in batches.
        loss: ``"cross_entropy"``, ``"mse"``, or a function of output and target; without one, whole-number targets
            take cross-entropy and others mean square.
        optimizer: ``"sgd"``, ``"momentum"`` (0.9), ``"adam"``, ``"adamw"``, or a function of parameters and lr.
        inputs: what plans are traced with; the first batch where not given.
        workers: processes; as many as cores where not given, 1 for none.
        progress: show a bar on a terminal's standard error once it takes more than two seconds.
        task: a line that says what is trained, for the record.

    Raises:
        InputsError: an argument is none of the above, or a run failed; the message says which run and why.
        RecipeError: a recipe is unknown or refuses the model.

    >>> import fanin, torch
    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> deep = lambda: torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    >>> result = fanin.compare(deep, (x, x[:, :1]), recipes=["zero", "he"], lrs=[0.1], seeds=1, steps=20, workers=1)
    >>> [(standing.recipe, str(standing.verdict)) for standing in result.standings]
    [('he', 'trains'), ('zero', 'stuck at chance')]
    """
    _refuse_spawned_race()
    settle_autograd()
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(seed) for seed in seeds)
    lrs = _rates(lrs)
    _check_counts(lrs, seeds, steps, batch_size)
    optimizer_name, optimizer_function = optimizer_for(optimizer)
    notes: list[str] = []
    with seeded(seeds[0]):
        train, held_out = batches_of(data, batch_size, steps)
        labels = labels_of(train)
        criterion = loss_for(loss, labels)
        plans = _plans(build, train, recipes, inputs, seeds[0])
    training = Training(build, plans, train, held_out, criterion, optimizer_function, steps)
    starts, runs = _race(training, lrs, seeds, workers, progress, notes)
    chance, chance_from = _chance(criterion, labels, runs)
    return Comparison(
        task=task,
        recipes=tuple(plans),
        lrs=lrs,
        seeds=seeds,
        steps=steps,
        batch_size=train.batch_size,
        optimizer=optimizer_name,
        chance=chance,
        chance_from=chance_from,
        runs=runs,
        starts=starts,
        notes=tuple(notes),
    )


def _race(
    training: Training,
    lrs: tuple[float, ...],
    seeds: tuple[int, ...],
    workers: int | None,
    progress: bool,
    notes: list[str],
) -> tuple[tuple[Start, ...], tuple[Run, ...]]:
    """The starts and runs in the order of the arguments, whatever the order in which they were finished."""
    # Seeds last: after an interruption, what is finished is as fair as it can be.
    lanes: list[Lane] = [(recipe, None, seeds[0]) for recipe in training.plans]
    lanes += [(recipe, lr, seed) for seed in seeds for lr in lrs for recipe in training.plans]
    results: dict[int, Run | Start] = {}
    stream, note = perform(partial(_job, training), lanes, usable_cores() if workers is None else workers)
    notes += [note] if note else []
    try:
        for _ in track(range(len(lanes)), "fanin: racing") if progress else range(len(lanes)):
            index, result = next(stream)
            if isinstance(result, Failure):
                raise _failed(lanes[index], result)
            results[index] = result
    except KeyboardInterrupt:
        done = sum(isinstance(result, Run) for result in results.values())
        if not done:
            raise
        notes.append(f"interrupted: {done} of {len(lanes) - len(training.plans)} runs were finished")
    finally:
        stream.close()
    ordered = [results[index] for index in sorted(results)]
    runs = [result for result in ordered if isinstance(result, Run)]
    order = {recipe: place for place, recipe in enumerate(training.plans)}
    runs.sort(key=lambda run: (order[run.recipe], run.lr, run.seed))
    return tuple(result for result in ordered if isinstance(result, Start)), tuple(runs)


def _job(training: Training, lane: Lane) -> Run | Start:
    recipe, lr, seed = lane
    return training.start(recipe, seed) if lr is None else training.run(recipe, lr, seed)


def _failed(lane: Lane, failure: Failure) -> InputsError:
    recipe, lr, seed = lane
    where = "before the first step" if lr is None else f"learning rate {lr:g}"
    tail = "\n".join(failure.trace.strip().splitlines()[-9:-1])
    return InputsError(
        compose(
            f"recipe {recipe!r}, {where}, seed {seed}: {failure.error}",
            "a model, data and loss that fit together",
            f"the run failed{f' at{chr(10)}{tail}' if tail else ''}",
            "model, (x, y) = build(), one batch; loss(model(x), y).backward()  # to see it alone",
        )
    )


def _plans(
    build: Callable[[], nn.Module],
    train: Batches,
    recipes: Sequence[Contestant] | Mapping[str, Contestant],
    inputs: Any,
    seed: int,
) -> dict[str, Plan | None]:
    contestants = dict(recipes) if isinstance(recipes, Mapping) else _labelled(recipes)
    if not contestants:
        raise InputsError(compose("no recipes", "at least one", instead=f"recipes={list(RECIPES)}"))
    model = build()
    if not isinstance(model, nn.Module):
        raise InputsError(
            compose(
                f"a build that returns {article(type(model).__name__)}",
                "a function that returns a new nn.Module",
                "every run starts from a model of its own",
                "fanin.compare(lambda: MyModel(), …)",
            )
        )
    example = next(iter(train.stream(seed)))[0] if inputs is None else inputs
    example = tuple(example) if isinstance(example, list) else example
    return {name: _plan(model, example, contestant) for name, contestant in contestants.items()}


def _plan(model: nn.Module, example: Any, contestant: Contestant) -> Plan | None:
    if contestant == BUILT:
        return None
    chosen = contestant if isinstance(contestant, Plan) else plan(model, example, recipe=contestant)
    # Written once here: what does not fit is said before the race, and workers inherit what had to be compiled.
    apply(chosen, model)
    return chosen


def _labelled(recipes: Sequence[Contestant]) -> dict[str, Contestant]:
    if isinstance(recipes, str):
        recipes = [recipes]
    labelled: dict[str, Contestant] = {}
    for recipe in recipes:
        name = _name(recipe)
        if name in labelled:
            instead = f'recipes={{"{name}": …, "{name} 2": …}}'
            raise InputsError(compose(f"two recipes named {name!r}", "names that tell them apart", instead=instead))
        labelled[name] = recipe
    return labelled


def _name(recipe: Contestant) -> str:
    if isinstance(recipe, Plan):
        return recipe.recipe
    return BUILT if recipe == BUILT else resolve(recipe)[0]


def _chance(criterion: LossFunction, labels: Any, runs: Sequence[Run]) -> tuple[float, str]:
    if isinstance(criterion, CrossEntropy) and labels is not None:
        return criterion.chance(labels), "the entropy of the labels, the loss of guessing by their frequencies"
    if isinstance(criterion, MeanSquare) and labels is not None:
        return criterion.chance(labels), "the variance of the targets, the loss of always predicting their mean"
    firsts = [run.losses[0] for run in runs if run.losses]
    return min(firsts, default=1.0), "the lowest loss before the first step (what chance is under this loss is unknown)"


def _rates(lrs: Sequence[float]) -> tuple[float, ...]:
    try:
        rates = tuple(float(lr) for lr in lrs)
    except (TypeError, ValueError):
        raise InputsError(compose(f"lrs={lrs!r}", "a list of learning rates", instead="lrs=[1e-3, 1e-2]")) from None
    return rates


def _check_counts(lrs: tuple[float, ...], seeds: tuple[int, ...], steps: int, batch_size: int) -> None:
    if not lrs or min(lrs) <= 0 or len(set(lrs)) < len(lrs):
        raise InputsError(compose(f"lrs={list(lrs)}", "different positive learning rates", instead="lrs=[1e-3, 1e-2]"))
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputsError(compose(f"seeds={list(seeds)}", "how many seeds, or different ones", instead="seeds=3"))
    if steps < 1 or batch_size < 1:
        raise InputsError(compose(f"steps={steps}, batch_size={batch_size}", "both at least 1", instead="steps=300"))


def _refuse_spawned_race() -> None:
    if os.environ.get(CHILD):
        raise FaninError(
            compose(
                "a call of fanin.compare while a worker imports the script",
                "a guard, on platforms where processes are spawned",
                "each worker imports the main script, and would start a race of its own",
                'if __name__ == "__main__": result = fanin.compare(…)',
            )
        )
