"""The graph: what a model does with each of its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any

from fanin import tables, texts
from fanin.errors import PlanError, TraceError, article, compose, nearest
from fanin.fans import Axes, Fans
from fanin.fields import require_fields
from fanin.schemes import Scheme

SCHEMA = 1


class Role(StrEnum):
    """What the model does with a parameter."""

    LINEAR = "linear"
    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    EMBEDDING = "embedding"
    NORM_SCALE = "norm_scale"
    NORM_SHIFT = "norm_shift"
    BIAS = "bias"
    RECURRENT = "recurrent"
    LAYER_SCALE = "layer_scale"
    POSITION = "position"
    TOKEN = "token"
    OTHER = "other"


WEIGHTS = frozenset({Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE, Role.RECURRENT})
"""The roles of weights that contract an input: those to which fans and gains apply."""

STANDARDIZING = frozenset({"batch_norm", "layer_norm", "std", "std_mean", "var", "var_mean"})
"""Operations between a parameter and its layer that undo its scale."""

RESCALING = frozenset({"mul", "div", "true_divide", "sigmoid", "tanh", "exp"})
"""Operations between a parameter and what it is added to that give it another size."""

BESIDE = frozenset({Role.BIAS, Role.NORM_SHIFT, Role.POSITION, Role.TOKEN})
"""The roles of what is added to a signal, so that its zeros block nothing."""


NEARLY_ONE = 0.9
"""A learned scale from here on leaves what it multiplies as it is."""


@dataclass(frozen=True, slots=True)
class Activation:
    """A non-linearity that was captured from the model's own operations, with its moments under N(0, 1).

    Named ones need no record; this is for what no table knows.
    """

    name: str
    second_moment: float
    derivative_second_moment: float


@dataclass(frozen=True, slots=True)
class Op:
    """One operation that consumed a parameter, in execution order."""

    index: int
    target: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class ParameterNode:
    """One parameter, and what the model does with it.

    Args:
        name: the first name under which the module tree lists it.
        shape: its size along each axis.
        dtype: as torch prints it, without the prefix: ``float32``.
        role: what the model does with it.
        axes: the parts that its axes play; packed weights have their blocks there.
        module_type: the class of the module that owns it: ``Linear``.
        aliases: its other names, when it is tied.
        activation: the first non-linearity that its output reaches through shape operations, dropout, pooling, sums of
            biases and normalizations: ``relu``, ``gelu``, …; ``softmax_q`` and ``softmax_k`` for the sides of an
            attention score, ``attention_value``, ``gate_value`` for the factor of a gated product that passes no
            non-linearity itself; ``none`` when another weight or the output comes first; None when it is not known.
        captured: the moments of an activation that no table knows.
        norm_before: a normalization feeds it.
        norm_after: its output is normalized before any non-linearity, product, sum or next weight, so that its scale
            does not matter.
        residual_last: it is the last weight of its residual branch.
        tamed_by: what follows the branch's last weight and keeps the branch small: a layer scale, a norm's scale or a
            scalar, by its name; empty when nothing does.
        scaled_by: the learned scale that follows it instead and is one as constructed, so that it keeps nothing small.
        stream: the residual stream that its branch adds into.
        stream_depth: how many branches are added into that stream.
        post_norm: the sums of that stream are normalized before they go on, around the next branch as well.
        skip_scaled: the model multiplies the stream where it adds the branch, or the branch by a constant, so that the
            two weigh differently, as in DeepNorm.
        feedback: it multiplies what its own layer put out before, as a recurrent weight does.
        feeds_state: its output is added to that of a weight with feedback, as the input of a recurrence is.
        state_before: the recurrence whose state it takes in, through moves and pooling: ``lstm``, ``gru``, ``rnn_tanh``
            or ``rnn_relu``, also for one that is written by hand; empty for any other weight.
        summed: how many positions were summed up into each number that it takes in, as over the elements of a set.
        averaged: how many positions were averaged into each number that it takes in, where they have no mean of their
            own.
        input_rms: how large the numbers are that it takes in, where constants or a unit length decide it: pixels that
            the model multiplies by 255, vectors of length 1, a table of distances. 1 for any other. Of an embedding
            that is a matrix as well, the constant factor of what that takes in.
        times: the constant that the model multiplies an embedding's rows by, as √d in the first transformer.
        covered: the share of a convolution's taps that meet its input and not the zeros around it, over all places.
        table_before: the embedding whose rows a weight takes in as they are, moved and joined at most, or to whose rows
            a position is added, by its name.
        gate: ``factor`` where its activated output multiplies another signal; ``exponent`` where the exponential of its
            output does, perhaps of its bounded output, as in the couplings of flows; ``keep`` where its sigmoid
            multiplies a state that goes on, or a stream as in highway networks; ``write`` where one minus its sigmoid
            does. Blocks of a packed weight have the latter three for a name.
        dot_product: of an embedding, that its rows are multiplied with another signal and summed, as the factors of a
            recommender are.
        output: nothing but the model's output comes after it, perhaps through a function that gives it the range of a
            target, as a last sigmoid does.
        depth: its place among the weights in order of execution, from 0.
        weight_depth: how many weights lie on the longest way from an input to what it puts out, itself included, where
            it is used first; a weight that is used again counts each time. 0 where nothing was traced.
        exercised: the traced run used it.
        frozen: it does not require gradients.
        padding_row: the row of an embedding that stays zero.
        reparametrized: the operations between this parameter and the one that consumes it, in order.
        offset: the constant that the model adds to it before it uses it, as the 1 of norms that multiply by 1 + γ.
        default: what its constructor draws, where that is known.
        ops: the operations that consume it.
        evidence: the path of operations, in words.
        confidence: from 0 to 1.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    axes: Axes
    dtype: str = "float32"
    module_type: str = ""
    aliases: tuple[str, ...] = ()
    activation: str | None = None
    captured: Activation | None = None
    norm_before: bool = False
    norm_after: bool = False
    residual_last: bool = False
    tamed_by: str = ""
    scaled_by: str = ""
    stream: int | None = None
    stream_depth: int = 0
    post_norm: bool = False
    skip_scaled: bool = False
    feedback: bool = False
    feeds_state: bool = False
    state_before: str = ""
    summed: int = 1
    averaged: int = 1
    input_rms: float = 1.0
    times: float = 1.0
    covered: float = 1.0
    table_before: str = ""
    gate: str = ""
    dot_product: bool = False
    output: bool = False
    depth: int | None = None
    weight_depth: int = 0
    exercised: bool = True
    frozen: bool = False
    padding_row: int | None = None
    reparametrized: tuple[str, ...] = ()
    offset: float = 0.0
    default: Scheme | None = None
    ops: tuple[Op, ...] = ()
    evidence: str = ""
    confidence: float = 1.0

    @property
    def fans(self) -> Fans:
        """The true fans."""
        return self.axes.fans(self.shape)

    @property
    def blocks(self) -> dict[str, tuple[range, ...]]:
        """The named row ranges of a packed weight; empty for a plain one."""
        return {block.name: block.rows for block in self.axes.blocks}

    @property
    def is_weight(self) -> bool:
        """Whether it contracts an input, so that fans and gains apply."""
        return self.role in WEIGHTS

    @property
    def standardized(self) -> bool:
        """Whether the model itself undoes the weight's scale, as weight standardization does."""
        return not STANDARDIZING.isdisjoint(self.reparametrized)

    @property
    def rescaled(self) -> bool:
        """Whether what is used of it has another size than the parameter."""
        return not RESCALING.isdisjoint(self.reparametrized)

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON types."""
        record: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "role": str(self.role)}
        record["axes"] = self.axes.to_dict()
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in record and value != item.default:
                record[item.name] = _plain(value)
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ParameterNode:
        """The inverse of `to_dict`."""
        values = dict(require_fields(cls, record))
        values["shape"] = tuple(values["shape"])
        if any(size < 0 for size in values["shape"]):
            raise PlanError(compose(f"shape {values['shape']}", "sizes of at least 0"))
        values["role"] = Role(values["role"])
        values["axes"] = Axes.from_dict(values["axes"])
        for name in ("aliases", "reparametrized"):
            values[name] = tuple(values.get(name, ()))
        values["ops"] = tuple(Op(**op) for op in values.get("ops", ()))
        if values.get("captured"):
            values["captured"] = Activation(**values["captured"])
        if values.get("default"):
            values["default"] = Scheme.from_dict(values["default"])
        return cls(**values)


@dataclass(frozen=True)
class Graph:
    """What each parameter of a model is, from its own dataflow or, failing that, from its module types.

    Args:
        parameters: a node for every parameter, in the module tree's order.
        source: how it was found: ``fake``, ``optimistic`` or ``real`` for a traced run, ``modules`` for module types.
        inputs: the example inputs that were used, in words.
        notes: what went wrong or was guessed.
    """

    parameters: tuple[ParameterNode, ...]
    source: str = "modules"
    inputs: str = ""
    notes: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[ParameterNode]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> ParameterNode:
        """The node of a parameter, under any of its names."""
        try:
            return self._by_name[name]
        except KeyError:
            raise TraceError(f"no parameter is named {name!r}; {nearest(name, self._by_name)}") from None

    @cached_property
    def _by_name(self) -> dict[str, ParameterNode]:
        return {name: node for node in self.parameters for name in (node.name, *node.aliases)}

    def explain(self, name: str) -> str:
        """The story of one parameter, in a sentence or two.

        Raises:
            TraceError: no parameter has that name.
        """
        return _story(self[name])

    def to_dict(self) -> dict[str, Any]:
        """The graph as JSON types."""
        return {
            "fanin": "graph",
            "schema": SCHEMA,
            "source": self.source,
            "inputs": self.inputs,
            "notes": list(self.notes),
            "parameters": [node.to_dict() for node in self.parameters],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The graph as JSON text, which `from_json` reads back to an equal graph."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """The inverse of `to_json`.

        Raises:
            InputsError: the text is no graph.
        """
        return texts.read(text, "graph", SCHEMA, cls._of)

    @classmethod
    def _of(cls, record: dict[str, Any]) -> Graph:
        nodes = tuple(ParameterNode.from_dict(node) for node in record["parameters"])
        return cls(nodes, record["source"], record["inputs"], tuple(record["notes"]))

    def __str__(self) -> str:
        columns = [
            tables.Column("parameter"),
            tables.Column("shape"),
            tables.Column("role"),
            tables.Column("fans", right=True),
            tables.Column("what comes after", wrap=True),
        ]
        rows = [
            (node.name, tables.shape_text(node.shape), str(node.role), _fans_text(node), _after(node))
            for node in self.parameters
        ]
        traced = f"from a {self.source} run on {self.inputs}" if self.source != "modules" else "from module types"
        head = f"{tables.counted(len(self), 'parameter')}, {traced}"
        footer = "\n".join((head, *(f"note: {note}" for note in self.notes)))
        return tables.render(columns, rows, footer=footer)


def _fans_text(node: ParameterNode) -> str:
    if not node.is_weight and node.role != Role.EMBEDDING:
        return ""
    fans = node.fans
    return f"{fans.fan_in:g} → {fans.fan_out:g}"


def _after(node: ParameterNode) -> str:
    """The consumer's view of one parameter, for a table cell."""
    if not node.exercised:
        return "not exercised"
    parts = []
    if node.axes.blocks:
        parts.append(" | ".join(_block_text(block.name, block.activation) for block in node.axes.blocks))
    elif node.activation:
        parts.append(node.activation)
    if node.norm_after:
        parts.append("norm after")
    if node.residual_last:
        parts.append(f"last of its branch, {node.stream_depth} in {_stream_text(node)}")
    if node.output:
        parts.append("output")
    if node.aliases:
        kind = "becomes" if node.reparametrized else "tied"
        parts.append(f"{kind}: {', '.join(node.aliases)}")
    return ", ".join(parts)


def _stream_text(node: ParameterNode) -> str:
    return f"stream {node.stream}" + (", post-norm" if node.post_norm else "")


def _block_text(name: str, activation: str | None) -> str:
    return f"{name}: {activation}" if activation else name


def _story(node: ParameterNode) -> str:
    owner = f" of {article(node.module_type)}" if node.module_type else ""
    parts = [f"{node.name} ({tables.shape_text(node.shape)}) is the {str(node.role).replace('_', ' ')}{owner}"]
    if node.is_weight:
        parts.append(f"with fans {_fans_text(node)}")
    if node.reparametrized:
        parts.append(f"that is used through {', '.join(node.reparametrized)}")
    text = " ".join(parts) + "."
    after = _after(node)
    if after:
        text += f" After it: {after}."
    if node.norm_before:
        text += " A normalization feeds it."
    if node.tamed_by:
        text += f" Its branch is held small by {node.tamed_by}."
    if node.evidence:
        text += f" Seen: {node.evidence}."
    return text + f" Confidence {node.confidence:.2f}."


def _plain(value: Any) -> Any:
    if isinstance(value, Scheme):
        return value.to_dict()
    if isinstance(value, Op | Activation):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
