"""Recurrent layers, cells in a loop, and a recurrence written by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LongMemoryStack(nn.Module):
    """Two bidirectional LSTM layers under a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0])


class GatedRecurrentStack(nn.Module):
    """A two-layer GRU without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, num_layers=2, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][-1])


class CellLoop(nn.Module):
    """An LSTM cell and a GRU cell, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(5, 6)
        self.gru = nn.GRUCell(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, memory = x.new_zeros(x.shape[1], 6), x.new_zeros(x.shape[1], 6)
        state = x.new_zeros(x.shape[1], 7)
        for step in x:
            hidden, memory = self.lstm(step, (hidden, memory))
            state = self.gru(hidden, state)
        return self.head(state)


class HandWrittenRecurrence(nn.Module):
    """An Elman network made of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(5, 6)
        self.around = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[1], 6)
        for step in x:
            state = torch.tanh(self.inward(step) + self.around(state))
        return self.head(state)
