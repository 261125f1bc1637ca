"""Which rows of a plan an edit speaks of: globs over names, and questions about what a parameter is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
        pattern: an exact name, a glob over names and ties, several of these, or a function of the node.
        questions: fields of the node that must have this value; ``role`` also takes ``query``, ``key``, ``value`` and
            ``gate_value``, which choose weights, and the block of a packed one.

    Raises:
        PlanError: nothing matches, or a question asks for a field that nodes do not have.
    """
    candidates = list(nodes)
    if pattern is None and not questions:
        raise PlanError(compose("no pattern and no question", "one of them", instead='"*.A_log", or role="query"'))
    for field in questions:
        if field not in _QUESTIONS:
            raise PlanError(
                compose(f"{field}=…", f"a field of a node: {', '.join(_QUESTIONS)}", nearest(field, _QUESTIONS))
            )
    _check_role(questions.get("role"))
    chosen: dict[str, tuple[str, ...]] = {}
    for node in candidates:
        blocks = _answers(node, questions)
        if blocks is not None and _matches(node, pattern):
            chosen[node.name] = blocks
    several = [] if pattern is None or isinstance(pattern, str) or callable(pattern) else list(pattern)
    for item in several:
        if not any(_matches(node, item) for node in candidates):
            raise _no_match(candidates, item, {})
    if not chosen:
        raise _no_match(candidates, pattern, questions)
    return chosen


def _check_role(role: object) -> None:
    known = [*PARTS, *Role]
    if role is not None and role not in known:
        raise PlanError(compose(f"role={role!r}", "a role that nodes have", nearest(str(role), known)))


def _matches(node: ParameterNode, pattern: Pattern | None) -> bool:
    if pattern is None:
        return True
    if callable(pattern):
        return bool(pattern(node))
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    names = (node.name, *node.aliases)
    return any(name == item or fnmatchcase(name, item) for item in patterns for name in names)


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


def _no_match(nodes: list[ParameterNode], pattern: Pattern | None, questions: dict[str, Any]) -> PlanError:
    asked = ", ".join(f"{field}={value!r}" for field, value in questions.items())
    if isinstance(pattern, str):
        shown = f"the pattern {pattern!r}" + (f" with {asked}" if asked else "")
        why = nearest(pattern.replace("*", ""), [node.name for node in nodes])
    else:
        shown = asked if pattern is None else "the pattern" + (f" with {asked}" if asked else "")
        parts = {part for part, after in PARTS.items() for node in nodes if after in _followers(node)}
        why = f"roles here: {', '.join(sorted({*map(str, {node.role for node in nodes}), *parts}))}"
    return PlanError(compose(shown, "a pattern that matches at least one parameter", why, "print(plan), for the names"))
