"""What to change in example inputs, read from the error that they led to.

An error names what is missing, or says which size it met and which it wanted; both are tried.
"""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch

from fanin.tracing.records import Call

Make = Callable[[str], torch.Tensor | None]

_WHOLE = re.compile(r"long int|int64|Long")
_MISSING = re.compile(r"missing \d+ required positional arguments?: (.*)")
_UNPACKED = re.compile(r"values to unpack \(expected (\d+)")
_RANKED = re.compile(r"Expected (?:\dD \(unbatched\) or )?(\d)D")
_LARGEST_SIZE = 65536
_MOST_SIZES = 8


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run ended.

    Args:
        text: the error.
        absent: variables that were None and are named on the lines that failed, the innermost first.
        reached: how many operations had been executed.
    """

    text: str
    absent: tuple[str, ...] = ()
    reached: int = 0

    @property
    def begun(self) -> bool:
        """Whether the forward was entered: arguments that are missing say nothing of those that were given."""
        return _MISSING.search(self.text) is None


def failure_of(error: BaseException, reached: int = 0) -> Failure:
    """What is worth keeping of an error; its frames hold on to tensors."""
    lines = str(error).strip().splitlines()
    return Failure(f"{type(error).__name__}: {' '.join(lines)[:600]}", tuple(_absent(error.__traceback__)), reached)


def _absent(trace: TracebackType | None) -> list[str]:
    names: list[str] = []
    while trace is not None:
        frame = trace.tb_frame
        line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno)
        empty = {name for name, value in frame.f_locals.items() if value is None}
        names = [word for word in dict.fromkeys(re.findall(r"\w+", line)) if word in empty] + names
        trace = trace.tb_next
    return list(dict.fromkeys(names))


def repairs(call: Call, failure: Failure, make: Make, accepted: list[str]) -> Iterator[Call]:
    """Inputs that the error asks for, the likeliest first.

    Args:
        call: the inputs that failed.
        failure: how.
        make: gives a tensor for the name of an argument, or None.
        accepted: the names of all arguments.
    """
    yield from _completed(call, failure, make, accepted)
    yield from _resized(call, failure)
    yield from _reshaped(call, failure)
    yield from _as_floats(call, failure)


def _completed(call: Call, failure: Failure, make: Make, accepted: list[str]) -> Iterator[Call]:
    """With the arguments that are missing, named in the error, or None where it arose."""
    open_names = [name for name in accepted[len(call[0]) :] if name not in call[1]]
    missing = _MISSING.search(failure.text)
    if missing:
        names = [name for name in re.findall(r"\w+", missing[1]) if name in open_names]
        made = {name: tensor for name in names if (tensor := make(name)) is not None}
        if made:
            yield call[0], {**call[1], **made}
        return
    words = [word.lower() for word in re.findall(r"\w+", failure.text)]
    named = [name for name in open_names if name in words] + [name for name in failure.absent if name in open_names]
    for name in dict.fromkeys(named):
        tensor = make(name)
        if tensor is not None:
            yield call[0], {**call[1], name: tensor}
    if "None" in failure.text or named:
        made = {name: tensor for name in open_names if (tensor := make(name)) is not None and "mask" not in name}
        made = {name: tensor for name, tensor in made.items() if not name.endswith(("embeds", "position_ids"))}
        if made:
            yield call[0], {**call[1], **made}


def _resized(call: Call, failure: Failure) -> Iterator[Call]:
    """With another size for one that the error names: what was met becomes what was wanted, also by a factor."""
    numbers = [int(word) for word in re.findall(r"(?<![\w.])\d+(?![\w.])", failure.text)]
    numbers = [number for number in dict.fromkeys(numbers) if 0 < number < _LARGEST_SIZE]
    changes: dict[tuple[int, int], None] = {}
    for size in _sizes(call):
        for met, wanted in itertools.permutations(numbers, 2):
            if met == size:
                changes[size, wanted] = None
    for size in _sizes(call):
        for met, wanted in itertools.permutations(numbers, 2):
            if met != size and met % size == 0 and size * wanted % met == 0:
                changes[size, size * wanted // met] = None
    if "too small" in failure.text:
        changes = {(size, 2 * size): None for size in _sizes(call) if size * 2 < _LARGEST_SIZE} | changes
    for size, new in list(changes)[:_MOST_SIZES]:
        yield _map(call, partial(_with_size, size=size, new=new))


def _sizes(call: Call) -> list[int]:
    """The sizes of float inputs but for the batch, the last first."""
    return list(dict.fromkeys(size for tensor in _floats(call) for size in reversed(tensor.shape[1:]) if size > 1))


def _with_size(tensor: torch.Tensor, size: int, new: int) -> torch.Tensor:
    image = tensor.ndim > 3  # such as a mask of whole numbers, which follows the image that it belongs to
    if not (tensor.is_floating_point() or image) or size not in tensor.shape[1:]:
        return tensor
    return tensor.new_zeros([tensor.shape[0], *(new if item == size else item for item in tensor.shape[1:])])


def _reshaped(call: Call, failure: Failure) -> Iterator[Call]:
    """In another number of axes, or with the last two the other way round."""
    wanted = _UNPACKED.search(failure.text) or _RANKED.search(failure.text)
    for tensor in _floats(call):
        if wanted and int(wanted[1]) == tensor.ndim + 1:
            yield _map(call, partial(_exchanged, old=tensor, new=tensor.unsqueeze(1)))
        if wanted and int(wanted[1]) == tensor.ndim - 1:
            yield _map(call, partial(_exchanged, old=tensor, new=tensor.flatten(0, 1)))
        if tensor.ndim == 3:
            yield _map(call, partial(_exchanged, old=tensor, new=tensor.transpose(1, 2)))


def _as_floats(call: Call, failure: Failure) -> Iterator[Call]:
    """With numbers in place of whole ones, of what has too many axes for tokens: masks as images, boxes."""
    if not ("float" in failure.text and _WHOLE.search(failure.text)):
        return
    for tensor in (*call[0], *call[1].values()):
        if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and tensor.ndim > 2:
            yield _map(call, partial(_exchanged, old=tensor, new=tensor.float()))


def _exchanged(tensor: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new if tensor is old else tensor


def _floats(call: Call) -> list[torch.Tensor]:
    values = (*call[0], *call[1].values())
    return [item for item in values if isinstance(item, torch.Tensor) and item.is_floating_point()]


def _map(call: Call, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    def changed(item: Any) -> Any:
        return change(item) if isinstance(item, torch.Tensor) else item

    return tuple(changed(item) for item in call[0]), {name: changed(item) for name, item in call[1].items()}
