"""Weights of several matrices in one tensor: each block is judged by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fanin.diagnoses import Severity
from judging import Case, judged, mended


def attention(change: Callable[[torch.Tensor], object]) -> Case:
    model = nn.Sequential(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), nn.Linear(32, 4))
    change(model[0].self_attn.in_proj_weight.detach())
    return Case(model, torch.randn(4, 6, 32))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.rnn(x)[0])
        return result


def recurrence(change: Callable[[torch.Tensor], object]) -> Case:
    model = Tagger()
    change(model.rnn.weight_hh_l0.detach())
    return Case(model, torch.randn(4, 10, 24))


def far(size: float) -> Callable[[torch.Tensor], object]:
    return lambda weight: weight[5, 3:6].fill_(size)


@pytest.mark.parametrize("build", [attention, recurrence])
@pytest.mark.parametrize(("size", "severity"), [(9.0, Severity.ERROR), (2.8, Severity.WARNING), (1.8, Severity.NOTE)])
def test_outliers_of_a_packed_weight_are_weighed(
    build: Callable[[Callable[[torch.Tensor], object]], Case], size: float, severity: Severity
) -> None:
    case, diagnosis = judged(lambda: build(far(size)))
    (found,) = [item for item in diagnosis.findings if item.code == "F106"]
    assert (found.severity, "power" in found.seen) == (severity, True)
    assert "F106" not in mended(case, diagnosis).codes


def test_blocks_of_other_scales_are_no_outliers_of_each_other() -> None:
    def queries(weight: torch.Tensor) -> None:
        weight[:32] *= 0.02

    assert "F106" not in judged(lambda: attention(queries))[1].codes


def test_a_block_of_zeros_in_part_has_no_outliers() -> None:
    def part(weight: torch.Tensor) -> None:
        weight[64:84] = 0.0

    assert "F106" not in judged(lambda: attention(part))[1].codes


def gated(inputs: int, fill: Callable[[torch.Tensor], object] | None) -> Case:
    model = nn.LSTM(inputs, 32)
    for weight in (model.weight_ih_l0, model.weight_hh_l0) if fill else ():
        fill(weight)
    return Case(model, torch.randn(10, 4, inputs))


def test_gates_that_are_drawn_as_one_are_told() -> None:
    def by_gate(weight: torch.Tensor) -> None:
        for gate in weight.detach().chunk(4):
            nn.init.xavier_uniform_(gate)

    told = [
        item.place for item in judged(lambda: gated(24, nn.init.xavier_uniform_))[1].findings if item.code == "F209"
    ]
    assert told == ["weight_ih_l0", "weight_hh_l0"]
    assert "F209" not in judged(lambda: gated(24, by_gate))[1].codes
    assert "F209" not in judged(lambda: gated(64, None))[1].codes, "torch's default, of the same std by accident"
    assert "F209" in judged(lambda: attention(lambda _: None))[1].codes, "torch's default for attention is a fault"
