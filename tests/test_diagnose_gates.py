"""Gates that are shut: of torch's recurrences, and of those that are written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fanin.diagnoses import Severity
from judging import Case, judged, mended, serious


class Tagger(nn.Module):
    def __init__(self, kind: Callable[..., Any], **biases: float) -> None:
        super().__init__()
        self.rnn, self.head = kind(12, 24, batch_first=True), nn.Linear(24, 4)
        gates = "ifgo" if kind is nn.LSTM else "rzn"
        for gate, value in {**({"f": 1.0} if kind is nn.LSTM else {}), **biases}.items():
            place = 24 * gates.index(gate)
            self.rnn.bias_ih_l0.data[place : place + 24] = value

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0])
        return result


def tagger(kind: Callable[..., Any], **biases: float) -> Case:
    return Case(Tagger(kind, **biases), torch.randn(8, 10, 12))


@pytest.mark.parametrize(
    ("kind", "biases", "code"),
    [
        (nn.LSTM, {"o": -12.0}, "F304"),
        (nn.LSTM, {"i": -12.0}, "F304"),
        (nn.GRU, {"z": -6.0}, "F206"),
    ],
)
def test_a_shut_gate_of_a_recurrence_is_found(kind: Callable[..., Any], biases: dict[str, float], code: str) -> None:
    case, diagnosis = judged(lambda: tagger(kind, **biases))
    assert (code, "rnn.bias_ih_l0") in serious(diagnosis)
    assert not serious(mended(case, diagnosis))


@pytest.mark.parametrize(
    ("kind", "biases"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"o": -1.0}),
        (nn.LSTM, {"i": -math.log(400), "f": math.log(400)}),  # of a memory of 400 steps
        (nn.GRU, {}),
        (nn.GRU, {"z": math.log(400)}),
    ],
)
def test_gates_as_they_are_published_are_healthy(kind: Callable[..., Any], biases: dict[str, float]) -> None:
    assert not serious(judged(lambda: tagger(kind, **biases))[1])


class Written(nn.Module):
    """An LSTM by hand."""

    def __init__(self, shut: str, *, by: str = "bias") -> None:
        super().__init__()
        self.gates, self.head = nn.ModuleDict({gate: nn.Linear(36, 24) for gate in "ifgo"}), nn.Linear(24, 4)
        nn.init.ones_(self.gates["f"].bias)
        gate: Any = self.gates[shut]
        if by == "bias":
            nn.init.constant_(gate.bias, -12.0)
        else:
            nn.init.normal_(gate.weight, std=9.0)

    def forward(self, x: Tensor) -> Tensor:
        state = memory = x.new_zeros(len(x), 24)
        for step in range(x.shape[1]):
            both = torch.cat([x[:, step], state], 1)
            # All products first, so that the order of operations does not tell which gate is whose.
            i, f, g, o = (self.gates[gate](both) for gate in "ifgo")
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            state = o.sigmoid() * memory.tanh()
        result: Tensor = self.head(state)
        return result


@pytest.mark.parametrize("shut", ["i", "o"])
@pytest.mark.parametrize("by", ["bias", "weight"])
def test_a_gate_that_is_flat_at_every_step_is_one_finding(shut: str, by: str) -> None:
    case, diagnosis = judged(lambda: Case(Written(shut, by=by), torch.randn(8, 10, 12)))
    (found,) = diagnosis.of("F304")
    assert (found.place, "10 steps" in found.seen) == (f"gates.{shut}.{by}", True)
    assert {edit.pattern for edit in found.edits} == {f"gates.{shut}.weight", f"gates.{shut}.bias"}
    assert "F304" not in mended(case, diagnosis).codes


class Squeezed(nn.Module):
    """A gate over channels."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 16), nn.Linear(16, 4)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        result: Tensor = self.head((x * torch.sigmoid(self.gate(x.mean((2, 3))))[..., None, None]).mean((2, 3)))
        return result


def test_the_bias_that_shuts_a_gate_is_named() -> None:
    found = judged(lambda: Case(Squeezed(-12.0), torch.randn(8, 3, 10, 10)))[1].of("F304")
    assert [(item.place, item.severity) for item in found] == [("gate.bias", Severity.ERROR)]
    assert not judged(lambda: Case(Squeezed(2.0), torch.randn(8, 3, 10, 10)))[1].of("F304")
