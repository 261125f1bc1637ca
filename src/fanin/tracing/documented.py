"""Tensors for the arguments of a ``forward``, made from what its documentation, annotations and names say of them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

BATCH = 2
LENGTH = 16
"""The length of sequences and the number of patches of an image; a square, so that patches make a grid."""

_ENTRY = re.compile(r"^\s*(\w+) \(`?([\w.\[\] |]*)`? of shape `?\(([^`]*)\)`?", re.MULTILINE)
_INTEGRAL = ("Long", "Int", "int")
_SIDE = math.isqrt(LENGTH)


class Asked(Protocol):
    """What knows a configuration's settings."""

    def get(self, *names: str, default: Any = None, section: str = "") -> Any:
        """The first of several settings that is set."""


def arguments(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The named arguments of a model's ``forward``."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        found = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {name: parameter for name, parameter in found.items() if parameter.kind in kinds}


def required(parameters: dict[str, inspect.Parameter]) -> list[str]:
    """Those that have no default."""
    return [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]


class Documented:
    """What can be made of each argument.

    Args:
        model: its ``forward`` has the signature and, perhaps, a docstring with lines "name (`type` of shape `(a, b)`)".
        settings: the configuration, which the sizes in a documented shape refer to.
    """

    def __init__(self, model: nn.Module, settings: Asked) -> None:
        self.parameters = arguments(model)
        self._settings = settings
        text = inspect.getdoc(model.forward) or "" if self.parameters else ""
        text = text.partition("Returns:")[0]
        self._entries = {name: (kind, shape) for name, kind, shape in _ENTRY.findall(text)}

    def make(self, name: str) -> torch.Tensor | None:
        """A tensor for the argument; None where nothing says what it could be."""
        if name not in self.parameters or "labels" in name:
            return None
        for ending, maker in _BY_ENDING.items():
            if name.endswith(ending):
                return maker()
        kind, shape = self._entries.get(name, ("", ""))
        kind = kind or str(self.parameters[name].annotation)
        if "Tensor" not in kind and not shape:
            return None
        sizes = self._sizes(shape) if shape else None
        if sizes is None:
            sizes = (BATCH, LENGTH) if _integral(kind) or "mask" in name else (BATCH, LENGTH, self._width())
        return _filled(name, kind, sizes)

    def _sizes(self, shape: str) -> tuple[int, ...] | None:
        shape = re.sub(r"\([^()]*\)", "", shape).replace("{0}", "batch_size, sequence_length")
        words = [word.strip() for word in shape.split(",") if word.strip()]
        if not words or any(not re.fullmatch(r"[\w.+* /-]+", word) for word in words):
            return None
        return tuple(self._size(word) for word in words)

    def _size(self, word: str) -> int:
        if "*" in word:
            return math.prod(self._size(part.strip()) for part in word.split("*"))
        if word.isdigit():
            return int(word)
        name = re.split(r"[^\w]", word.removeprefix("config."))[0]
        if name.startswith(("batch", "num_images", "num_videos", "total_")) or name == "num_images_or_videos":
            return BATCH
        found = self._settings.get(name)
        if isinstance(found, list | tuple) and found and "size" in name:
            found = found[0]
        if isinstance(found, int) and found > 0:
            return found
        return self._unset(name)

    def _unset(self, name: str) -> int:
        if name in ("height", "width", "image_size"):
            return 224
        if "channel" in name:
            return 3
        if name.endswith(("_dim", "_size", "hidden")):
            return self._width()
        return BATCH * LENGTH if name.endswith("image_tokens") else LENGTH

    def _width(self) -> int:
        width = self._settings.get("hidden_size", "d_model", "embed_dim", default=64)
        return width if isinstance(width, int) else 64


def _integral(kind: str) -> bool:
    return any(word in kind for word in _INTEGRAL)


def _filled(name: str, kind: str, sizes: tuple[int, ...]) -> torch.Tensor:
    """Ones for a mask, small numbers where numbers are read, a shape without data elsewhere."""
    if "mask" in name:
        return torch.ones(sizes, dtype=torch.bool if "Bool" in kind else torch.int64)
    if "position_ids" in name and sizes[-1] == 2:
        return _coordinates().expand(*sizes[:-2], -1, -1)
    if _integral(kind):
        return torch.zeros(sizes, dtype=torch.int64)
    return torch.empty(sizes, device="meta")


def _coordinates() -> torch.Tensor:
    """The places of a square of patches."""
    return torch.cartesian_prod(torch.arange(_SIDE), torch.arange(_SIDE))


_BY_ENDING: dict[str, Callable[[], torch.Tensor]] = {
    "input_ids": lambda: torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % 8 + 2,
    "grid_thw": lambda: torch.tensor([[1, _SIDE, _SIDE]] * BATCH),
    "spatial_shapes": lambda: torch.tensor([[_SIDE, _SIDE]] * BATCH),
    "target_sizes": lambda: torch.tensor([[_SIDE, _SIDE]] * BATCH),
    "tgt_sizes": lambda: torch.tensor([[_SIDE, _SIDE]] * BATCH),
    "merge_sizes": lambda: torch.ones(BATCH, dtype=torch.int64),
}
"""What is called so is the same everywhere; it has to fit the number of patches."""
