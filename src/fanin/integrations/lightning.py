"""A callback for Lightning that checks how a model starts, on the first batch and before the first step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fanin.diagnoses import Diagnosis, Level
from fanin.errors import MissingExtraError
from fanin.findings import Codes
from fanin.integrations.starts import Action, Loss, UnhealthyStart, gate

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback
    except ModuleNotFoundError as error:
        raise MissingExtraError("lightning", "integrations", "a Lightning callback") from error

__all__ = ["StartCheck", "UnhealthyStart"]


class StartCheck(Callback):
    """Diagnose the model on the first batch of a fit; stop the run, or warn, before anything is trained.

    It runs a copy of the module's ``training_step``, which shares the weights' memory and nothing else, without a
    trainer: what it logs goes nowhere. The batch is the one that training goes on with, in the trainer's precision. No
    weight, buffer, mode, random state or data order changes: the run is bit for bit what it would have been.
    A fit that resumes is not checked. Every process of a distributed run checks its own batch.

    Args:
        action: ``raise`` stops the run with `UnhealthyStart`; ``warn`` says what was found and goes on.
        level: what counts: ``error``, or ``warning`` for both.
        select, ignore: codes or their beginnings: ``"F2"`` stands for all of that family.
        report: where the diagnosis is written, ``.html`` or ``.json``.
        inputs: from a batch to what ``forward`` is called with, where ``training_step`` cannot run by itself (manual
            optimization, ``self.trainer``).
        loss: from the output of ``forward`` and the batch to a scalar; with ``inputs`` only.

    Attributes:
        diagnosis: what was found; None before the first batch, or when the check failed.

    >>> from lightning.pytorch import Trainer
    >>> check = StartCheck(action="warn", level="warning")
    >>> trainer = Trainer(callbacks=[check], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        action: Action = "raise",
        level: Level = "error",
        *,
        select: Codes = (),
        ignore: Codes = (),
        report: str | Path | None = None,
        inputs: Callable[[Any], Any] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate(action, level, select, ignore, report)
        self.inputs = inputs
        self.loss = loss
        self.diagnosis: Diagnosis | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Check, if this is the first batch of all."""
        if trainer.global_step or batch_idx or trainer.current_epoch:
            return
        with trainer.precision_plugin.train_step_context(), _alone(pl_module):
            model, call, loss = self._subject(pl_module, batch)
            try:
                self.diagnosis = self.gate.judge(model, call, loss, write=trainer.is_global_zero)
            except UnhealthyStart as stop:
                self.diagnosis = stop.diagnosis
                raise

    def _subject(self, module: Any, batch: Any) -> tuple[nn.Module, Any, Loss | None]:
        if self.inputs is None:
            return _stepping(module), (batch, 0), None
        given = self.loss
        return module, self.inputs(batch), None if given is None else lambda output: given(output, batch)


@contextmanager
def _alone(module: nn.Module) -> Iterator[None]:
    """The module without its trainer, which a copy would take with it: loaders, optimizers, loggers."""
    owners = [(part, part.__dict__["_trainer"]) for part in module.modules() if "_trainer" in part.__dict__]
    for part, _ in owners:
        part.__dict__["_trainer"] = None
    try:
        yield
    finally:
        for part, trainer in owners:
            part.__dict__["_trainer"] = trainer


def _stepping(module: nn.Module) -> nn.Module:
    """A module that shares all that this one has, and whose first call is the training step."""
    twin = copy.copy(module)
    kind = type(module)
    twin.__dict__["_fanin_steps"] = True
    twin.__class__ = type(kind.__name__, (kind,), {"forward": _step_once, "__module__": kind.__module__})
    return twin


def _step_once(self: Any, *args: Any, **kwargs: Any) -> Any:
    if not self.__dict__.pop("_fanin_steps", False):
        return super(type(self), self).forward(*args, **kwargs)  # the step calls the module itself
    step = self.training_step
    indexed = len(inspect.signature(step).parameters) > 1
    outcome = step(*args) if indexed else step(args[0])
    return outcome if isinstance(outcome, Mapping) else {"loss": outcome}
