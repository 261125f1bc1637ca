"""The task of the demonstration: handwritten digits, and a plain network deep enough for the start to decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fanin.errors import MissingExtraError

DEPTH = 30
WIDTH = 128
RECIPES = ("torch", "zero", "normal", "xavier", "he", "orthogonal", "auto")
LRS = (0.001, 0.002, 0.004, 0.01)
STEPS = 350
BATCH_SIZE = 64
OPTIMIZER = "momentum"
TITLE = f"scikit-learn's handwritten digits, a {DEPTH}-layer ReLU network of width {WIDTH}"

Examples = tuple[torch.Tensor, torch.Tensor]


def digits(test_share: float = 0.2) -> tuple[Examples, Examples]:
    """The 1797 handwritten digits of scikit-learn, 8×8 pixels each, as (training, test) pairs.

    Pixels are brought to mean 0 and variance 1 over the training set, all with one mean and one scale.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingExtraError("scikit-learn", "demo", "the handwritten digits") from error
    loaded: Any = load_digits()
    x, y = torch.as_tensor(loaded.data).float(), torch.as_tensor(loaded.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    split = round(len(x) * (1 - test_share))
    x = (x - x[:split].mean()) / x[:split].std()
    return (x[:split], y[:split]), (x[split:], y[split:])


def deep_network(depth: int = DEPTH, width: int = WIDTH, inputs: int = 64, classes: int = 10) -> nn.Module:
    """A plain stack of ``depth`` linear layers with ReLU between them: no normalization, no shortcut."""
    layers: list[nn.Module] = []
    for index in range(depth - 1):
        layers += [nn.Linear(width if index else inputs, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))
