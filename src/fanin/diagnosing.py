"""`diagnose`: trace, measure, judge; and the plan that mends what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from fanin.diagnoses import Diagnosis
from fanin.findings import Codes, Evidence, Hidden, examine
from fanin.graph import Graph, ParameterNode
from fanin.holding import holdable
from fanin.measuring import measure
from fanin.plans import Plan
from fanin.schemes import Keep, Scheme
from fanin.signals import Signals
from fanin.tracing.names import unwrap


def diagnose(
    model: nn.Module,
    inputs: Any = None,
    *,
    loss: Callable[[Any], torch.Tensor] | str | None = None,
    plan: Plan | None = None,
    layers: str | Sequence[str] | None = None,
    select: Codes = (),
    ignore: Codes = (),
) -> Diagnosis:
    """Judge how a model starts: one forward and backward on a batch, and every rule of `fanin.findings`.

    Nothing of the model changes.

    Args:
        model: any module with values.
        inputs: what the model is called with; a real batch says most. Without it only the values are judged.
        loss: from the model's output to a scalar, or a name: ``cross-entropy`` and ``mse``, with drawn targets.
        plan: what the model was filled by; `Diagnosis.fix` edits it. Without it, a plan that keeps every parameter.
        layers: globs over the paths of modules, as for `fanin.measure`; of the others nothing is measured but their
            parameters.
        select, ignore: codes or their beginnings: ``"F2"`` stands for all of that family.

    Raises:
        FaninError: a code begins no rule's, or ``layers`` matches no module.

    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> _ = nn.init.constant_(model[0].weight, 0.1)
    >>> diagnosis = diagnose(model, torch.randn(8, 16, generator=torch.Generator().manual_seed(0)))
    >>> diagnosis.findings[0].code, diagnosis.findings[0].place
    ('F101', '0.weight')
    """
    hidden = tuple(hidden_weights(model))
    signals = measure(model, inputs, loss=loss, layers=layers)
    diagnosis = judge(signals, plan=plan, hidden=hidden, select=select, ignore=ignore)
    return replace(diagnosis, findings=holdable(diagnosis.findings, signals, model))


def judge(
    signals: Signals,
    *,
    plan: Plan | None = None,
    hidden: tuple[Hidden, ...] = (),
    select: Codes = (),
    ignore: Codes = (),
) -> Diagnosis:
    """Judge signals that were measured before, perhaps on another machine."""
    evidence = Evidence(signals.graph, signals, plan, hidden)
    findings = examine(evidence, select, ignore)
    return Diagnosis(findings, signals, plan if plan is not None else as_found(signals.graph))


def as_found(graph: Graph) -> Plan:
    """The plan that keeps every parameter as it is."""

    def keep(_node: ParameterNode) -> tuple[Scheme, str]:
        return Keep(), "as it was found"

    return Plan.of(graph, "as found", keep)


def hidden_weights(model: nn.Module) -> Iterator[Hidden]:
    """The weights that were set, and that the next forward computes anew.

    Those under ``torch.nn.utils.weight_norm``, and those under ``torch.nn.utils.prune``.
    """
    for path, module in unwrap(model).named_modules():
        for hook in module._forward_pre_hooks.values():
            found = _pruned(module, hook) if isinstance(hook, BasePruningMethod) else _normed(module, hook)
            if found is not None:
                name, source, was_set, used = found
                prefix = f"{path}." if path else ""
                yield Hidden(f"{prefix}{name}", f"{prefix}{source}", _rms(was_set), _rms(used), _rms(used - was_set))


Computed = tuple[str, str, torch.Tensor, torch.Tensor]
"""Of a computed weight: its name, that of the parameter to set instead, the weight as set, and as computed."""


def _normed(module: nn.Module, hook: Any) -> Computed | None:
    name, compute = getattr(hook, "name", None), getattr(hook, "compute_weight", None)
    if not isinstance(name, str) or compute is None or not hasattr(module, f"{name}_g"):
        return None
    with torch.no_grad():
        return name, f"{name}_g", getattr(module, name).detach(), compute(module)


def _pruned(module: nn.Module, hook: BasePruningMethod) -> Computed | None:
    """What was written over a pruned weight has values where the mask has none; else it is of before the last step."""
    name: str = hook._tensor_name
    was_set, mask = getattr(module, name).detach(), getattr(module, f"{name}_mask")
    if was_set.is_meta or mask.is_meta or not bool(was_set[mask == 0].any()):
        return None
    return name, f"{name}_orig", was_set, getattr(module, f"{name}_orig").detach() * mask


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())
