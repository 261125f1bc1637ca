"""What was measured and found, for TensorBoard: profiles over depth as scalars, findings as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fanin.diagnoses import Diagnosis
from fanin.observations import LayerSignal, ParameterSignal
from fanin.signals import Signals

__all__ = ["Writer", "write"]


class Writer(Protocol):
    """What is used of a ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...

    def add_text(self, tag: str, text_string: str, global_step: int) -> object: ...


LAYERS: dict[str, Callable[[LayerSignal], float | None]] = {
    "activation_rms": lambda layer: layer.rms,
    "activation_mean": lambda layer: layer.mean,
    "activation_zero": lambda layer: layer.zero,
    "activation_saturated": lambda layer: layer.saturated,
    "sample_cosine": lambda layer: layer.sample_cosine,
    "position_cosine": lambda layer: layer.position_cosine,
    "attention_entropy": lambda layer: layer.entropy,
    "branch_share": lambda layer: layer.branch_share,
    "gradient_rms": lambda layer: layer.grad_rms,
}
"""The profiles over operations, in execution order."""

PARAMETERS: dict[str, Callable[[ParameterSignal], float | None]] = {
    "weight_rms": lambda parameter: parameter.rms,
    "weight_gradient_rms": lambda parameter: parameter.grad_rms,
    "weight_gradient_ratio": lambda parameter: parameter.grad_ratio,
}
"""The profiles over parameters, in the module tree's order."""


def write(record: Diagnosis | Signals, writer: Writer, *, step: int = 0, prefix: str = "fanin") -> None:
    """Write a diagnosis, or signals alone, to TensorBoard.

    The horizontal axis of a profile is depth: the number of the operation in execution order, or of the parameter in
    the module tree's. The texts ``layers`` and ``parameters`` say which number is which; ``findings`` has the findings
    and ``loss`` the loss.

    Args:
        record: from `fanin.diagnose` or `fanin.measure`.
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar`` and ``add_text``.
        step: the step of training that was measured, for the loss and the texts.
        prefix: the group that all of it stands in.

    >>> import fanin, torch
    >>> class Printer:
    ...     def add_scalar(self, tag, scalar_value, global_step):
    ...         if "activation_zero" in tag: print(tag, global_step, scalar_value)
    ...     def add_text(self, tag, text_string, global_step): pass
    >>> write(fanin.measure(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.ones(2, 4)), Printer())
    fanin/activation_zero 0 0.0
    """
    signals = record.signals if isinstance(record, Diagnosis) else record
    for layer in signals.layers:
        for name, of_layer in LAYERS.items():
            _scalar(writer, f"{prefix}/{name}", of_layer(layer), layer.index)
    for place, parameter in enumerate(signals.parameters):
        for name, of_parameter in PARAMETERS.items():
            _scalar(writer, f"{prefix}/{name}", of_parameter(parameter), place)
    _scalar(writer, f"{prefix}/loss", signals.loss, step)
    _scalar(writer, f"{prefix}/loss_uninformed", signals.uninformed, step)
    writer.add_text(f"{prefix}/layers", _numbered([(item.name, item.target) for item in signals.layers]), step)
    writer.add_text(f"{prefix}/parameters", _numbered([(item.name, "") for item in signals.parameters]), step)
    if isinstance(record, Diagnosis):
        writer.add_text(f"{prefix}/findings", _findings(record), step)


def _scalar(writer: Writer, tag: str, value: float | None, step: int) -> None:
    if value is not None:
        writer.add_scalar(tag, value, step)


def _numbered(items: list[tuple[str, str]]) -> str:
    rows = [f"| {place} | `{name}` | {what} |" for place, (name, what) in enumerate(items)]
    return "\n".join(("| number | name | operation |", "|---|---|---|", *rows))


def _findings(diagnosis: Diagnosis) -> str:
    if not diagnosis.findings:
        return str(diagnosis)
    return "\n\n".join(
        f"**{finding.code} {finding.severity}** `{finding.place or 'the model'}`: {finding.seen}  \n"
        f"why: {finding.why}  \nremedy: {finding.remedy}"
        for finding in diagnosis.findings
    )
