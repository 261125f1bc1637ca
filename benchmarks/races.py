"""Race `auto` against the usual initializations on every task, and print and store the table.

Every initialization runs over the same learning rates, seeds and batches, and is judged at its own best learning rate
by the median over seeds of the mean loss of the last 20 steps.

    python benchmarks/races.py [--tasks plain-30-relu,…] [--recipes auto,he,…] [--seeds 3]

Recipes are those of fanin, `lsuv`, and the variants of auto in `race_variants.py`. ``--store`` keeps what has run task
by task, adds to what is stored, and so can be stopped and continued; ``--write`` runs nothing and puts the tables of
what is stored into `docs/decisions.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fanin
from pages import put
from race_tasks import TASKS, Task, chance, loss_of
from race_variants import SCALES, SCHEMES, VARIANTS, planned

RECIPES = ("auto", "torch", "xavier", "he", "orthogonal", "lsuv")
RATES = {"sgd": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3), "adam": (3e-4, 1e-3, 3e-3, 1e-2)}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}
ROOT = Path(__file__).parent.parent
STORE = ROOT / "docs" / "benchmarks" / "races.json"
PAGE = ROOT / "docs" / "decisions.md"


def lsuv(model: nn.Module, inputs: Tensor, seed: int) -> None:
    """Layer-sequential unit variance (Mishkin & Matas 2016): orthogonal, then each output's std to 1 in order."""
    fanin.initialize(model, inputs, recipe="orthogonal", seed=seed)

    def rescale(module: nn.Module, _: object, output: Tensor) -> Tensor:
        for _attempt in range(10):
            std = output.detach().std()
            if std == 0 or abs(std - 1) < 0.05:
                break
            with torch.no_grad():
                module.weight /= std
            output = output / std
        return output

    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(rescale) for module in model.modules() if isinstance(module, layers)]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()


def start(model: nn.Module, recipe: str, inputs: Tensor, seed: int) -> None:
    if recipe == "lsuv":
        lsuv(model, inputs, seed)
    elif recipe in VARIANTS or recipe in SCALES or recipe in SCHEMES:
        fanin.apply(planned(recipe, model, inputs), model, seed=seed)
    elif recipe != "torch":
        fanin.initialize(model, inputs, recipe=recipe, seed=seed)


def run(job: tuple[int, str, float, int]) -> float:
    """The mean loss of the last 20 steps; infinite when it diverged."""
    index, recipe, rate, seed = job
    task = TASKS[index]
    torch.manual_seed(seed)
    model = task.build()
    generator = torch.Generator().manual_seed(seed)
    start(model, recipe, task.batch(generator)[0], seed)
    optimizer = OPTIMIZERS[task.optimizer](model.parameters(), lr=rate)
    losses = []
    for _ in range(task.steps):
        inputs, target = task.batch(generator)
        loss = loss_of(model(inputs), target)
        if not torch.isfinite(loss) or loss.item() > 1e4:
            return math.inf
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.fmean(losses[-20:])


def prepare() -> None:
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", action="store_true", help=f"write {STORE.name}")
    parser.add_argument("--write", action="store_true", help=f"put the stored tables into {PAGE.name}; run nothing")
    options = parser.parse_args()
    if options.write:
        write(json.loads(STORE.read_text(encoding="utf-8")))
        return
    recipes = options.recipes.split(",")
    wanted = options.tasks.split(",") if options.tasks else [task.name for task in TASKS]
    chosen = [(index, task) for index, task in enumerate(TASKS) if task.name in wanted]
    store = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() and options.store else {"tasks": {}}
    with multiprocessing.get_context("fork").Pool(multiprocessing.cpu_count(), prepare) as pool:
        for index, task in chosen:
            known = store["tasks"].setdefault(task.name, {})
            missing = [
                recipe for recipe in recipes if len(known.get(recipe, {"losses": ()})["losses"]) != options.seeds
            ]
            known.update(race(pool, index, task, missing, options.seeds))
            print(line(task, {"chance": known["chance"], **{recipe: known[recipe] for recipe in recipes}}), flush=True)
            if options.store:
                save(store)


def save(store: dict[str, object]) -> None:
    store.update(date=time.strftime("%Y-%m-%d"), machine=platform.processor() or platform.machine())
    store["torch"] = torch.__version__
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.write_text(json.dumps(store, indent=1) + "\n", encoding="utf-8")


def race(pool: multiprocessing.pool.Pool, index: int, task: Task, recipes: list[str], seeds: int) -> dict[str, object]:
    rates = RATES[task.optimizer]
    jobs = [(index, recipe, rate, seed) for recipe in recipes for rate in rates for seed in range(seeds)]
    losses = dict(zip(jobs, pool.map(run, jobs, chunksize=1), strict=True))
    found: dict[str, object] = {"chance": chance(task)}
    for recipe in recipes:
        by_rate = {rate: [losses[index, recipe, rate, seed] for seed in range(seeds)] for rate in rates}
        best = min(by_rate, key=lambda rate: statistics.median(by_rate[rate]))
        found[recipe] = {"rate": best, "losses": by_rate[best]}
    return found


def line(task: Task, found: dict[str, object]) -> str:
    cells = [f"{task.name:20s} chance {found['chance']:.3f}"]
    for recipe, cell in found.items():
        if isinstance(cell, dict):
            spread = sorted(cell["losses"])
            cells.append(
                f"{recipe} {statistics.median(spread):.4f} [{spread[0]:.3f} {spread[-1]:.3f}] @{cell['rate']:g}"
            )
    return " | ".join(cells)


def write(store: dict[str, Any]) -> None:
    """Put both tables into the page: the recipes on every task, and the variants beside auto where they raced."""
    tasks = {task.name: store["tasks"][task.name] for task in TASKS if task.name in store["tasks"]}
    lines = ["| task | chance | " + " | ".join(RECIPES) + " |", "|---|---|" + "---|" * len(RECIPES)]
    for name, found in tasks.items():
        cells = " | ".join(_cell(found.get(recipe)) for recipe in RECIPES)
        lines.append(f"| {name} | {found['chance']:.3g} | {cells} |")
    lines += ["", "| task | auto | variants |", "|---|---|---|"]
    for name, found in tasks.items():
        others = [f"{recipe} {_cell(cell)}" for recipe, cell in found.items() if recipe not in (*RECIPES, "chance")]
        if others:
            lines.append(f"| {name} | {_cell(found['auto'])} | {'; '.join(others)} |")
    text = "\n".join([*lines, "", f"Measured {store['date']} on {store['machine']}, torch {store['torch']}."])
    put(PAGE, "races", text)


def _cell(found: dict[str, Any] | None) -> str:
    """The median, with the least and the most of the seeds."""
    if found is None:
        return ""
    spread = sorted(found["losses"])
    middle = statistics.median(spread)
    return f"{middle:.3g} ({spread[0]:.2g}–{spread[-1]:.2g})" if math.isfinite(middle) else "diverged"


if __name__ == "__main__":
    main()
