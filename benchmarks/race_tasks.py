"""Small tasks on real and generated data, on which initializations race: from shallow controls to nets that need care.

Each task builds a model of `race_models.py` (under the caller's random state) and draws batches from a generator.
Targets are integers for classification and floats for regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from race_models import (
    HandWritten,
    Highway,
    Mixer,
    Multiplied,
    Neighbours,
    Ratings,
    Recurrent,
    RecurrentLanguage,
    Stacked,
    Transformer,
    Vision,
    autoencoder,
    conv_mixer,
    elman_step,
    gated,
    gru_step,
    normed,
    packed_gates,
    plain,
    plain_convolutions,
    residual_bare_convolutions,
    residual_batch_norms,
    residual_convolutions,
    residual_plain,
    residual_single,
    stages,
    vgg_with_norms,
)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    optimizer: str = "sgd"
    steps: int = 200


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 1797 images of 64 pixels, standardized as a whole."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def digit_batch(shape: tuple[int, ...], targets: str = "class") -> Callable[[torch.Generator], Batch]:
    """Batches of digits as vectors, images or sequences; the target is the class or the image itself."""

    def draw(generator: torch.Generator) -> Batch:
        images, labels = digits()
        chosen = torch.randint(len(images), (64,), generator=generator)
        x = images[chosen].reshape(64, *shape)
        return x, x if targets == "image" else labels[chosen]

    return draw


@cache
def corpus() -> Tensor:
    """Source text of the standard library, as bytes below 128."""
    import argparse
    import inspect

    return torch.tensor([byte for byte in inspect.getsource(argparse).encode() if byte < 128])


def text_batch(generator: torch.Generator) -> Batch:
    """32 windows of 32 characters, and the characters after them."""
    text = corpus()
    start = torch.randint(len(text) - 33, (32, 1), generator=generator)
    window = text[start + torch.arange(33)]
    return window[:, :-1], window[:, 1:]


def recall_batch(generator: torch.Generator) -> Batch:
    """Say the first of 30 symbols after the last: a memory of 30 steps."""
    x = torch.randint(8, (64, 30), generator=generator)
    return functional.one_hot(x, 8).float(), x[:, 0]


def parity_batch(generator: torch.Generator) -> Batch:
    """Tokens whose class is how many fives there are among 12, at most 7."""
    x = torch.randint(10, (64, 12), generator=generator)
    return x, (x == 5).sum(1).clamp(max=7)


def reverse_batch(generator: torch.Generator) -> Batch:
    """Twelve tokens, and the same from the last to the first."""
    x = torch.randint(10, (64, 12), generator=generator)
    return x, x.flip(1)


def adding_batch(generator: torch.Generator) -> Batch:
    """The sum of the two of 40 numbers that are marked: one in each half."""
    values, marks, rows = torch.rand(64, 40, 1, generator=generator), torch.zeros(64, 40, 1), torch.arange(64)
    for half in (0, 20):
        marks[rows, half + torch.randint(20, (64,), generator=generator)] = 1
    return torch.cat([values, marks], -1), (values * marks).sum(1)


@cache
def tastes() -> tuple[Tensor, Tensor]:
    """What 150 users and 200 items are like, in four numbers each."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(150, 4, generator=generator), torch.randn(200, 4, generator=generator)


def rating_batch(generator: torch.Generator) -> Batch:
    """Users and items, and how the one likes the other."""
    users, items = tastes()
    pairs = torch.stack([torch.randint(len(table), (128,), generator=generator) for table in (users, items)], 1)
    return pairs, (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1) / 2


VECTOR, IMAGE, ROWS = digit_batch((64,)), digit_batch((1, 8, 8)), digit_batch((8, 8))

