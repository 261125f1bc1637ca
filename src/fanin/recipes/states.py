"""How large the state of a recurrence becomes, which is what the layers behind it take in."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fanin.gains.quadrature import Array, integrate

OPEN = 1.0
"""The bias of the gate that keeps the state."""
STEPS = 100
"""Of the iteration towards the fixed point; a state whose gate forgets a third of its power is there after twenty."""


@lru_cache(maxsize=8)
def state_power(kind: str) -> float:
    """The mean square of the state of a recurrence that starts as auto starts it, after many steps; 1 where unknown.

    Inputs of unit size come in with gain 1 and the state comes back with gain 1, so that gates see a variance of
    ``1 + E[h²]``; units are taken for independent of each other and of what they were a step before. Then for an LSTM
    ``E[c²] = E[i²] E[g²] / (1 − E[f²])`` and ``E[h²] = E[o²] E[tanh²(c)]``, for a GRU
    ``E[h²] = E[(1 − z)²] E[n²] / (1 − E[z²])``. Without gates a state is not far from unit size and counts as such:
    making up for the rest made memory harder to learn.

    >>> [round(state_power(kind) ** 0.5, 2) for kind in ("lstm", "gru", "rnn_tanh")]
    [0.23, 0.33, 1.0]
    """
    step = {"lstm": _lstm, "gru": _gru}.get(kind)
    if step is None:
        return 1.0
    power = 1.0
    for _ in range(STEPS):
        power = step(power)
    return power


def _lstm(power: float) -> float:
    std = np.sqrt(1 + power)
    kept, gate = _sigmoid(std, OPEN), _sigmoid(std)
    cell = gate * _tanh(std) / (1 - kept)
    return gate * _tanh(np.sqrt(cell))


def _gru(power: float) -> float:
    std = np.sqrt(1 + power)
    new = _tanh(np.sqrt(1 + _sigmoid(std) * power))
    return _sigmoid(std, -OPEN) * new / (1 - _sigmoid(std, OPEN))


def _sigmoid(std: float, bias: float = 0.0) -> float:
    """The mean square of the sigmoid of a normal number."""

    def function(z: Array) -> Array:
        return 1 / (1 + np.exp(-(bias + std * z)))

    return integrate(function).second


def _tanh(std: float) -> float:
    return integrate(lambda z: np.tanh(std * z)).second
