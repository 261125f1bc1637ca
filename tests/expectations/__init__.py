"""What a person reads in a model's source about each of its parameters, to score the tracer against.

The format and the reading rules are in README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from expectations.models import build, example

if TYPE_CHECKING:
    from fanin.graph import ParameterNode

Record: TypeAlias = dict[str, Any]
Shape: TypeAlias = tuple[int, ...]

FOLDER = Path(__file__).parent

PLAIN = frozenset(
    {
        "role",
        "activation",
        "norm_before",
        "norm_after",
        "residual_last",
        "tamed_by",
        "stream_depth",
        "output",
        "depth",
        "exercised",
        "frozen",
        "padding_row",
        "aliases",
        "module_type",
    }
)
"""Fields that are compared with the node's attribute of the same name."""

AXES = frozenset({"in_axis", "out_axis", "batch_axis", "groups", "stride", "transposed"})
"""Fields that are compared with the attribute of the node's axes."""

DERIVED = frozenset({"blocks", "block_activations", "captured", "reparametrized"})
"""Fields that `observe` brings into the form in which they are written down."""

FIELDS = PLAIN | AXES | DERIVED


@cache
def records() -> dict[str, Record]:
    """Every expectation file, by the model's name."""
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return {record["model"]: record for record in found}


def names() -> list[str]:
    """The models that have an expectation."""
    return list(records())


def load(name: str) -> tuple[nn.Module, Any]:
    """The model, in eval mode, and the inputs to call it with."""
    record = records()[name]
    return build(record), example(record["inputs"])


def expected(name: str) -> dict[str, dict[str, Any]]:
    """Parameter → field → value; the first rule that matches a parameter is the one that counts."""
    rules = records()[name]["rules"]
    result = {}
    for parameter, shape in shapes(name).items():
        rule = next((rule for rule in rules if matches(rule, parameter)), None)
        if rule is not None:
            result[parameter] = _resolve(rule["expect"], parameter, shape)
    return result


def differences(name: str, graph: Iterable[ParameterNode]) -> list[tuple[str, str, Any, Any]]:
    """Where a traced graph and the expectation disagree: parameter, field, expected, observed."""
    nodes = {node.name: node for node in graph}
    found: list[tuple[str, str, Any, Any]] = []
    for parameter, fields in expected(name).items():
        if parameter not in nodes:
            found.append((parameter, "", "a node", "none"))
            continue
        for field, value in fields.items():
            seen = observe(nodes[parameter], field)
            if seen != value:
                found.append((parameter, field, value, seen))
    return found


def matches(rule: Record, parameter: str) -> bool:
    """Whether one of the rule's patterns names the parameter."""
    patterns = rule["pattern"]
    return any(fnmatchcase(parameter, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def observe(node: ParameterNode, field: str) -> Any:
    """What a traced node says in one field, in the form in which expectations are written."""
    if field in AXES:
        value = getattr(node.axes, field)
        return list(value) if isinstance(value, tuple) else value
    if field == "blocks":
        return {name: sorted(row for part in rows for row in part) for name, rows in node.blocks.items()}
    if field == "block_activations":
        return {block.name: block.activation for block in node.axes.blocks}
    if field in ("captured", "reparametrized"):
        return bool(getattr(node, field))
    value = getattr(node, field)
    return str(value) if field == "role" else sorted(value) if field == "aliases" else value


def shapes(name: str) -> dict[str, Shape]:
    """Parameter → shape, under the first name of each."""
    return {names[0]: shape for names, shape in _parameters(name)}


def all_names(name: str) -> frozenset[str]:
    """Every name of every parameter."""
    return frozenset(other for names, _ in _parameters(name) for other in names)


@cache
def _parameters(name: str) -> list[tuple[list[str], Shape]]:
    """The names and the shape of each parameter; models take long to build, and this is built once."""
    found: dict[int, tuple[list[str], Shape]] = {}
    model = build(records()[name])
    for other, value in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(value), ([], tuple(value.shape)))[0].append(other)
    return list(found.values())


def _resolve(expect: Record, parameter: str, shape: Shape) -> dict[str, Any]:
    """The rule's fields for one parameter: shorthands written out, relative names made absolute."""
    result: dict[str, Any] = {}
    for field, value in expect.items():
        if field == "even_blocks":
            size = shape[0] // len(value)
            result["blocks"] = {block: list(range(i * size, (i + 1) * size)) for i, block in enumerate(value)}
        elif field == "head_blocks":
            result["blocks"] = _head_blocks(value, shape[0])
        elif field == "blocks":
            result["blocks"] = {
                block: [row for part in parts for row in range(*part)] for block, parts in value.items()
            }
        elif field == "tamed_by":
            result[field] = _absolute(value, parameter)
        elif field == "aliases":
            result[field] = sorted(_absolute(alias, parameter) for alias in value)
        else:
            result[field] = shape[0] if value == "rows" else value
    return result


def _head_blocks(sizes: dict[str, int], rows: int) -> dict[str, list[int]]:
    """Blocks that repeat head by head until the rows are used up."""
    period = sum(sizes.values())
    result, start = {}, 0
    for block, size in sizes.items():
        result[block] = [head + start + row for head in range(0, rows, period) for row in range(size)]
        start += size
    return result


def _absolute(name: str, parameter: str) -> str:
    """``./x`` is a sibling of the parameter, ``../x`` one module further up."""
    if not name.startswith("."):
        return name
    path = parameter.split(".")[:-1]
    for step in name.split("/"):
        if step == "..":
            path = path[:-1]
        elif step != ".":
            path = [*path, step]
    return ".".join(path)
