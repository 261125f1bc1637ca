"""The comparison: what a race found, as a value."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fanin import connections, tables, texts
from fanin.errors import InputsError, compose
from fanin.files import whole
from fanin.race.runs import Run, Start
from fanin.race.standings import DEFINITIONS, Standing, Verdict, standings
from fanin.race.wording import enumerate_words, finite, loss_text, percent, scientific

SCHEMA = 1
Writer = Callable[["Comparison", Path], None]
_writers: dict[str, Writer] = {}


def connect(**writers: Writer) -> None:
    """Let a floor above serve `Comparison.save` for more kinds of file, by suffix: ``connect(html=write_page)``."""
    _writers.update({f".{suffix}": writer for suffix, writer in writers.items()})


@dataclass(frozen=True)
class Comparison:
    """Recipes raced over the same learning rates, seeds and batches.

    It prints as a table, best recipe first, each at its own best learning rate; compares equal by content; and goes
    to JSON and back. `fanin.compare` makes it.

    Args:
        task: what was trained, in a line.
        recipes, lrs, seeds: what was raced: every combination, except what an interruption left out.
        steps: optimizer steps of each run.
        batch_size: examples a step; None where the data came in batches.
        optimizer: its name.
        chance: the loss of the best constant prediction, or what stands in for it.
        chance_from: where that number comes from, in words.
        runs: one for each combination.
        starts: one for each recipe, at the first seed.
        notes: what a reader should know of how it went.
    """

    task: str
    recipes: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    batch_size: int | None
    optimizer: str
    chance: float
    chance_from: str
    runs: tuple[Run, ...]
    starts: tuple[Start, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def standings(self) -> tuple[Standing, ...]:
        """Every recipe at its own best learning rate, best first."""
        return standings(self.recipes, self.runs, self.chance)

    @cached_property
    def best(self) -> Standing:
        """The recipe with the best standing."""
        return self.standings[0]

    def start(self, recipe: str) -> Start | None:
        """The signal before the first step; None when an interruption came before it was measured."""
        return next((start for start in self.starts if start.recipe == recipe), None)

    @property
    def complete(self) -> bool:
        """Whether every combination was run."""
        return len(self.runs) == len(self.recipes) * len(self.lrs) * len(self.seeds)

    @property
    def verdict(self) -> str:
        """The outcome in a few sentences, and the reason that the start gives for it."""
        return " ".join(self.sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict, a sentence for each kind of outcome."""
        groups: dict[Verdict, list[Standing]] = {}
        for standing in self.standings:
            groups.setdefault(standing.verdict, []).append(standing)
        return tuple(self._sentence(verdict, group) for verdict, group in groups.items())

    def _sentence(self, verdict: Verdict, group: Sequence[Standing]) -> str:
        names = enumerate_words([standing.recipe for standing in group])
        one = len(group) == 1
        everywhere = " at every learning rate" if len(self.lrs) > 1 else ""
        if verdict is Verdict.STUCK:
            verb = "stays" if one else "stay"
            return (
                f"{names} {verb} at chance (loss {loss_text(self.chance, self.chance)}){everywhere}{self._why(group)}."
            )
        if verdict is Verdict.DIVERGED:
            return f"{names} {'diverges' if one else 'diverge'}{everywhere}{self._why(group)}."
        losses = enumerate_words([loss_text(standing.loss, self.chance) for standing in group])
        verb = {True: ("trains", "train"), False: ("is slow", "are slow")}[verdict is Verdict.TRAINS][not one]
        return f"{names} {verb} (loss {losses}, chance {loss_text(self.chance, self.chance)}){self._why(group)}."

    def _why(self, group: Sequence[Standing]) -> str:
        starts = [start for standing in group if (start := self.start(standing.recipe))]
        ratios = [start.signal_ratio for start in starts if start.signal_ratio is not None]
        if not ratios or len(starts[0].layers) < 2:
            return ""
        low, high = min(ratios), max(ratios)
        if low < 1e-2 and high < 1e-2:
            return f": before the first step the last layer's signal is at most {scientific(high)} of the first's"
        if low > 1e2:
            return f": before the first step the last layer's signal is at least {scientific(low)} times the first's"
        return ""

    def table(self, width: int | None = None) -> str:
        """The standings as text, without the sentences."""
        judged = self.standings
        with_accuracy = any(standing.accuracy is not None for standing in judged)
        columns = [tables.Column("recipe"), tables.Column("verdict")]
        columns += [tables.Column(title, right=True) for title in ("loss", "over seeds")]
        columns += [tables.Column("accuracy", right=True)] if with_accuracy else []
        columns += [tables.Column(title, right=True) for title in ("lr", "signal")]
        rows = []
        for standing in judged:
            start = self.start(standing.recipe)
            cells = [standing.recipe, str(standing.verdict), loss_text(standing.loss, self.chance)]
            cells.append(f"{loss_text(standing.low, self.chance)}–{loss_text(standing.high, self.chance)}")
            cells += [percent(standing.accuracy)] if with_accuracy else []
            cells += [f"{standing.lr:g}", scientific(start.signal_ratio if start else None)]
            rows.append(cells)
        return tables.render(columns, rows, width=width)

    def legend(self) -> tuple[str, ...]:
        """What the columns and the verdicts mean, a line each."""
        count = len(self.seeds)
        batch = f", batches of {self.batch_size}" if self.batch_size else ""
        lines = [
            f"{tables.counted(self.steps, 'step')} of {self.optimizer}{batch}; "
            f"{tables.counted(len(self.lrs), 'learning rate')}, each recipe at its best; "
            f"median and range over {tables.counted(count, 'seed')}",
            "loss: mean training loss of the last tenth of the steps; "
            f"chance {loss_text(self.chance, self.chance)} is {self.chance_from}",
            "signal: how far the outputs for different examples lie apart before the first step, last layer over first",
        ]
        present = dict.fromkeys(standing.verdict for standing in self.standings)
        return (*lines, *(f"{verdict}: {DEFINITIONS[verdict]}" for verdict in present))

    def __str__(self) -> str:
        return self.report()

    def report(self, width: int | None = None) -> str:
        """The table, the verdict and what the words mean; what printing shows."""
        wide = width or shutil.get_terminal_size((100, 24)).columns
        around = [self.task, "", *self.sentences, "", *self.legend(), *self.notes]
        title, *rest = [textwrap.fill(line, wide) for line in around]
        return "\n".join([title, self.table(wide), *rest]).strip()

    def save(self, path: str | Path) -> Path:
        """Write the comparison, whole or not at all; the suffix decides how.

        Args:
            path: ``.json`` for the record, ``.html`` for a self-contained page, ``.svg`` or ``.png`` for a picture.

        Raises:
            InputsError: another suffix.
            MissingExtraError: the page or the picture needs packages that are not installed.
        """
        target = Path(path)
        if target.suffix == ".json":
            with whole(target) as scratch:
                scratch.write_text(self.to_json() + "\n", encoding="utf-8")
            return target
        connections.establish("race")
        if target.suffix not in _writers:
            known = enumerate_words([".json", *_writers], "or")
            raise InputsError(compose(f"the path {target.name!r}", f"a name that ends in {known}"))
        with whole(target) as scratch:
            _writers[target.suffix](self, scratch)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read a comparison that `save` wrote as JSON."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON types; the standings are there to be read, and are computed anew when loaded."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        judged = [
            {
                "recipe": standing.recipe,
                "verdict": str(standing.verdict),
                "lr": standing.lr,
                "loss": finite(standing.loss),
                "low": finite(standing.low),
                "high": finite(standing.high),
                "accuracy": standing.accuracy,
            }
            for standing in self.standings
        ]
        record |= {"runs": [run.to_dict() for run in self.runs], "starts": [start.to_dict() for start in self.starts]}
        return {"fanin": "comparison", "schema": SCHEMA, "verdict": self.verdict, "standings": judged, **record}

    def to_json(self, indent: int | None = None) -> str:
        """The comparison as JSON text, which `from_json` reads back to an equal one."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """The inverse of `to_json`.

        Raises:
            InputsError: the text is no comparison.
        """
        return texts.read(text, "comparison", SCHEMA, cls._of)

    @classmethod
    def _of(cls, record: dict[str, Any]) -> Comparison:
        values = {field.name: record[field.name] for field in fields(cls)}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        values["runs"] = tuple(Run.from_dict(run) for run in record["runs"])
        values["starts"] = tuple(Start.from_dict(start) for start in record["starts"])
        return cls(**values)
