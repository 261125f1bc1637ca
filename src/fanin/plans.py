"""The plan: for one model, what every parameter gets and why."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanin import connections, tables
from fanin.citations import bibliography
from fanin.differences import Difference, compare_rows
from fanin.errors import FaninError, PlanError, article, compose, nearest
from fanin.fields import require_kinds
from fanin.files import whole
from fanin.graph import Graph, ParameterNode
from fanin.rows import Row
from fanin.schemes import Keep, Packed, Scheme, require_scheme
from fanin.schemes.base import is_number, shown
from fanin.selection import Pattern, select

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1

LEAST = 2.0**-149
"""The least positive number of single precision, in which values are computed."""


Decision = tuple[Scheme, str] | tuple[Scheme, str, tuple[str, ...]]
"""What a parameter gets, why, and the keys of the publications behind that (see `fanin.citations`)."""


@dataclass(frozen=True)
class Plan:
    """The resolved list for one model: a row for every parameter, each with a reason.

    Plans are values. Editing one gives another; they compare and hash by what is drawn and why, print as a table, and
    go to JSON and back. The shapes of the example inputs are told and do not count: the same model traced on two
    samples and on four has one plan.

    >>> import fanin, torch
    >>> plan = fanin.plan(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), recipe="he")
    >>> plan["0.weight"].scheme
    VarianceScaling(scale=2.0, mode='fan_in', distribution='normal')
    >>> plan.replace("0.weight", fanin.schemes.Zeros(), reason="to see it fail")["0.weight"].std
    0.0
    """

    rows: tuple[Row, ...]
    recipe: str
    source: str = "modules"
    inputs: str = field(default="", compare=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph, recipe: str, decide: Callable[[ParameterNode], Decision]) -> Plan:
        """Ask ``decide`` for the scheme and reason of every parameter of a graph, and what to cite where it knows."""
        rows = tuple(Row(node, *decide(node)) for node in graph)
        return cls(rows, recipe, graph.source, graph.inputs, graph.notes)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        """Whether a parameter of that name is in the plan, or the row itself."""
        return name in self.rows if isinstance(name, Row) else isinstance(name, str) and name in self._by_name

    def __getitem__(self, name: str) -> Row:
        """The row of a parameter, under any of its names.

        Raises:
            PlanError: there is none, or it is no name.
        """
        anything: object = name
        if not isinstance(anything, str):
            given = f"plan[{type(anything).__name__}]"
            raise PlanError(compose(given, "a parameter's name", instead="plan[row.name]"))
        try:
            return self._by_name[name]
        except KeyError:
            raise PlanError(f"no parameter is named {name!r}; {nearest(name, self._by_name)}") from None

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {name: row for row in self.rows for name in (row.name, *row.node.aliases)}

    @property
    def graph(self) -> Graph:
        """What the plan knows of the model's parameters."""
        return Graph(tuple(row.node for row in self.rows), self.source, self.inputs, self.notes)

    def replace(
        self, pattern: Pattern | None = None, scheme: Scheme | None = None, *, reason: str = "", **questions: Any
    ) -> Plan:
        """Give every matching parameter another scheme.

        Args:
            pattern: an exact name, a glob (``blocks.*.fc2.weight``), several, or a function of the node; left out
                when the questions alone choose: ``plan.replace(scheme=Zeros(), role="query")``.
            scheme: what they get. Where a question chooses a block of a packed weight, only that block changes.
            reason: why; it stands before the reason that it overrides.
            questions: fields that the node must have, such as ``role="query"`` or ``residual_last=True``.

        Raises:
            PlanError: nothing matches (the message names the nearest), or the scheme leaves a block out.
            SchemeError: ``scheme`` is none.
        """
        if scheme is None:
            raise PlanError(compose("plan.replace without a scheme", "one", instead="plan.replace(…, scheme=Zeros())"))
        require_scheme(scheme)

        def edit(row: Row, blocks: tuple[str, ...]) -> Row:
            chosen = self._for_blocks(row, blocks, lambda _: scheme) if blocks else scheme
            told = _of_blocks(reason.strip() or f"replaced by {scheme.label}", blocks)
            # What the recipe drew on says nothing of a scheme that is put in its place.
            sources = row.sources if blocks else ()
            return replace(row, scheme=chosen, reason=_over(told, row.reason), sources=sources)

        return self._edit(pattern, questions, edit)

    def keep(self, pattern: Pattern | None = None, *, reason: str = "", **questions: Any) -> Plan:
        """Leave every matching parameter as its constructor made it.

        Raises:
            PlanError: nothing matches, or only a block of a packed weight does, which is written whole.
        """
        return self.replace(pattern, Keep(), reason=reason.strip() or "kept by an edit", **questions)

    def scale(self, pattern: Pattern | None, factor: float, *, reason: str = "", **questions: Any) -> Plan:
        """Multiply what every matching parameter gets by a factor.

        Raises:
            PlanError: nothing matches, a matching parameter is kept, or the factor is no finite number or so small that
                nothing is left.
        """
        _require_factor(factor)

        def edit(row: Row, blocks: tuple[str, ...]) -> Row:
            try:
                if blocks:
                    scaled: Scheme = self._for_blocks(row, blocks, lambda old: old.scaled(factor))
                else:
                    scaled = row.scheme.scaled(factor)
            except (FaninError, OverflowError) as error:
                raise PlanError(f"{row.name}: {error}") from None
            told = _of_blocks(reason.strip() or f"scaled by {factor:.4g}", blocks)
            return _require_left(row, replace(row, scheme=scaled, reason=_over(told, row.reason)), factor)

        return self._edit(pattern, questions, edit)

    @staticmethod
    def _for_blocks(row: Row, blocks: tuple[str, ...], change: Callable[[Scheme], Scheme]) -> Packed:
        parts = {block.name: row.block_scheme(block.name) for block in row.node.axes.blocks}
        return Packed.of({name: change(old) if name in blocks else old for name, old in parts.items()})

    def _edit(
        self, pattern: Pattern | None, questions: dict[str, Any], edit: Callable[[Row, tuple[str, ...]], Row]
    ) -> Plan:
        chosen = select((row.node for row in self.rows), pattern, **questions)
        rows = tuple(edit(row, chosen[row.name]) if row.name in chosen else row for row in self.rows)
        return replace(self, rows=rows)

    def explain(self, name: str) -> str:
        """What one parameter is, what it gets, and why."""
        row = self[name]
        std = "" if row.kept else f", std {row.std_text}"
        return f"{self.graph.explain(name)}\nIt gets {row.scheme.label}{std}: {row.reason}."

    def diff(self, other: Plan) -> Difference:
        """What is in one plan and not in the other; it prints as a table and is false when there is nothing.

        Raises:
            PlanError: the other is no plan.
        """
        require_plan(other)
        return compare_rows(self.rows, other.rows)

    def cite(self) -> str:
        """BibTeX for the publications that the rows and schemes of this plan draw on; what was replaced is left out."""
        return bibliography(key for row in self.rows for key in (*row.sources, *row.scheme.sources))

    def summary(self) -> str:
        """How many parameters each scheme fills, in a few lines."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((str(row.role), row.scheme.label), []).append(row)
        columns = [tables.Column("role"), tables.Column("scheme", wrap=True)]
        columns += [tables.Column("tensors", right=True), tables.Column("elements", right=True)]
        cells = [
            (role, label, str(len(rows)), f"{sum(math.prod(row.shape) for row in rows):,}")
            for (role, label), rows in groups.items()
        ]
        return tables.render(columns, cells, footer=f"{tables.counted(len(self), 'parameter')} by recipe {self.recipe}")

    def check(self, model: nn.Module) -> None:
        """Raise unless every parameter of the model has a row that can be written into it; nothing is written.

        Raises:
            PlanError: names, shapes or ties disagree; the message lists them.
            ApplyError: a scheme does not fit its parameter, or the dtype does not hold what it draws.
        """
        _hands("check")(self, model)

    def verify(self, model: nn.Module) -> Any:
        """Compare a filled model with the plan: expected means and stds of rows and blocks against the measured ones.

        Padding rows have to be zero, and the matrices of orthogonal schemes orthogonal.

        Returns:
            A `fanin.applying.Verification`, which is true when everything is within the sampling tolerance and
            nothing, buffers included, is not a number.
        """
        return _hands("verify")(self, model)

    @cached_property
    def digest(self) -> str:
        """A short hash of what plans compare by, the same on every machine."""
        content = json.dumps({**self.to_dict(), "inputs": ""}, ensure_ascii=False)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        head = {"fanin": "plan", "schema": SCHEMA, "recipe": self.recipe, "source": self.source}
        body = {"inputs": self.inputs, "notes": list(self.notes), "rows": [row.to_dict() for row in self.rows]}
        return {**head, **body}

    def to_json(self, indent: int | None = 1) -> str:
        """The plan as JSON text, which `from_json` reads back to an equal plan."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`. Nothing in the text is executed.

        Raises:
            PlanError: the text is no plan; the message names the row.
        """
        return _parse(text)

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON; the file is replaced whole or not at all."""
        target = Path(path)
        with whole(target) as scratch:
            scratch.write_text(self.to_json() + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(
                compose(f"{path}, which cannot be read: {error}", "a plan as Plan.save writes it")
            ) from None
        return cls.from_json(text)

    def __str__(self) -> str:
        columns = [tables.Column("parameter"), tables.Column("shape", right=True), tables.Column("scheme")]
        columns.append(tables.Column("std", right=True))
        cells = [(row.name, tables.shape_text(row.shape), row.scheme.label, _std_cell(row)) for row in self.rows]
        notes = [_note(row) for row in self.rows]
        footer = "\n".join((f"{tables.counted(len(self), 'parameter')} by recipe {self.recipe}", *self.notes))
        return tables.render_annotated(columns, cells, notes, footer=footer)


def require_plan(value: object) -> None:
    """Raise unless this is a plan.

    Raises:
        PlanError: it is something else, perhaps the name of a file with one.
    """
    if not isinstance(value, Plan):
        given = article(type(value).__name__)
        raise PlanError(compose(given, "a plan", instead="fanin.Plan.load(path), for one in a file"))


def _require_factor(factor: object) -> None:
    if not is_number(factor):
        given = f"a factor of {shown(factor)}"
        raise PlanError(compose(given, "a finite number", instead='plan.scale("fc.weight", 0.5)'))


def _require_left(before: Row, after: Row, factor: float) -> Row:
    """The row after it was scaled, if a factor other than 0 did not make zeros of its numbers."""
    old, new = before.expected, after.expected
    if factor and ((old.std and new.std < LEAST) or (old.mean and abs(new.mean) < LEAST)):
        raise PlanError(
            compose(
                f"{before.name}, std {before.std_text}, to be scaled by {factor:g}",
                f"a factor that leaves more than {LEAST:.2g}",
                "smaller numbers are zero in single precision",
                f"plan.replace({before.name!r}, fanin.schemes.Zeros())",
            )
        )
    return after


def _std_cell(row: Row) -> str:
    # The numbers of blocks are too many for a column of numbers; the note below has room for them.
    return row.std_text if " " not in row.std_text else "by block"


def _note(row: Row) -> str:
    stds = f", std {row.std_text}" if " " in row.std_text else ""
    return f"{str(row.role).replace('_', ' ')}{stds}: {row.reason}"


def _of_blocks(reason: str, blocks: tuple[str, ...]) -> str:
    """The reason, with the blocks that it speaks of where it is not of the whole parameter."""
    return f"{', '.join(blocks)}: {reason}" if blocks else reason


def _over(reason: str, earlier: str) -> str:
    return f"{reason} (before: {earlier})"


_KINDS = {"fanin": str, "schema": int, "recipe": str, "source": str, "inputs": str}
_KINDS |= {"notes": tuple[str, ...], "rows": tuple[object, ...]}
"""The fields of a plan in a file."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, whose keys may not be repeated: readers differ in which of them they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _parse(text: str) -> Plan:
    anything: object = text
    if not isinstance(anything, str | bytes | bytearray):
        given = f"{article(type(anything).__name__)}, which is no text"
        raise PlanError(compose(given, "a plan as Plan.to_json writes it", instead="fanin.Plan.load(path), for a file"))
    try:
        record = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise PlanError(compose(f"text that is not JSON ({error})", "a plan as Plan.save writes it")) from None
    if not isinstance(record, dict) or record.get("fanin") != "plan":
        raise PlanError(compose("JSON that is not a plan", 'an object with "fanin": "plan", as Plan.save writes it'))
    if record.get("schema") != SCHEMA or isinstance(record["schema"], bool):
        raise PlanError(
            compose(f"a plan of schema {record.get('schema')!r}", f"schema {SCHEMA}", instead='pip install -U "fanin"')
        )
    require_kinds(_KINDS, record)
    if "rows" not in record:
        raise PlanError(compose("a plan without rows", 'a list of "rows", as Plan.save writes it'))
    rows = []
    for index, row in enumerate(record["rows"]):
        name = row.get("name", "?") if isinstance(row, dict) else "?"
        try:
            rows.append(Row.from_dict(row))
        except (FaninError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            detail = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise PlanError(f"row {index} ({name}): {detail}") from None
    for name, count in Counter(name for row in rows for name in (row.name, *row.node.aliases)).items():
        if count > 1:
            raise PlanError(compose(f"two rows named {name!r}", "one row a parameter, for all of its names"))
        if not name:
            raise PlanError(compose("a row without a name", "the name of a parameter"))
    recipe, source, inputs = (record.get(field, "") for field in ("recipe", "source", "inputs"))
    return Plan(tuple(rows), recipe, source, inputs, tuple(record.get("notes", ())))


_connected: dict[str, Callable[..., Any]] = {}


def connect(**hands: Callable[..., Any]) -> None:
    """Let the floor that knows torch serve `Plan.check` and `Plan.verify`; this floor does not import it."""
    _connected.update(hands)


def _hands(name: str) -> Callable[..., Any]:
    if name not in _connected:
        connections.establish("plans")
    if name not in _connected:
        raise PlanError(compose(f"plan.{name} before torch's floor is loaded", "import fanin"))
    return _connected[name]
