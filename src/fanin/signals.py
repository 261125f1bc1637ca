"""Signals: what one forward and backward of a model looked like, as a value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fanin import tables, texts
from fanin.errors import InputsError, nearest
from fanin.graph import Graph, ParameterNode
from fanin.observations import BlockSignal, BufferSignal, Kind, LayerSignal, ParameterSignal

__all__ = ["BlockSignal", "BufferSignal", "Kind", "LayerSignal", "ParameterSignal", "Signals"]

SCHEMA = 1
OF_ZEROS, OF_STANDARD = "the loss of an output of zeros", "the loss of a standard distribution"
"""Where the loss of knowing nothing may come from."""


@dataclass(frozen=True)
class Signals:
    """The signal through a model before the first step: forward, backward, and every parameter.

    `fanin.measure` makes it. It prints as a table, compares equal by content, and goes to JSON and back.

    Args:
        layers: every measured operation, in execution order; empty when nothing was run.
        parameters: every parameter, in the module tree's order.
        graph: what each parameter is.
        buffers: every floating-point buffer.
        twins: groups of parameters of two or more that hold the same values bit for bit and are not tied; parameters
            that are constant (zeros, ones), or of few numbers, which are written and not drawn, are in none.
        inputs: what the model was called with, in words.
        samples: the size of the batch; None where it is not known.
        precision: the dtype that autocast ran in; empty without autocast.
        loss: its value; infinite where it is not a number; None where there was none, only a projection.
        loss_from: ``given``, ``model`` (the model returned its own) or ``projection`` (a fixed random one of its
            outputs); empty without a backward.
        uninformed: the loss of an output of zeros, or of a standard distribution: ln C for cross-entropy. None where it
            is not known.
        uninformed_from: where that number comes from, in words.
        notes: what a reader should know of how it was measured.
    """

    layers: tuple[LayerSignal, ...]
    parameters: tuple[ParameterSignal, ...]
    graph: Graph
    buffers: tuple[BufferSignal, ...] = ()
    twins: tuple[tuple[str, ...], ...] = ()
    inputs: str = ""
    samples: int | None = None
    precision: str = ""
    loss: float | None = None
    loss_from: str = ""
    uninformed: float | None = None
    uninformed_from: str = ""
    notes: tuple[str, ...] = ()

    def parameter(self, name: str) -> ParameterSignal:
        """What was measured of a parameter, under any of its names.

        Raises:
            InputsError: no parameter has that name.
        """
        try:
            return self._parameters[self.graph[name].name if name in self.graph else name]
        except KeyError:
            raise InputsError(f"no parameter is named {name!r}; {nearest(name, self._parameters)}") from None

    def layer(self, name: str) -> LayerSignal:
        """What was measured of an operation, by its place.

        Raises:
            InputsError: none has that name.
        """
        try:
            return self._layers[name]
        except KeyError:
            raise InputsError(f"nothing was measured at {name!r}; {nearest(name, self._layers)}") from None

    def node(self, name: str) -> ParameterNode:
        """What a parameter is: role, axes, fans, activation, stream."""
        return self.graph[name]

    @cached_property
    def _parameters(self) -> dict[str, ParameterSignal]:
        return {signal.name: signal for signal in self.parameters}

    @cached_property
    def _layers(self) -> dict[str, LayerSignal]:
        return {signal.name: signal for signal in self.layers}

    @cached_property
    def _readers(self) -> dict[str, tuple[LayerSignal, ...]]:
        found: dict[str, list[LayerSignal]] = {}
        for signal in self.layers:
            for weight in signal.weights:
                found.setdefault(weight, []).append(signal)
        return {name: tuple(signals) for name, signals in found.items()}

    def readers(self, parameter: str) -> tuple[LayerSignal, ...]:
        """The operations that read a parameter, in execution order."""
        return self._readers.get(parameter, ())

    def of_kind(self, *kinds: Kind) -> tuple[LayerSignal, ...]:
        """The operations of some kinds, in execution order."""
        return tuple(signal for signal in self.layers if signal.kind in kinds)

    @cached_property
    def streams(self) -> dict[int, tuple[LayerSignal, ...]]:
        """The sums that close the branches of each residual stream, in execution order."""
        found: dict[int, list[LayerSignal]] = {}
        for signal in self.layers:
            if signal.stream is not None:
                found.setdefault(signal.stream, []).append(signal)
        return {stream: tuple(signals) for stream, signals in found.items()}

    @property
    def has_run(self) -> bool:
        """Whether a forward was measured."""
        return bool(self.layers)

    @property
    def has_gradients(self) -> bool:
        """Whether a backward was measured."""
        return bool(self.loss_from)

    def to_dict(self) -> dict[str, Any]:
        """The signals as JSON types."""
        return {
            "fanin": "signals",
            "schema": SCHEMA,
            "inputs": self.inputs,
            "samples": self.samples,
            "precision": self.precision,
            "loss": "inf" if self.loss == float("inf") else self.loss,
            "loss_from": self.loss_from,
            "uninformed": self.uninformed,
            "uninformed_from": self.uninformed_from,
            "notes": list(self.notes),
            "twins": [list(group) for group in self.twins],
            "layers": [signal.to_dict() for signal in self.layers],
            "parameters": [signal.to_dict() for signal in self.parameters],
            "buffers": [signal.to_dict() for signal in self.buffers],
            "graph": self.graph.to_dict(),
        }

    def to_json(self, indent: int | None = None) -> str:
        """The signals as JSON text, which `from_json` reads back to equal signals."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Signals:
        """The inverse of `to_json`. Nothing in the text is executed.

        Raises:
            InputsError: the text is no signals.
        """
        return texts.read(text, "signals", SCHEMA, cls._of)

    @classmethod
    def _of(cls, record: dict[str, Any]) -> Signals:
        plain = ("inputs", "samples", "precision", "loss_from", "uninformed", "uninformed_from")
        return cls(
            layers=tuple(LayerSignal.from_dict(part) for part in record["layers"]),
            parameters=tuple(ParameterSignal.from_dict(part) for part in record["parameters"]),
            graph=Graph.from_json(json.dumps(record["graph"])),
            buffers=tuple(BufferSignal.from_dict(part) for part in record["buffers"]),
            twins=tuple(tuple(group) for group in record["twins"]),
            loss=None if record["loss"] is None else float(record["loss"]),
            notes=tuple(record["notes"]),
            **{key: record[key] for key in plain},
        )

    def save(self, path: str | Path) -> Path:
        """Write the signals as JSON."""
        target = Path(path)
        target.write_text(self.to_json(indent=1) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Signals:
        """Read signals that `save` wrote."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def table(self, width: int | None = None) -> str:
        """One line an operation: the profile through the model."""
        columns = [tables.Column("layer"), tables.Column("operation")]
        columns += [tables.Column(title, right=True) for title in ("rms", "mean", "zero", "cosine", "gradient")]
        rows = []
        for signal in self.layers:
            numbers = (signal.rms, signal.mean, signal.zero, signal.sample_cosine, signal.grad_rms)
            rows.append((signal.name, signal.target, *(tables.number(value, 3) for value in numbers)))
        return tables.render(columns, rows, width=width)

    @property
    def _summary(self) -> str:
        operations = tables.counted(len(self.layers), "operation")
        words = [f"{operations}, {tables.counted(len(self.parameters), 'parameter')}"]
        if self.inputs:
            words.append(f"on {self.inputs}")
        if self.loss is not None:
            known = f", uninformed {tables.number(self.uninformed)}" if self.uninformed is not None else ""
            words.append(f"loss {tables.number(self.loss)}{known}")
        return "; ".join(words)

    def __str__(self) -> str:
        return "\n".join((self.table(), self._summary, *(f"note: {note}" for note in self.notes)))
