"""What a model is checked on: inputs from a file or a function, or found for it, and losses by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fanin.comparison.batches import as_tensor
from fanin.comparison.objectives import prediction_of
from fanin.comparison.randomness import seeded
from fanin.errors import InputsError, MissingExtraError, article, compose, nearest
from fanin.models import blamed, imported
from fanin.tracing.inputs import candidates, training_calls

Loss = Callable[[Any], torch.Tensor]

SAMPLES = 8
"""How many samples are made where inputs are made up: enough to tell whether a model still tells them apart."""

MOST_TRIES = 12
"""How many kinds of made-up inputs are tried on a model."""


def read_inputs(spec: str, model: nn.Module) -> Any:
    """What a model is to be called with, from a file or a function.

    Args:
        spec: a ``.safetensors``, ``.pt``, ``.npy`` or ``.npz`` file, or ``package.module:factory``: a function without
            arguments, or a value. Named arrays are keyword arguments; one array whose name the model's forward does
            not know is its one argument, and so are ``arr_0``, ``arr_1``, … in their order.
        model: whose forward says which names it knows.

    Raises:
        InputsError: there is no such file or function, or it cannot be read.
    """
    path = Path(spec)
    if path.suffix in _READERS:
        return _as_called(_read(path), model)
    if ":" not in spec:
        known = ", ".join(_READERS)
        needed = f"a file that ends in {known}, or package.module:factory"
        raise InputsError(compose(f"--inputs {spec}", needed, instead="--inputs mymodels:batch"))
    with seeded(0), blamed(f"--inputs {spec}, which fails when it is called", "a function that returns a batch"):
        found = imported(spec)
        return found() if callable(found) else found


def made_up_inputs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Inputs that a model may take, in order of trust, with where they are from: normal noise, or whole numbers.

    >>> origin, inputs = next(made_up_inputs(nn.Linear(16, 4)))
    >>> origin, inputs[0].shape
    ('a guess from the first layer', torch.Size([8, 16]))
    """
    generator = torch.Generator().manual_seed(0)

    def realise(item: Any) -> Any:
        if isinstance(item, torch.Tensor) and item.is_meta:
            return torch.randn(SAMPLES, *item.shape[1:], generator=generator)
        return item

    for origin, call in islice(chain(training_calls(model), candidates(model)), MOST_TRIES):
        args, kwargs = pytree.tree_map(realise, call)
        yield origin, kwargs or args


def loss_named(spec: str) -> Loss:
    """A loss of the output alone, by the name that the command line, `fanin.measure` and `fanin.diagnose` take.

    Args:
        spec: ``cross-entropy``, over the last axis, with labels drawn evenly; ``mse``, with targets drawn from N(0, 1);
            or ``package.module:function``. What is drawn is the same every time.

    Raises:
        InputsError: there is no such loss.

    >>> round(float(loss_named("cross-entropy")(torch.zeros(32, 10))), 3)  # ln 10
    2.303
    """
    if spec.replace("_", "-") in LOSSES:
        return LOSSES[spec.replace("_", "-")]
    if ":" not in spec:
        needed = f"{', '.join(LOSSES)} or package.module:function"
        raise InputsError(compose(f"the loss {spec!r}", needed, nearest(spec, LOSSES), "cross-entropy"))
    with blamed(f"the loss {spec}, which fails when it is imported", "a function of the model's output"):
        found: Any = imported(spec)
    if not callable(found):
        given = f"the loss {spec}, {article(type(found).__name__)}"
        raise InputsError(compose(given, "a function of the model's output"))
    named: Loss = found
    return named


def _cross_entropy(output: Any) -> torch.Tensor:
    logits = prediction_of(output)
    flat = logits.reshape(-1, logits.shape[-1])
    labels = torch.randint(flat.shape[1], (len(flat),), generator=torch.Generator().manual_seed(0))
    return functional.cross_entropy(flat, labels.to(flat.device))


def _mean_square(output: Any) -> torch.Tensor:
    prediction = prediction_of(output)
    targets = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(0))
    return functional.mse_loss(prediction, targets.to(prediction))


LOSSES: dict[str, Loss] = {"cross-entropy": _cross_entropy, "mse": _mean_square}


def _read(path: Path) -> Any:
    try:
        return _READERS[path.suffix](path)
    except MissingExtraError:
        raise
    except FileNotFoundError:
        raise InputsError(compose(f"--inputs {path}", "a file that exists")) from None
    except Exception as error:  # each format fails in ways of its own, pickles by refusing what is not plain
        why = str(error).strip().partition("\n")[0]
        raise InputsError(compose(f"--inputs {path}, which cannot be read", "tensors and nothing else", why)) from error


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise MissingExtraError("safetensors", "all", "reading inputs") from error
    return load_file(path)


def _arrays(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as archive:
        return {name: as_tensor(archive[name]) for name in archive.files}


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _safetensors,
    ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    ".npy": lambda path: as_tensor(np.load(path, allow_pickle=False)),
    ".npz": _arrays,
}


def _as_called(values: Any, model: nn.Module) -> Any:
    if not isinstance(values, Mapping):
        return values
    if all(name == f"arr_{place}" for place, name in enumerate(values)):
        return tuple(values.values())
    if len(values) == 1 and not set(values) & set(inspect.signature(model.forward).parameters):
        return next(iter(values.values()))
    return dict(values)
