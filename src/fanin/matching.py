"""Which row of a plan each parameter of a model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from fanin import tables
from fanin.errors import InputsError, PlanError, article, compose, nearest
from fanin.plans import Plan
from fanin.rows import Row
from fanin.sites import Site
from fanin.tracing.names import NamedParameter, named_parameters

SHOWN = 20
"""How many problems a message lists."""


class Match(NamedTuple):
    """A parameter of a model and its row.

    Attributes:
        name: the name that decides the values: the row's, or that of the weight which is computed from the parameter.
        norms: the parameter that holds the norms of a weight-normed weight and follows from this one, by its name.
    """

    row: Row
    entry: NamedParameter
    name: str
    norms: str | None = None

    @property
    def parameter(self) -> nn.Parameter:
        return self.entry.parameter

    @property
    def site(self) -> Site:
        """The whole parameter, as its scheme sees it."""
        return Site(self.row.shape, self.row.node.axes, self.name, self.row.node.padding_row)

    @property
    def is_computed_from(self) -> bool:
        """Whether the row speaks of a weight that is computed from this parameter."""
        return self.entry.weight is not None and self.entry.weight.part == "main"


def match(plan: Plan, model: nn.Module, *, prefix: str = "", names: Mapping[str, str] | None = None) -> list[Match]:
    """The row of every parameter of the model.

    A plan for a model fits the same model with parametrized weights, and the other way round.

    Raises:
        PlanError: a parameter has no row, a row of the whole plan has no parameter, or shapes differ.
        InputsError: the model is none, or a parameter of it has no shape yet.
    """
    require_model(model)
    matches: list[Match] = []
    problems: list[str] = []
    missing: list[str] = []
    known = {entry.name for entry in named_parameters(model)}
    for name in names or {}:
        if name not in known:
            near = _near(name, known, problems)
            problems.append(f"names has {name!r}, which is no parameter of the model{near}")
    misshapen: set[str] = set()
    entries = named_parameters(model)
    for entry in entries:
        wanted = (names or {}).get(entry.name, prefix + entry.name)
        found = _row(plan, entry, wanted)
        if found is None:
            if entry.weight is None or entry.weight.part != "norm":
                missing.append(wanted)
                near = _near(wanted, (row.name for row in plan), problems)
                problems.append(f"{entry.name}: the plan has no row {wanted!r}{near}")
        elif found[0].shape != tuple(entry.parameter.shape):
            misshapen.add(found[0].name)
            have = tables.shape_text(entry.parameter.shape)
            problems.append(f"{entry.name}: the plan says {tables.shape_text(found[0].shape)}, the model has {have}")
        else:
            matches.append(Match(found[0], entry, found[1]))
    whole = not prefix and names is None
    problems += _uncovered(plan, misshapen.union(found.row.name for found in matches), entries) if whole else []
    problems += _taken_twice(matches, whole)
    if problems:
        raise _misfit(plan, problems, _shifted(plan, missing, prefix) if names is None else "")
    return _with_norms(matches, entries)


def require_model(model: object) -> None:
    """Raise unless this is a module whose parameters have shapes.

    Raises:
        InputsError: it is something else, or was never run and learns its shapes from the first batch.
    """
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else article(type(model).__name__)
        raise InputsError(compose(kind, "a module", instead="model = Build(…), and then fanin.apply(plan, model)"))
    lazy = next((name for name, value in model.named_parameters() if is_lazy(value)), None)
    if lazy is not None:
        raise InputsError(
            compose(
                f"{lazy}, a lazy parameter without a shape",
                "a model whose parameters have shapes",
                "lazy modules learn their shapes from the first batch",
                "model(example_batch), once, before fanin",
            )
        )


def _row(plan: Plan, entry: NamedParameter, wanted: str) -> tuple[Row, str] | None:
    """The row under this name and the name for its values; None where there is none."""
    weight = entry.weight
    if wanted not in plan and weight is not None and weight.part == "main":
        wanted = weight.named_after(wanted)
    if wanted not in plan:
        return None
    row = plan[wanted]
    if weight is not None and weight.part == "main":
        return row, weight.named_after(row.name)
    # A row of a parametrized model answers to its weight's name too, and that is what a plain model asks for.
    return row, wanted if row.node.reparametrized else row.name


def _near(name: str, known: Iterable[str], problems: list[str]) -> str:
    """The names that are near to a wrong one, for a problem that will be shown: looking for them takes its time."""
    return f" ({nearest(name, known)})" if len(problems) < SHOWN else ""


def _shifted(plan: Plan, missing: list[str], prefix: str) -> str:
    """What to write where all that is missing is in the plan under a prefix, or without one that the model has."""
    if not missing:
        return ""
    first = missing[0]
    for longer in (row.name.removesuffix(first) for row in plan if row.name.endswith(f".{first}")):
        if all(longer + name in plan for name in missing):
            return f"fanin.apply(model, plan, prefix={longer + prefix!r}), if the model is that part of the plan's"
    for end in (i + 1 for i, letter in enumerate(first) if letter == "."):
        if all(name.startswith(first[:end]) and name[end:] in plan for name in missing):
            return f"fanin.apply(model.get_submodule({first[: end - 1]!r}), plan)"
    return ""


def _uncovered(plan: Plan, covered: set[str], entries: Iterable[NamedParameter]) -> Iterator[str]:
    ties = {alias: entry.name for entry in entries for alias in entry.aliases}
    for row in plan:
        if row.name not in covered and not (row.node.reparametrized and row.kept):
            tie = ties.get(row.name)
            what = f"the model ties it to {tie}" if tie else "the model has no such parameter"
            yield f"{row.name}: {what}"


def _taken_twice(matches: list[Match], whole: bool) -> Iterator[str]:
    """Parameters that want one row; two stages of a pipeline may each hold one end of a tie."""
    takers: dict[str, list[Match]] = {}
    for found in matches:
        takers.setdefault(found.row.name, []).append(found)
    for name, taking in takers.items():
        if len(taking) > 1 and (whole or not any(found.row.node.aliases for found in taking)):
            names = ", ".join(found.entry.name for found in taking)
            yield f"{name}: {len(taking)} parameters of the model take this row: {names}; they are tied in the plan"


def _with_norms(matches: list[Match], entries: tuple[NamedParameter, ...]) -> list[Match]:
    """Let the norms of weight-normed weights follow from the weights, where they have no scheme of their own."""
    own = {found.entry.name for found in matches if not found.row.kept}
    norms = {
        entry.weight_name: entry.name
        for entry in entries
        if entry.weight is not None and entry.weight.part == "norm" and entry.name not in own
    }
    return [
        found._replace(norms=norms.get(found.entry.weight_name))
        if found.is_computed_from and not found.row.kept
        else found
        for found in matches
    ]


def _misfit(plan: Plan, problems: list[str], shifted: str) -> PlanError:
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    shown = "\n  ".join(problems[:SHOWN]) + more
    return PlanError(
        compose(
            f"a plan of {tables.counted(len(plan), 'row')} that does not fit the model:\n  {shown}",
            "a row of the same name and shape for every parameter",
            "a plan is written whole or not at all",
            shifted or "plan = fanin.plan(model), and the edits on it",
        )
    )
