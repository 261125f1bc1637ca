"""A callback for the transformers Trainer that checks how a model starts, before the first step."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fanin.diagnoses import Diagnosis, Level
from fanin.errors import MissingExtraError
from fanin.findings import Codes
from fanin.integrations.starts import Action, Loss, UnhealthyStart, gate

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise MissingExtraError("transformers", "integrations", "a callback for its Trainer") from error

__all__ = ["StartCheck", "UnhealthyStart"]


class StartCheck(TrainerCallback):
    """Diagnose the model on the first batch of a run; stop the run, or warn, before anything is trained.

    When training begins it waits for the model's first call, and measures a copy on what the model is called with: the
    batch that training goes on with, and the model's own loss if the Trainer gives it the labels. No batch is taken
    from the loader ahead of time, and no weight, buffer, mode or random state changes: the run is bit for bit what it
    would have been. A run that resumes is not checked. Every process of a distributed run checks its own batch.

    Args:
        action: ``raise`` stops the run with `UnhealthyStart`; ``warn`` says what was found and goes on.
        level: what counts: ``error``, or ``warning`` for both.
        select, ignore: codes or their beginnings: ``"F2"`` stands for all of that family.
        report: where the diagnosis is written, ``.html`` or ``.json``.
        loss: from the model's output to a scalar, where the model has no loss of its own.

    Attributes:
        diagnosis: what was found; None before the first batch, or when the check failed.

    >>> check = StartCheck(action="warn", ignore=["F4"])  # Trainer(..., callbacks=[check])
    """

    def __init__(
        self,
        action: Action = "raise",
        level: Level = "error",
        *,
        select: Codes = (),
        ignore: Codes = (),
        report: str | Path | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.gate = gate(action, level, select, ignore, report)
        self.loss = loss
        self.diagnosis: Diagnosis | None = None
        self._writes = True
        self._precision: torch.dtype | None = None
        self._waiting: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Wait for the model's first call."""
        if model is None or state.global_step:
            return
        self._writes = state.is_world_process_zero
        self._precision = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        # A compiled model would be traced through its hooks.
        disable: Any = torch.compiler.disable
        on_call = disable(self._on_call)
        self._waiting = model.register_forward_pre_hook(on_call, with_kwargs=True, prepend=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait no longer."""
        self._wait_no_longer()

    def _on_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not model.training:  # an evaluation before the first step
            return
        self._wait_no_longer()
        call: Any = inspect.signature(model.forward).bind(*args, **kwargs).arguments if args and kwargs else args
        # The Trainer's autocast is inside the forward; that it is on is known only out here.
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        with torch.autocast(device, self._precision, enabled=self._precision is not None):
            try:
                self.diagnosis = self.gate.judge(model, call or kwargs, self.loss, write=self._writes)
            except UnhealthyStart as stop:
                self.diagnosis = stop.diagnosis
                raise

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.remove()
            self._waiting = None
