"""Write docs/recipes.md: every recipe with formula and source, and where libraries differ, as measured.

PYTHONPATH=tests python benchmarks/recipes.py
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from fanin.citations import source
from fanin.recipes import REGISTRY
from fanin.recipes.departures import DEPARTURES, Departure
from parity import CASES, SIGMAS, Case, Pool, measure

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "recipes.md"


def main() -> None:
    """Measure every case and write the page."""
    measured = {case: measure(case) for case in CASES}
    pools = [pool for found in measured.values() for pool in found]
    sections = (recipe_table(), parity_table(measured), departure_table(pools))
    PAGE.write_text("\n\n".join((HEAD, *sections, provenance())) + "\n", encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(REGISTRY)} recipes, {len(CASES)} models, {len(pools)} pools")


HEAD = """# Recipes

Printed by `benchmarks/recipes.py`. A recipe with settings is also a function: `fanin.recipes.gpt2(std=0.01)`
is a recipe, and `fanin.plan(model, inputs, recipe=...)` takes either. Rules are about what the model does with a
parameter (the last weight of a residual branch, a query, a gate's value path), and about names only where the
publication does or nothing else tells (PPO's value head, Fixup's shortcuts, the encoder and the decoder of T-Fixup). A
recipe whose parameters are not in the model is an error."""


def recipe_table() -> str:
    """One line a recipe."""
    entries = sorted(REGISTRY.values(), key=lambda entry: (bool(entry.formula), entry.name))
    rows = [
        (f"`{entry.name}`", entry.summary, entry.formula, "; ".join(source(key).label for key in entry.sources))
        for entry in entries
    ]
    return "## All recipes\n\n" + table(("name", "what", "formula", "sources"), rows)


def parity_table(measured: dict[Case, list[Pool]]) -> str:
    """One line a model: how much of it was compared, and the largest deviation without a departure."""
    rows = []
    for case, pools in measured.items():
        plain = [pool for pool in pools if pool.departure is None]
        deviations = [deviation(pool) for pool in plain if pool.std]
        worst = f"{max(deviations):.1f}" if deviations else "all depart"
        names = sum(len(pool.names) for pool in pools)
        departed = sum(len(pool.names) for pool in pools if pool.departure)
        elements = sum(pool.count for pool in pools)
        rows.append((f"`{case.recipe}`", case.library, str(names), f"{elements:,}", worst, str(departed)))
    head = ("recipe", "library", "parameters", "elements", "largest deviation, standard errors", "depart")
    text = (
        "## Against installed libraries\n\nSmall models as the libraries construct them. Rows that plan the same are "
        f"pooled; a pool may lie {SIGMAS:g} standard errors from what is planned, and a wrong factor √2 lies over 20 "
        "away."
    )
    return f"{text}\n\n{table(head, rows)}"


def departure_table(pools: list[Pool]) -> str:
    """One line for every deliberate difference."""
    rows = [
        (
            f"`{d.recipe}`",
            d.library,
            " ".join(f"`{glob}`" for glob in d.where),
            d.theirs,
            d.ours,
            ratio(d, pools),
            d.why,
        )
        for d in DEPARTURES
    ]
    head = ("recipe", "library", "parameters", "theirs", "ours", "theirs ÷ ours", "why")
    return "## Deliberate differences\n\n" + table(head, rows)


def ratio(departure: Departure, pools: list[Pool]) -> str:
    """The expected ratio, and the measured one where the library is installed."""
    if not departure.installed:
        return f"{departure.shown} (from its source, not measured)"
    found = [pool for pool in pools if pool.departure == departure and pool.std]
    if not found or departure.ratio is None:
        return "a constant differs"
    if len({f"{pool.ratio:.4g}" for pool in found}) == 1:
        return f"{departure.shown}; measured {max(found, key=lambda pool: pool.count).measured_ratio:.3f}"
    low, *_, high = sorted(pool.measured_ratio for pool in found)
    return f"{departure.shown}; measured {low:.3f} to {high:.3f}"


def deviation(pool: Pool) -> float:
    """How many standard errors the measured std lies from the planned one."""
    return abs(pool.measured[1] / (pool.std * pool.ratio) - 1) * (2 * pool.count) ** 0.5


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def provenance() -> str:
    """What it was measured with."""
    packages = ("torch", "torchvision", "timm", "transformers")
    return (
        f"Measured with Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages) + "."
    )


if __name__ == "__main__":
    main()
