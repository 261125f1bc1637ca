"""Where a rule stops to hold: the healthy models beyond its border, and the faults on this side of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from judging import Case, classes, judged, serious


class Unrolled(nn.Module):
    """A recurrence by hand, whose steps are unrolled: all read the same weights."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "matrices":
            self.enter = nn.Parameter(torch.randn(16, 64) / 4)
            self.again = nn.Parameter(nn.init.orthogonal_(torch.empty(64, 64)))
        elif how == "joined":
            self.both = nn.Linear(16 + 64, 64)
        elif how == "gates":
            self.gates = nn.ModuleList(nn.Linear(16 + 64, 64) for _ in range(3))
        else:
            self.cell = nn.RNNCell(16, 64)
        self.out = nn.Linear(64, 5)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        if self.how == "matrices":
            return torch.tanh(x @ self.enter + state @ self.again)
        both = torch.cat([x, state], 1)
        if self.how == "joined":
            return torch.tanh(self.both(both))
        if self.how == "cell":
            return self.cell(x, state)  # type: ignore[no-any-return]
        keep, reset = (torch.sigmoid(gate(both)) for gate in self.gates[:2])
        new = torch.tanh(self.gates[2](torch.cat([x, reset * state], 1)))
        return (1 - keep) * state + keep * new  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 64)
        for moment in range(x.shape[1]):
            state = self.step(x[:, moment], state)
        result: Tensor = self.out(state)
        return result


@pytest.mark.parametrize("how", ["matrices", "joined", "gates", "cell"])
def test_a_weight_of_every_step_is_judged_by_its_whole_gradient(how: str) -> None:
    assert not serious(judged(lambda: Case(Unrolled(how), torch.randn(32, 20, 16), classes(5, 32)))[1])


class Read(nn.Module):
    """The input comes in at the first step alone, and the state is multiplied by one small matrix again and again."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 5)
        nn.init.orthogonal_(self.again.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.enter(x))
        for _ in range(6):
            state = torch.tanh(self.again(state))
        result: Tensor = self.out(state)
        return result


@pytest.mark.parametrize(("gain", "found"), [(1.0, False), (0.01, True)])
def test_what_the_first_step_alone_brings_may_be_lost(gain: float, found: bool) -> None:
    diagnosis = judged(lambda: Case(Read(gain), torch.randn(32, 16), classes(5, 32)))[1]
    assert bool(diagnosis.of("F402")) is found
