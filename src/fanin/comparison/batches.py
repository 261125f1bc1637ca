"""What the caller means by data, made into batches whose order depends on the seed alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from fanin.errors import InputsError, compose

Batch = tuple[Any, Any]
"""What the model is called with, and the target."""

LABELS_SEEN = 4096
"""How many examples of a dataset are read to find what chance is."""
BATCHES_SEEN = 32
"""How many batches of a function's stream are read to find what chance is."""


class Batches(ABC):
    """A source of batches."""

    batch_size: int | None = None

    @abstractmethod
    def stream(self, seed: int) -> Iterator[Batch]:
        """Batches without end (or to the end of the caller's own stream), in an order that the seed decides."""

    @abstractmethod
    def once(self) -> Iterator[Batch]:
        """Batches for one look at the data, in its own order."""


@dataclass(frozen=True)
class Indexed(Batches):
    """Examples that can be taken by their indices."""

    take: Callable[[torch.Tensor], Batch]
    length: int
    size: int

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return min(self.size, self.length)

    def stream(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        whole = self.length - self.length % self.batch_size
        while True:
            order = torch.randperm(self.length, generator=generator)
            for first in range(0, whole, self.batch_size):
                yield self.take(order[first : first + self.batch_size])

    def once(self) -> Iterator[Batch]:
        order = torch.arange(self.length)
        for first in range(0, self.length, self.batch_size):
            yield self.take(order[first : first + self.batch_size])


@dataclass(frozen=True)
class Listed(Batches):
    """Batches that are there already; the seed decides their order."""

    batches: tuple[Batch, ...]

    def stream(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for index in torch.randperm(len(self.batches), generator=generator).tolist():
                yield self.batches[index]

    def once(self) -> Iterator[Batch]:
        return iter(self.batches)


@dataclass(frozen=True)
class Streamed(Batches):
    """A function from the seed to batches."""

    function: Callable[[int], Iterable[Batch]]

    def stream(self, seed: int) -> Iterator[Batch]:
        return (_checked(batch) for batch in self.function(seed))

    def once(self) -> Iterator[Batch]:
        return islice(self.stream(0), BATCHES_SEEN)


def batches_of(data: Any, batch_size: int, steps: int) -> tuple[Batches, Batches | None]:
    """The training batches and, where the data is a pair of sources, the held-out ones.

    Raises:
        InputsError: the data is none of what is accepted; the message lists it.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(map(_is_source, data)):
        return _source(data[0], batch_size, steps), _source(data[1], batch_size, steps)
    return _source(data, batch_size, steps), None


def labels_of(batches: Batches) -> torch.Tensor | None:
    """Targets, enough of them to know what chance is; None where they are not tensors."""
    seen: list[torch.Tensor] = []
    for _, target in batches.once():
        if not isinstance(target, torch.Tensor):
            return None
        seen.append(target)
        if sum(len(part) if part.ndim else 1 for part in seen) >= LABELS_SEEN and not isinstance(batches, Listed):
            break
    return torch.cat([part if part.ndim else part[None] for part in seen]) if seen else None


def _source(data: Any, batch_size: int, steps: int) -> Batches:
    if _is_pair(data):
        return _arrays(data[0], data[1], batch_size)
    if isinstance(data, DataLoader) and _is_map_style(data.dataset) and data.batch_size:
        # Only its examples, size and collation are used: its own order would come from the global random state.
        return _dataset(data.dataset, data.batch_size, data.collate_fn)
    if _is_map_style(data):
        return _dataset(data, batch_size, default_collate)
    if isinstance(data, Iterable) and not isinstance(data, torch.Tensor | np.ndarray | Mapping | str):
        batches = tuple(_checked(batch) for batch in islice(data, steps))
        if batches:
            return Listed(batches)
    elif callable(data):
        return Streamed(data)
    raise InputsError(
        compose(
            f"data of type {type(data).__name__}{'' if not hasattr(data, 'shape') else f' {tuple(data.shape)}'}",
            "one of: (x, y) tensors or arrays; ((x, y), (x_test, y_test)); a torch Dataset of pairs; a DataLoader; "
            "a list of batches (x, y); a function from a seed to an iterator of batches",
            "every recipe is trained on the same batches, in an order that the seed decides",
            "fanin.compare(build, (x, y), …)",
        )
    )


def _arrays(x: Any, y: Any, batch_size: int) -> Indexed:
    named = isinstance(x, Mapping)
    parts = {name: as_tensor(part) for name, part in x.items()} if named else {"": as_tensor(x)}
    target = as_tensor(y)
    lengths = sorted({len(part) for part in parts.values()})
    if lengths != [len(target)] or not lengths[0]:
        raise InputsError(compose(f"x of {lengths} and y of {len(target)} examples", "as many in x as in y, and some"))
    return Indexed(_Take(parts if named else parts[""], target), len(target), batch_size)


@dataclass(frozen=True)
class _Take:
    x: torch.Tensor | dict[str, torch.Tensor]
    y: torch.Tensor

    def __call__(self, chosen: torch.Tensor) -> Batch:
        if isinstance(self.x, dict):
            return {name: part[chosen] for name, part in self.x.items()}, self.y[chosen]
        return self.x[chosen], self.y[chosen]


@dataclass(frozen=True)
class _Collate:
    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __call__(self, chosen: torch.Tensor) -> Batch:
        return _checked(self.collate([self.dataset[index] for index in chosen.tolist()]))


def _dataset(dataset: Any, batch_size: int, collate: Callable[[list[Any]], Any]) -> Indexed:
    if not len(dataset):
        raise InputsError(compose(f"an empty {type(dataset).__name__}", "a dataset with examples"))
    return Indexed(_Collate(dataset, collate), len(dataset), batch_size)


def as_tensor(values: Any) -> torch.Tensor:
    """A tensor; floating numbers in torch's default dtype unless they are a tensor already."""
    if isinstance(values, torch.Tensor):
        return values
    tensor = torch.as_tensor(np.asarray(values))
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _checked(batch: Any) -> Batch:
    if isinstance(batch, Sequence) and len(batch) == 2 and not isinstance(batch, str):
        x, y = batch
        return (as_tensor(x) if isinstance(x, np.ndarray) else x), (as_tensor(y) if isinstance(y, np.ndarray) else y)
    raise InputsError(
        compose(
            f"a batch of type {type(batch).__name__}",
            "a pair (x, y)",
            "x is what the model is called with (a dict: keyword arguments), y the target",
        )
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2 or not _is_array(value[1]):
        return False
    x = value[0]
    return _is_array(x) or (isinstance(x, Mapping) and all(map(_is_array, x.values())))


def _is_map_style(value: Any) -> bool:
    if isinstance(value, tuple | list | Mapping | torch.Tensor | np.ndarray | IterableDataset):
        return False
    return isinstance(value, Dataset) or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _is_source(value: Any) -> bool:
    return _is_pair(value) or isinstance(value, DataLoader | Dataset)
