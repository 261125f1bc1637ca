"""What the callbacks of training loops share: when a start is good enough, and what happens when it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from fanin.diagnoses import RANKS, Diagnosis, Finding, Level, Severity, told
from fanin.diagnosing import diagnose
from fanin.errors import FaninError, InputsError, compose
from fanin.findings import Codes, known_codes

Action = Literal["raise", "warn"]
Loss = Callable[[Any], torch.Tensor]


class UnhealthyStart(FaninError, RuntimeError):
    """A run was stopped before its first step.

    Args:
        diagnosis: all that was found.
        failed: the findings that stopped it.
    """

    def __init__(self, diagnosis: Diagnosis, failed: tuple[Finding, ...]) -> None:
        self.diagnosis = diagnosis
        super().__init__("\n".join(("the model does not start well", *told(failed))))


@dataclass(frozen=True)
class Gate:
    """Lets a model into training, or does not.

    Args:
        action: ``raise`` stops the run with `UnhealthyStart`; ``warn`` says what was found and goes on.
        level: from which severity on: ``error``, or ``warning`` for both.
        select, ignore: codes or their beginnings.
        report: where the diagnosis is written, ``.html`` or ``.json``.
    """

    action: Action = "raise"
    level: Level = "error"
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    report: Path | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("action", self.action, Action), ("level", self.level, Level)):
            if value not in get_args(known):
                raise InputsError(compose(f"{name}={value!r}", " or ".join(map(repr, get_args(known)))))

    def judge(self, model: nn.Module, inputs: Any, loss: Loss | None = None, *, write: bool = True) -> Diagnosis | None:
        """Measure on a batch, and act on what is found.

        Neither the model nor any global random state changes. A check that fails by itself is a warning: it must not
        end a run.

        Returns:
            The diagnosis; None when it failed. Where it stops the run, the exception has it.

        Raises:
            UnhealthyStart: something was found that is to stop the run.
        """
        try:
            # A model that runs outside its loop has much to say that the user need not hear.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                diagnosis = diagnose(model, inputs, loss=loss, select=self.select, ignore=self.ignore)
        except Exception as error:
            warnings.warn(f"fanin could not check the start: {type(error).__name__}: {error}", stacklevel=2)
            return None
        if write and self.report is not None:
            diagnosis.save(self.report)
        worst = RANKS[Severity(self.level)]
        failed = tuple(finding for finding in diagnosis.findings if RANKS[finding.severity] <= worst)
        if failed and self.action == "raise":
            raise UnhealthyStart(diagnosis, failed)
        if failed:
            warnings.warn(str(UnhealthyStart(diagnosis, failed)), stacklevel=2)
        return diagnosis


def gate(action: Action, level: Level, select: Codes, ignore: Codes, report: str | Path | None) -> Gate:
    """A gate from what the callbacks are given."""
    return Gate(action, level, known_codes(select), known_codes(ignore), None if report is None else Path(report))
