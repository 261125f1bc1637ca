"""Assertions for the tests of your own models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from fanin.diagnoses import RANKS, Level, Severity, told
from fanin.diagnosing import diagnose
from fanin.errors import InputsError, compose
from fanin.findings import Codes

__all__ = ["assert_healthy"]


def assert_healthy(
    model: nn.Module,
    inputs: Any = None,
    *,
    loss: str | Callable[[Any], torch.Tensor] | None = None,
    select: Codes = (),
    ignore: Codes = (),
    level: Level = "warning",
) -> None:
    """Fail unless a model starts well, as `fanin.diagnose` judges it; nothing of the model changes.

    Args:
        model: any module with values.
        inputs: what the model is called with; a real batch says most. Without it only the values are judged.
        loss: from the model's output to a scalar, or a name: ``cross-entropy`` and ``mse``, with drawn targets.
        select, ignore: codes or their beginnings: ``"F2"`` stands for all of that family.
        level: what fails: ``error`` only what keeps training from working, ``warning`` also what makes it worse.

    Raises:
        AssertionError: something was found; the message is the findings.
        FaninError: the model fails on these inputs, or a code or level is unknown.

    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    >>> assert_healthy(model, x, loss="cross-entropy")
    >>> _ = nn.init.constant_(model[0].weight, 0.1)
    >>> assert_healthy(model, x)
    Traceback (most recent call last):
    ...
    AssertionError: Sequential does not start well...
    """
    __tracebackhide__ = True  # to pytest the failed test is the line that asserts
    if level not in get_args(Level):
        raise InputsError(compose(f"level={level!r}", " or ".join(map(repr, get_args(Level)))))
    worst = RANKS[Severity(level)]
    diagnosis = diagnose(model, inputs, loss=loss, select=select, ignore=ignore)
    failed = tuple(finding for finding in diagnosis.findings if RANKS[finding.severity] <= worst)
    if failed:
        # Raised, not asserted: `python -O` strips assertions.
        raise AssertionError("\n".join((f"{type(model).__name__} does not start well", *told(failed))))
