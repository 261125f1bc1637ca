"""The rules: what each looks for and why, and how they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fanin import tables
from fanin.diagnoses import Edit, Finding, Severity
from fanin.errors import FaninError, compose, nearest
from fanin.findings.evidence import Evidence

Check = Callable[[Evidence], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Args:
        code: stable: a code is never given a second meaning.
        title: what it finds, in a few words.
        why: why it matters.
        threshold: where the line is drawn, and the reason.
        remedy: what to do.
        source: where it is known from.
        check: looks for it.
        last: whether it is asked after all others, since its remedy depends on what theirs draw.
    """

    code: str
    title: str
    why: str
    threshold: str
    remedy: str
    source: str
    check: Check
    last: bool = False

    def __str__(self) -> str:
        parts = (f"{self.code}: {self.title}", f"why: {self.why}", f"threshold: {self.threshold}")
        return "\n".join((*parts, f"remedy: {self.remedy}", f"source: {self.source or 'plain'}"))


RULES: dict[str, Rule] = {}


def register(
    code: str, title: str, *, why: str, threshold: str, remedy: str, source: str = "", last: bool = False
) -> Callable[[Check], Check]:
    """Make a rule known under a code."""

    def enter(check: Check) -> Check:
        if code in RULES:
            raise FaninError(compose(f"a second rule {code}", "a code of its own"))
        RULES[code] = Rule(code, title, why, threshold, remedy, source, check, last)
        return check

    return enter


def finding(
    code: str, severity: Severity, place: str, seen: str, *, edits: Iterable[Edit] = (), places: Iterable[str] = ()
) -> Finding:
    """A finding of a registered rule, with the rule's reason, remedy and source."""
    rule = RULES[code]
    return Finding(code, severity, place, seen, rule.why, rule.remedy, rule.source, tuple(edits), tuple(places))


Codes = str | Iterable[str]
"""A rule's code or its beginning, such as ``"F2"``, or several."""


def examine(evidence: Evidence, select: Codes = (), ignore: Codes = ()) -> tuple[Finding, ...]:
    """Ask every rule, or those whose codes begin with one of ``select`` and with none of ``ignore``.

    Raises:
        FaninError: a selected or ignored code begins no rule's.
    """
    chosen, left_out = known_codes(select), known_codes(ignore)
    rules = [
        rule
        for code, rule in sorted(RULES.items())
        if (not chosen or code.startswith(chosen)) and not (left_out and code.startswith(left_out))
    ]
    found: list[Finding] = []
    evidence.planned.clear()
    for rule in sorted(rules, key=lambda rule: rule.last):
        new = list(rule.check(evidence))
        found += new
        edits = (edit for one in new for edit in one.edits)
        evidence.planned.update({edit.pattern: edit.scheme for edit in edits if edit.scheme is not None})
    return tuple(sorted(found, key=lambda one: one.code))


def explain(code: str) -> str:
    """What a rule looks for, why, where it draws the line, and what to do.

    >>> print(explain("F203").splitlines()[0])
    F203: a padding row that is not zero

    Raises:
        FaninError: there is no such code.
    """
    if code.upper() not in RULES:
        raise FaninError(compose(f"code {code!r}", "a rule's code", instead=nearest(code, RULES)))
    return str(RULES[code.upper()])


def overview() -> str:
    """A table of all rules."""
    columns = [tables.Column("code"), tables.Column("finds", wrap=True)]
    return tables.render(columns, [(code, rule.title) for code, rule in sorted(RULES.items())])


def known_codes(codes: Codes) -> tuple[str, ...]:
    """The codes, as a tuple in capitals.

    Raises:
        FaninError: one begins no rule's.
    """
    given = tuple(code.upper() for code in ((codes,) if isinstance(codes, str) else codes))
    for code in given:
        if not any(known.startswith(code) for known in RULES):
            raise FaninError(compose(f"code {code!r}", "a rule's code or its beginning", instead=nearest(code, RULES)))
    return given