TASKS: tuple[Task, ...] = (
    Task("mlp-2", plain(2, nn.ReLU), VECTOR, steps=100),
    Task("mlp-5-gelu", plain(5, nn.GELU), VECTOR, steps=150),
    Task("plain-30-relu", plain(30, nn.ReLU), VECTOR),
    Task("plain-30-tanh", plain(30, nn.Tanh), VECTOR),
    Task("plain-30-gelu", plain(30, nn.GELU), VECTOR),
    Task("plain-50-gelu", plain(50, nn.GELU), VECTOR),
    Task("plain-50-silu", plain(50, nn.SiLU), VECTOR),
    Task("plain-10-sigmoid", plain(10, nn.Sigmoid), VECTOR),
    Task("plain-30-selu", plain(30, nn.SELU), VECTOR),
    Task("plain-40-leaky", plain(40, lambda: nn.LeakyReLU(0.2), 64), VECTOR),
    Task("plain-20-elu", plain(20, nn.ELU, 64), VECTOR),
    Task("plain-8-softplus", plain(8, nn.Softplus, 64), VECTOR),
    Task("plain-30-softplus", plain(30, nn.Softplus), VECTOR),
    Task("normed-30-layer", normed(30, nn.LayerNorm), VECTOR, steps=150),
    Task("normed-30-batch", normed(30, nn.BatchNorm1d), VECTOR, steps=150),
    Task("conv-10-tanh", lambda: plain_convolutions(10, nn.Tanh), IMAGE, steps=150),
    Task("conv-20-plain", lambda: plain_convolutions(20), IMAGE, steps=150),
    Task("residual-30-bare", lambda: residual_plain(30), VECTOR),
    Task("residual-48-tanh", lambda: residual_single(48, nn.Tanh), VECTOR),
    Task("residual-48-gelu", lambda: residual_single(48, nn.GELU), VECTOR),
    Task("residual-conv-bare", lambda: residual_bare_convolutions(16), IMAGE, steps=100),
    Task("vgg-norm", vgg_with_norms, IMAGE, steps=80),
    Task("residual-conv-norm", lambda: residual_convolutions(6), IMAGE, steps=100),
    Task("residual-33-batch", lambda: residual_batch_norms(33), VECTOR, steps=120),
    Task("stages-10-bare", lambda: stages(10, 1, 48, lambda _: nn.Identity()), VECTOR, steps=150),
    Task("stages-8-batch", lambda: stages(8, 2, 48, nn.BatchNorm1d), VECTOR, steps=120),
    Task("conv-mixer-12", lambda: conv_mixer(12), IMAGE, steps=80),
    Task("autoencoder", autoencoder, digit_batch((1, 8, 8), "image"), "adam"),
    Task("gated-12", lambda: gated(12), VECTOR),
    Task("gated-24-packed", lambda: packed_gates(24, functional.silu), VECTOR, "adam"),
    Task("gated-12-sigmoid", lambda: packed_gates(12, torch.sigmoid), VECTOR),
    Task("product-6", lambda: Multiplied(6, functional.silu), VECTOR, "adam"),
    Task("product-10-sigmoid", lambda: Multiplied(10, torch.sigmoid), VECTOR),
    Task("highway-10", lambda: Highway(10), VECTOR),
    Task("highway-30", lambda: Highway(30), VECTOR),
    Task("mixer", lambda: Mixer(6, 32), ROWS, "adam", 120),
    Task("neighbours", lambda: Neighbours(4), ROWS, "adam", 150),
    Task("ratings", Ratings, rating_batch, "adam", 300),
    Task("lstm-rows", lambda: Recurrent(nn.LSTM(8, 64, batch_first=True), 64, 10), ROWS, "adam", 150),
    Task("lstm-recall", lambda: Recurrent(nn.LSTM(8, 64, batch_first=True), 64, 8), recall_batch, "adam", 250),
    Task("rnn-recall", lambda: Recurrent(nn.RNN(8, 64, batch_first=True), 64, 8), recall_batch, "adam", 250),
    Task("gru-recall", lambda: Recurrent(nn.GRU(8, 64, batch_first=True), 64, 8), recall_batch, "adam", 250),
    Task("rnn-written-recall", lambda: HandWritten(8, 64, 8, elman_step, 1), recall_batch, "adam", 250),
    Task("gru-written-recall", lambda: HandWritten(8, 64, 8, gru_step, 3), recall_batch, "adam", 250),
    Task("gru-written-adding", lambda: HandWritten(2, 48, 1, gru_step, 3), adding_batch, "adam", 300),
    Task("gru-rows", lambda: Recurrent(nn.GRU(8, 64, batch_first=True), 64, 10), ROWS, "adam", 150),
    Task("lstm-adding", lambda: Recurrent(nn.LSTM(2, 48, batch_first=True), 48, 1), adding_batch, "adam", 300),
    Task("gru-adding", lambda: Recurrent(nn.GRU(2, 48, batch_first=True), 48, 1), adding_batch, "adam", 300),
    Task("lstm-language", lambda: RecurrentLanguage(nn.LSTM(48, 64, 2, batch_first=True)), text_batch, "adam", 150),
    Task("gru-language", lambda: RecurrentLanguage(nn.GRU(48, 64, batch_first=True)), text_batch, "adam", 150),
    Task("post-norm-8", lambda: Transformer(10, 12, 64, 8, 8, post=True, tied=False), parity_batch, "adam", 150),
    Task("post-norm-16", lambda: Transformer(10, 12, 64, 16, 8, post=True, tied=False), parity_batch, "adam", 150),
    Task("pre-norm-8", lambda: Transformer(10, 12, 64, 8, 8, post=False, tied=False), parity_batch, "adam", 150),
    Task("reverse-post-6", lambda: Transformer(10, 12, 32, 6, 10, post=True, tied=False), reverse_batch, "adam", 150),
    Task("reverse-pre-4", lambda: Transformer(10, 12, 32, 4, 10, post=False, tied=False), reverse_batch, "adam", 150),
    Task("vision-4", lambda: Vision(4, 32), ROWS, "adam", 150),
    Task("stacked-20", lambda: Stacked(20, 64), VECTOR),
    Task("language-tied", lambda: Transformer(128, 32, 64, 4, 128, post=False, tied=True), text_batch, "adam", 150),
    Task("language-post", lambda: Transformer(128, 32, 64, 6, 128, post=True, tied=False), text_batch, "adam", 150),
)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy for integer targets, mean squared error for the rest."""
    if target.dtype == torch.int64:
        return functional.cross_entropy(output.flatten(0, -2), target.flatten())
    return functional.mse_loss(output, target)


def chance(task: Task) -> float:
    """The loss of the best constant answer."""
    _, target = task.batch(torch.Generator().manual_seed(0))
    if target.dtype != torch.int64:
        return target.var().item()
    counts = (
        torch.cat([task.batch(torch.Generator().manual_seed(i))[1].flatten() for i in range(20)]).bincount().double()
    )
    share = counts[counts > 0] / counts.sum()
    return -(share * share.log()).sum().item() if len(share) > 1 else math.nan
