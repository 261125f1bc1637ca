"""The diagnosis: what is wrong with a start, where, why, and the edits of the plan that mend it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fanin import connections, tables, texts
from fanin.errors import PlanError, compose
from fanin.files import whole
from fanin.graph import ParameterNode
from fanin.plans import Plan
from fanin.schemes import Scheme
from fanin.signals import Signals

SCHEMA = 1
Writer = Callable[["Diagnosis", Path], None]
_writers: dict[str, Writer] = {}


def connect(**writers: Writer) -> None:
    """Let a floor above serve `Diagnosis.save` for more kinds of file, by suffix: ``connect(html=write_page)``."""
    _writers.update({f".{suffix}": writer for suffix, writer in writers.items()})


class Severity(StrEnum):
    """How bad it is, worst first."""

    ERROR = "error"
    """Training cannot work as meant: a fault."""
    WARNING = "warning"
    """Training may work, worse or slower than it could."""
    NOTE = "note"
    """Worth knowing; nothing to mend."""


RANKS = {severity: rank for rank, severity in enumerate(Severity)}
Level = Literal["error", "warning"]
"""From which severity on something is not let pass."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit of a plan: parameters get another scheme, or what they get is scaled.

    Args:
        pattern: a parameter's name, or a glob over names.
        scheme: what they get; None when they are scaled.
        factor: by what they are scaled; None when they get a scheme.

    >>> from fanin.schemes import Zeros
    >>> print(Edit("head.bias", Zeros()))
    head.bias → zeros
    """

    pattern: str
    scheme: Scheme | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if (self.scheme is None) == (self.factor is None):
            raise PlanError(compose(f"an edit of {self.pattern}", "either a scheme or a factor"))

    def apply(self, plan: Plan, reason: str) -> Plan:
        """The edited plan.

        Raises:
            PlanError: nothing matches, or a parameter that is kept cannot be scaled.
        """
        if self.scheme is not None:
            return plan.replace(self.pattern, self.scheme, reason=reason)
        assert self.factor is not None
        return plan.scale(self.pattern, self.factor, reason=reason)

    def __str__(self) -> str:
        change = self.scheme.label if self.scheme is not None else f"× {self.factor:.4g}"
        return f"{self.pattern} → {change}"

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON types."""
        scheme = None if self.scheme is None else self.scheme.to_dict()
        return {"pattern": self.pattern, "scheme": scheme, "factor": self.factor}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Edit:
        """The inverse of `to_dict`."""
        scheme = None if record["scheme"] is None else Scheme.from_dict(record["scheme"])
        return cls(record["pattern"], scheme, record["factor"])


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Args:
        code: stable: ``F101``.
        severity: how bad it is.
        place: the parameter or layer, as `Signals` names it; empty for the model as a whole.
        seen: the evidence, with numbers.
        why: why it matters, in a sentence.
        remedy: what to do, in a sentence.
        source: where this is known from; empty when it is plain.
        edits: the remedy as edits of a plan; empty where no edit mends it.
        places: further places with the same fault, the first left out.
    """

    code: str
    severity: Severity
    place: str
    seen: str
    why: str
    remedy: str
    source: str = ""
    edits: tuple[Edit, ...] = ()
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _told((self,))

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON types."""
        record: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        edits = [edit.to_dict() for edit in self.edits]
        return {**record, "severity": str(self.severity), "edits": edits, "places": list(self.places)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Finding:
        """The inverse of `to_dict`."""
        edits = tuple(Edit.from_dict(edit) for edit in record["edits"])
        values = {**record, "severity": Severity(record["severity"]), "edits": edits}
        return cls(**{**values, "places": tuple(record["places"])})


def told(findings: Iterable[Finding]) -> Iterator[str]:
    """Findings in words, each fault once: forty layers with it are one thing to read and one thing to do."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.code, finding.severity, finding.why, finding.remedy), []).append(finding)
    yield from map(_told, groups.values())


MOST_NAMED = 3
"""How many places of a fault a terminal names; the page and the record have all."""


def _told(alike: Sequence[Finding]) -> str:
    """Findings that differ in nothing but where they are and what was seen there, told once."""
    first = alike[0]
    places = [place or "the model" for finding in alike for place in (finding.place, *finding.places)]
    # What one finding saw speaks of its first place, and of how many others are like it.
    where = places[0] + (f" (and {len(first.places)} more)" if first.places else "")
    seen = first.seen
    if len(alike) > 1:
        more = ", …" if len(places) > MOST_NAMED else ""
        where = f"{tables.counted(len(places), 'place')}: {', '.join(places[:MOST_NAMED])}{more}"
    if any(finding.seen != seen for finding in alike):
        seen = f"at the first, {seen}"
    head = f"{first.code} {first.severity}: {where}: {seen}"
    return "\n".join(map(_fitted, (head, f"    why: {first.why}", f"    remedy: {first.remedy}")))


def _fitted(line: str) -> str:
    """A line in the width of the terminal; names are not broken."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Diagnosis:
    """What was found, worst first, and what it was found in.

    Args:
        findings: in the order in which the rules gave them; kept sorted, worst first.
        signals: what was measured.
        plan: the plan that the model was initialised by, or one that keeps everything as it was found; `fix` edits
            it. None when only the signals were judged.
    """

    findings: tuple[Finding, ...]
    signals: Signals
    plan: Plan | None = None

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.findings, key=lambda finding: RANKS[finding.severity]))
        object.__setattr__(self, "findings", ordered)

    @property
    def ok(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)

    @cached_property
    def codes(self) -> tuple[str, ...]:
        """The codes that were found, sorted."""
        return tuple(sorted({finding.code for finding in self.findings}))

    def of(self, code: str) -> tuple[Finding, ...]:
        """The findings of one code, or of a family: ``F1`` for all from F100 to F199."""
        return tuple(finding for finding in self.findings if finding.code.startswith(code))

    def filter(self, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Diagnosis:
        """Only some codes or families; everything when ``select`` is empty."""
        chosen, left_out = tuple(select), tuple(ignore)
        kept = [
            finding
            for finding in self.findings
            if (not chosen or finding.code.startswith(chosen)) and not (left_out and finding.code.startswith(left_out))
        ]
        return replace(self, findings=tuple(kept))

    def fix(self) -> Plan:
        """The plan with every remedy that is an edit; where two edit one parameter, the worse finding's holds.

        Raises:
            PlanError: there is no plan to edit.
        """
        if self.plan is None:
            raise PlanError(compose("a diagnosis of signals alone", "a plan", instead="fanin.diagnose(model, inputs)"))
        plan = self.plan
        for finding in reversed(self.findings):
            plan = _edited(plan, finding.edits, f"{finding.code}: {finding.remedy}")
        return plan

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON types."""
        return {
            "fanin": "diagnosis",
            "schema": SCHEMA,
            "ok": self.ok,
            "findings": [finding.to_dict() for finding in self.findings],
            "signals": self.signals.to_dict(),
            "plan": None if self.plan is None else self.plan.to_dict(),
        }

    def to_json(self, indent: int | None = None) -> str:
        """The diagnosis as JSON text, which `from_json` reads back to an equal diagnosis."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """The inverse of `to_json`.

        Raises:
            InputsError: the text is no diagnosis.
        """
        return texts.read(text, "diagnosis", SCHEMA, cls._of)

    @classmethod
    def _of(cls, record: dict[str, Any]) -> Diagnosis:
        signals = Signals.from_json(json.dumps(record["signals"]))
        plan = None if record["plan"] is None else Plan.from_json(json.dumps(record["plan"]))
        return cls(tuple(Finding.from_dict(part) for part in record["findings"]), signals, plan)

    def save(self, path: str | Path) -> Path:
        """Write the diagnosis: ``.json``, or ``.html`` for a page that needs nothing else.

        The file is replaced whole or not at all.

        Raises:
            PlanError: the suffix is none that can be written.
        """
        target = Path(path)
        if target.suffix == ".json":
            with whole(target) as scratch:
                scratch.write_text(self.to_json(indent=1) + "\n", encoding="utf-8")
            return target
        connections.establish("diagnoses")
        if target.suffix not in _writers:
            known = ", ".join(sorted({".json", *_writers}))
            raise PlanError(compose(f"the suffix {target.suffix!r}", f"one of {known}"))
        with whole(target) as scratch:
            _writers[target.suffix](self, scratch)
        return target

    def __str__(self) -> str:
        counts = [(severity, sum(item.severity is severity for item in self.findings)) for severity in Severity]
        head = ", ".join(tables.counted(count, severity) for severity, count in counts if count)
        notes = (f"note: {note}" for note in self.signals.notes)
        return "\n".join((*told(self.findings), head or "healthy: nothing found", *notes))


def _edited(plan: Plan, edits: Iterable[Edit], reason: str) -> Plan:
    """The plan with the edits of one finding; whole names that get the same scheme are replaced in one go."""
    # A finding on the depth of a net edits every parameter: one by one, the time is quadratic in their number.
    together: dict[Scheme, set[str]] = {}
    for edit in edits:
        if edit.scheme is not None and edit.pattern in plan:
            together.setdefault(edit.scheme, set()).add(plan[edit.pattern].name)
        else:
            plan = edit.apply(plan, reason)
    for scheme, names in together.items():
        plan = plan.replace(_one_of(names), scheme, reason=reason)
    return plan


def _one_of(names: set[str]) -> Callable[[ParameterNode], bool]:
    return lambda node: node.name in names
