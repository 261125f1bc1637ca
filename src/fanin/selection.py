"""Which rows of a plan an edit speaks of: globs over names, and questions about what a parameter is."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fanin.errors import PlanError, compose, nearest
from fanin.graph import ParameterNode, Role

Pattern = str | Sequence[str] | Callable[[ParameterNode], bool]

PARTS = {
    "query": "softmax_q",
    "key": "softmax_k",
    "value": "attention_value",
    "gate_value": "gate_value",
}
"""Parts of attention and gates that are asked for as roles; a packed weight answers with the block that plays it."""

_QUESTIONS = ("role", "activation", "norm_before", "norm_after", "residual_last", "stream", "output", "module_type")


def select(nodes: Iterable[ParameterNode], pattern: Pattern | None, **questions: Any) -> dict[str, tuple[str, ...]]:
    """The parameters that a pattern names, each with the blocks meant (none: the whole parameter).

    Args:
        nodes: to choose from.
        pattern: an exact name, which wins over the glob that it may look like; a glob over names and ties; several
            of these; or a function of the node.
        questions: fields of the node that must have this value; ``role`` also takes ``query``, ``key``, ``value`` and
            ``gate_value``, which choose weights, and the block of a packed one.

    Raises:
        PlanError: nothing matches, the pattern is none, or a question asks for a field that nodes do not have.
    """
    candidates = list(nodes)
    if pattern is None and not questions:
        raise PlanError(compose("no pattern and no question", "one of them", instead='"*.A_log", or role="query"'))
    _check_pattern(pattern)
    for field in questions:
        if field not in _QUESTIONS:
            raise PlanError(
                compose(f"{field}=…", f"a field of a node: {', '.join(_QUESTIONS)}", nearest(field, _QUESTIONS))
            )
    _check_role(questions.get("role"))
    names = frozenset(name for node in candidates for name in (node.name, *node.aliases))
    chosen: dict[str, tuple[str, ...]] = {}
    for node in candidates:
        blocks = _answers(node, questions)
        if blocks is not None and _matches(node, pattern, names):
            chosen[node.name] = blocks
    several = [] if pattern is None or isinstance(pattern, str) or callable(pattern) else list(pattern)
    for item in several:
        if not any(_matches(node, item, names) for node in candidates):
            raise _no_match(candidates, item, {})
    if not chosen:
        raise _no_match(candidates, pattern, questions)
    return chosen


def _check_role(role: object) -> None:
    known = [*PARTS, *Role]
    if role is not None and role not in known:
        raise PlanError(compose(f"role={role!r}", "a role that nodes have", nearest(str(role), known)))


def _check_pattern(pattern: object) -> None:
    if pattern is None or isinstance(pattern, str) or callable(pattern):
        return
    if isinstance(pattern, re.Pattern):
        instead = f"lambda node: re.search({pattern.pattern!r}, node.name)"
    elif isinstance(pattern, Collection):
        wrong = [item for item in pattern if not isinstance(item, str)]
        if not wrong:
            return
        pattern, instead = wrong[0], '["fc.weight", "blocks.*.fc2.weight"], or one function of the node'
    else:
        instead = '"blocks.*.fc2.weight"'
    raise PlanError(compose(f"the pattern {pattern!r}", "a name, a glob, several of these, or a function", "", instead))


def _matches(node: ParameterNode, pattern: Pattern | None, known: frozenset[str]) -> bool:
    """Whether a pattern means this parameter; ``known`` are the names that there are."""
    if pattern is None:
        return True
    if callable(pattern):
        return bool(pattern(node))
    own = (node.name, *node.aliases)
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    # A name may itself look like a glob: a[0].weight is no way to write a0.weight where it is a parameter.
    return any(item in own if item in known else any(fnmatchcase(name, item) for name in own) for item in patterns)


def _answers(node: ParameterNode, questions: dict[str, Any]) -> tuple[str, ...] | None:
    """The blocks that answer every question (empty: the whole parameter does); None when it does not."""
    blocks: tuple[str, ...] = ()
    for field, wanted in questions.items():
        if field == "role" and wanted in PARTS:
            if not node.is_weight:
                return None
            if node.activation == PARTS[wanted]:
                continue
            blocks = tuple(block.name for block in node.axes.blocks if block.activation == PARTS[wanted])
            if not blocks:
                return None
        elif getattr(node, field) != wanted:
            return None
    return blocks


def _followers(node: ParameterNode) -> set[str | None]:
    return {node.activation, *(block.activation for block in node.axes.blocks)} if node.is_weight else set()


def _answers_here(nodes: list[ParameterNode], questions: dict[str, Any]) -> str:
    """Which values there are of the first field that has nowhere the value asked for; empty where each is somewhere."""
    for field, wanted in questions.items():
        values = [getattr(node, field) for node in nodes]
        if field != "role" and wanted not in values:
            texts = {str(value) for value in values if value not in (None, "")}
            return nearest(str(wanted), texts).replace("known: ", f"{field} here: ")
    return ""


def _no_match(nodes: list[ParameterNode], pattern: Pattern | None, questions: dict[str, Any]) -> PlanError:
    asked = ", ".join(f"{field}={value!r}" for field, value in questions.items())
    answers = _answers_here(nodes, questions)
    if answers:
        return PlanError(
            compose(asked, "a value that a parameter has", answers, "print(plan.graph), for what there is")
        )
    if isinstance(pattern, str):
        shown = f"the pattern {pattern!r}" + (f" with {asked}" if asked else "")
        why = nearest(pattern.replace("*", ""), [node.name for node in nodes])
    else:
        shown = asked if pattern is None else "the pattern" + (f" with {asked}" if asked else "")
        parts = {part for part, after in PARTS.items() for node in nodes if after in _followers(node)}
        why = f"roles here: {', '.join(sorted({*map(str, {node.role for node in nodes}), *parts}))}"
    return PlanError(compose(shown, "a pattern that matches at least one parameter", why, "print(plan), for the names"))
