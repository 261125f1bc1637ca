"""A small model, what it is called with, and how it is judged: always from the same seed, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.comparison.workers import one_thread
from fanin.diagnoses import Diagnosis, Severity


class Case(NamedTuple):
    """A model, its inputs and its loss, if it has one."""

    model: nn.Module
    inputs: Any
    loss: Callable[[Any], Tensor] | None = None


Build = Callable[[], Case]


def judged(build: Build) -> tuple[Case, Diagnosis]:
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = build()
        return case, fanin.diagnose(case.model, case.inputs, loss=case.loss)


def mended(case: Case, diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis after `fix` has been applied."""
    with one_thread():
        fanin.apply(diagnosis.fix(), case.model, seed=0)
        return fanin.diagnose(case.model, case.inputs, loss=case.loss)


def serious(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """The codes and places of what is more than a note."""
    return [(found.code, found.place) for found in diagnosis.findings if found.severity is not Severity.NOTE]


def classes(count: int, size: int) -> Callable[[Tensor], Tensor]:
    """The cross-entropy of so many classes in a batch of so many samples."""
    target = torch.arange(size) % count
    return lambda output: functional.cross_entropy(output, target)
