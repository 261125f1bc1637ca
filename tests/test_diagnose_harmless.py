"""What is unusual and does no harm where it is, next to where it does."""

from __future__ import annotations

import torch
from torch import nn

from fanin.diagnoses import Severity
from judging import Case, classes, judged


def classifier(std: float, classes_: int = 10) -> Case:
    """A net with norms whose output layer has the std of its outputs' number."""
    layers = (nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 512, 3, 2, bias=False))
    model = nn.Sequential(*layers, nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(512, classes_)
    nn.init.normal_(head.weight, std=std)
    nn.init.zeros_(head.bias)
    return Case(nn.Sequential(*model, head), torch.randn(16, 3, 24, 24), classes(classes_, 16))


def test_a_head_by_its_outputs_is_a_note_where_the_first_loss_bears_it() -> None:
    diagnosis = judged(lambda: classifier(0.25))[1]
    assert not diagnosis.of("F309")
    assert [found.severity for found in diagnosis.of("F201")] == [Severity.NOTE]


def test_without_a_loss_nobody_knows_what_it_costs() -> None:
    diagnosis = judged(lambda: classifier(0.25)._replace(loss=None))[1]
    assert [found.severity for found in diagnosis.of("F201")] == [Severity.WARNING]


def test_a_head_whose_loss_tells_of_it_is_more() -> None:
    diagnosis = judged(lambda: classifier(1.0))[1]
    assert diagnosis.of("F309")
    assert [found.severity for found in diagnosis.of("F201")] == [Severity.WARNING]
