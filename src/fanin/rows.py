"""The row of a plan: one parameter, what it gets, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fanin import tables
from fanin.citations import source
from fanin.errors import PlanError, compose
from fanin.fans import Axes, Block, Fans
from fanin.fields import require_fields, require_kinds
from fanin.graph import Activation, Op, ParameterNode, Role
from fanin.schemes import Expected, Keep, Packed, Scheme

_KINDS = {"name": str, "shape": tuple[int, ...], "role": str, "scheme": dict, "reason": str}
_KINDS |= {"sources": tuple[str, ...], "parameter": dict}
"""The fields of a row in a file."""


@dataclass(frozen=True)
class Row:
    """One parameter of a plan: what it is, what it gets, and why."""

    node: ParameterNode
    scheme: Scheme
    reason: str
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.scheme, Packed):
            _require_blocks(self.node, self.scheme)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.shape

    @property
    def role(self) -> Role:
        return self.node.role

    @property
    def kept(self) -> bool:
        """Whether the parameter stays as its constructor made it."""
        return isinstance(self.scheme, Keep)

    @property
    def fans(self) -> Fans:
        return self.node.fans

    @cached_property
    def expected(self) -> Expected:
        """Mean and standard deviation over all entries, a padding row included; not-a-number when kept."""
        mean, std = self.scheme.expected(self.fans, self.shape, self.node.axes)
        if self.node.padding_row is not None and self.shape and self.shape[0]:
            share = 1 - 1 / self.shape[0]
            second = share * (std**2 + mean**2)
            mean *= share
            std = math.sqrt(max(second - mean**2, 0.0))
        return Expected(mean, std)

    @property
    def std(self) -> float | None:
        """The expected standard deviation; None when the parameter is kept."""
        return None if self.kept else self.expected.std

    @cached_property
    def block_std(self) -> dict[str, float]:
        """The expected standard deviation of each block of a packed weight."""
        if self.kept:
            return {}
        result = {}
        for name, fans in self.node.axes.block_fans(self.shape).items():
            result[name] = self.block_scheme(name).expected(fans, *self.block_site(name)).std
        return result

    @property
    def std_text(self) -> str:
        """The standard deviation for a reader: one number, or that of each block where they differ."""
        blocks = {name: tables.number(std) for name, std in self.block_std.items()}
        if len(set(blocks.values())) > 1:
            return ", ".join(f"{name} {std}" for name, std in blocks.items())
        return tables.number(self.std)

    def block_scheme(self, block: str) -> Scheme:
        """The scheme of one block."""
        return self.scheme.part(block)

    def block_site(self, block: str) -> tuple[tuple[int, ...], Axes]:
        """The shape and axes of one block, as of a weight of its own."""
        axes = self.node.axes
        return axes.of_block(next(part for part in axes.blocks if part.name == block), self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON types: what a reader edits first, then what the parameter is."""
        node = self.node.to_dict()
        head = {key: node.pop(key) for key in ("name", "shape", "role")}
        record = {**head, "scheme": self.scheme.to_dict(), "reason": self.reason}
        return {**record, **({"sources": list(self.sources)} if self.sources else {}), "parameter": node}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Row:
        """The inverse of `to_dict`."""
        require_kinds(_KINDS, record)
        node = {**record["parameter"], **{key: record[key] for key in ("name", "shape", "role")}}
        reason, sources = record["reason"], tuple(record.get("sources", ()))
        if not reason.strip():
            raise PlanError(compose(f"reason {reason!r}", "a sentence that says why"))
        for key in sources:
            source(key)
        row = cls(_parameter(node), Scheme.from_dict(record["scheme"]), reason, sources)
        row.expected, row.block_std  # noqa: B018 - computed here, so that what cannot be is told with the row
        return row


def _parameter(record: dict[str, Any]) -> ParameterNode:
    """The node of a parameter from a file, with what classes of its own hold looked at too."""
    for field in ("captured", "default"):
        if record.get(field) is not None and not record[field]:
            raise PlanError(compose(f"{field}: {record[field]!r}", "an object with its fields, or null"))
    axes, captured = require_fields(Axes, record["axes"]), record.get("captured")
    inner: list[tuple[type, Iterable[object]]] = [(Activation, [captured] if captured else [])]
    inner += [(Op, record.get("ops", ())), (Block, axes.get("blocks", ()))]
    for kind, parts in inner:
        for part in parts:
            require_fields(kind, part)
    node = ParameterNode.from_dict(record)
    size = node.shape[0] if node.shape else 0
    if node.padding_row is not None and not -size <= node.padding_row < size:
        raise PlanError(compose(f"padding_row {node.padding_row}", f"one of the {size} rows"))
    return node


def _require_blocks(node: ParameterNode, scheme: Packed) -> None:
    """Raise unless a packed scheme draws values for each block of this parameter, and for no other."""
    blocks = [block.name for block in node.axes.blocks]
    drawn = [name for name, part in scheme.parts if not isinstance(part, Keep)]
    if not blocks:
        needed = "one scheme, for the parameter has no blocks"
        instead = f"plan.replace({node.name!r}, fanin.schemes.Normal(std=…))"
    elif sorted(drawn) != sorted(blocks):
        needed = f"a scheme that draws values for each of the blocks {', '.join(blocks)}, and for no other"
        instead = f"plan.keep({node.name!r}), for all of it, or fanin.schemes.Packed.of(…) with a scheme for each block"
    else:
        return
    given = ", ".join(f"{name}: {part.label}" for name, part in scheme.parts)
    raise PlanError(compose(f"{given} for {node.name!r}", needed, "a packed parameter is written whole", instead))
