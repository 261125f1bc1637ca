"""Example inputs for models that come without: from what libraries say of their models, else from the first layer.

Every candidate is tried under fake tensors, and the graph says which one was used.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fanin.graph import Graph
from fanin.tracing.documented import Documented
from fanin.tracing.names import unwrap
from fanin.tracing.records import Call
from fanin.tracing.repair import Failure, repairs
from fanin.tracing.synthesis import Settings, transformers_calls

BATCH = 2
_IMAGE_SIZES = (224, 256, 64, 32, 28, 299, 384)
_LENGTHS = (64, 256, 1024, 16, 4000)
_MOST_TRIES = 12
_MOST_REPAIRS = 32
_MOST_WORK = 60_000
"""Operations run and parameters copied, after which no further repair is tried: some ten seconds."""
_REPAIRED = ", changed as errors asked: a guess"

Attempt = Callable[[Call], Graph | Failure]


def traced_with_examples(model: nn.Module, base: Graph, attempt: Attempt) -> Graph:
    """The graph from the first example inputs that the model accepts; the base graph where it accepts none.

    What libraries say of their models is tried first. Then the inputs that came furthest are changed as their error
    asks, and so on.

    Args:
        model: the model.
        base: its graph from module types.
        attempt: traces the model on inputs: the graph, or how the run ended.
    """
    failed: list[tuple[Failure, str, Call]] = []
    for origin, call in _tries(model, failed):
        result = attempt(call)
        if isinstance(result, Failure):
            failed.append((result, origin, call))
            continue
        note = f"inputs were not given; these are from {origin}"
        guessed = "guess" in origin
        nodes = (
            tuple(replace(n, confidence=round(n.confidence * 0.9, 3)) for n in result) if guessed else result.parameters
        )
        return replace(result, parameters=nodes, notes=(note, *result.notes))
    notes = []
    if failed:
        furthest = max(failed, key=lambda item: item[0].reached)[0]
        notes = [f"the inputs that came furthest failed: {furthest.text[:160]}"]
    tried = f"{len(failed)} kinds of example inputs were tried and failed" if failed else "no example inputs were found"
    notes += [f"{tried}; roles and axes are from module types: give inputs"]
    return replace(base, notes=(*base.notes, *notes))


def _tries(model: nn.Module, failed: list[tuple[Failure, str, Call]]) -> Iterator[tuple[str, Call]]:
    """Candidates, and then repairs of what has failed meanwhile, each once."""
    seen: set[str] = set()
    for origin, call in itertools.islice(candidates(model), _MOST_TRIES):
        seen.add(describe(call))
        yield origin, call
    inner = unwrap(model)
    documented = Documented(inner, Settings(getattr(inner, "config", None)))
    accepted, queue, taken = list(documented.parameters), list[tuple[float, int, str, Call]](), 0
    order, parameters = itertools.count(), sum(1 for _ in inner.parameters())
    for _ in range(_MOST_REPAIRS):
        if sum(failure.reached + parameters for failure, _, _ in failed) > _MOST_WORK:
            return
        for failure, origin, call in failed[taken:]:
            for repaired in repairs(call, failure, documented.make, accepted):
                if describe(repaired) not in seen:
                    seen.add(describe(repaired))
                    hope = failure.reached if failure.begun else math.inf
                    heapq.heappush(queue, (-hope, next(order), origin, repaired))
        taken = len(failed)
        if not queue:
            return
        _, _, origin, call = heapq.heappop(queue)
        yield origin if origin.endswith(_REPAIRED) else origin + _REPAIRED, call


def describe(call: Call) -> str:
    """Inputs in words.

    >>> describe(((torch.zeros(2, 3),), {"mask": None}))
    'float32 2×3, mask=None'
    """
    words = [_word(item) for item in call[0]]
    words += [f"{key}={_word(item)}" for key, item in call[1].items()]
    return ", ".join(words)


def _word(item: Any) -> str:
    if isinstance(item, torch.Tensor):
        return f"{str(item.dtype).removeprefix('torch.')} {'×'.join(map(str, item.shape)) or 'scalar'}"
    if isinstance(item, list | tuple):
        return f"[{', '.join(_word(part) for part in item)}]"
    return repr(item) if item is None or isinstance(item, bool | int | float | str) else type(item).__name__


def candidates(model: nn.Module) -> Iterator[tuple[str, Call]]:
    """Example inputs in order of trust, with where they are from."""
    model = unwrap(model)
    for name in ("default_cfg", "pretrained_cfg"):
        configuration = getattr(model, name, None)
        size = configuration.get("input_size") if isinstance(configuration, dict) else None
        if size:
            yield f"the model's {name}", ((image(*size),), {})
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        for call in transformers_calls(model):
            yield "the model's configuration and signature", call
    example = getattr(model, "example_input_array", None)
    if isinstance(example, torch.Tensor):
        yield "the model's example_input_array", ((example,), {})
    if type(model).__module__.startswith("torchvision.models"):
        for call in _torchvision_calls(model):
            yield "torchvision's conventions", call
    for call in _first_layer_calls(model):
        yield "a guess from the first layer", call


def training_calls(model: nn.Module) -> Iterator[tuple[str, Call]]:
    """What a model takes in training alone: detectors of torchvision look at boxes, and return their losses."""
    model = unwrap(model)
    if type(model).__module__.startswith("torchvision.models.detection"):
        targets = [_boxes(place) for place in range(BATCH)]
        yield "torchvision's conventions, with boxes made up", ((_photographs(), targets), {})


def image(*shape: int) -> torch.Tensor:
    """A batch of that shape; without data, for only its shape is read."""
    return torch.empty(BATCH, *shape, device="meta")


_DETECTED = 64
"""Height and width of the images that detectors look at, which enlarge them."""


def _photographs() -> list[torch.Tensor]:
    shape = (3, _DETECTED, _DETECTED)
    return [torch.rand(shape, generator=torch.Generator().manual_seed(place)) for place in range(BATCH)]


def _boxes(seed: int) -> dict[str, torch.Tensor]:
    """Something to detect at many scales, for a scale at which there is nothing gets no gradient."""
    generator = torch.Generator().manual_seed(seed)
    sides = _DETECTED * torch.tensor([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
    corners = (_DETECTED - sides[:, None]) * torch.rand(len(sides), 2, generator=generator)
    joints = corners[:, None] + sides[:, None, None] * torch.rand(len(sides), 17, 2, generator=generator)
    return {
        "boxes": torch.cat([corners, corners + sides[:, None]], dim=1),
        "labels": torch.ones(len(sides), dtype=torch.int64),
        "masks": torch.ones(len(sides), _DETECTED, _DETECTED, dtype=torch.uint8),
        "keypoints": torch.cat([joints, torch.ones(len(sides), 17, 1)], dim=2),
    }


def _torchvision_calls(model: nn.Module) -> Iterator[Call]:
    module = type(model).__module__
    if "detection" in module:
        yield (_photographs(),), {}
    elif "video" in module:
        for frames, size in ((16, 112), (16, 224)):
            yield (image(3, frames, size, size),), {}
    elif "optical_flow" in module:
        yield (image(3, 128, 128), image(3, 128, 128)), {}
    else:
        size = 299 if "inception" in module else 224
        yield (image(3, size, size),), {}


def _first_layer_calls(model: nn.Module) -> Iterator[Call]:
    """What the first layer with weights takes, in the sizes that are common."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            for size in _IMAGE_SIZES:
                yield (image(module.in_channels, size, size),), {}
        elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            for length in _LENGTHS:
                yield (image(module.in_channels, length),), {}
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            for size in (16, 32, 112):
                yield (image(module.in_channels, 16, size, size),), {}
        elif isinstance(module, nn.Embedding):
            yield (torch.arange(BATCH * 8).view(BATCH, 8) % module.num_embeddings,), {}
            yield (torch.arange(BATCH) % module.num_embeddings,), {}
        elif isinstance(module, nn.EmbeddingBag):
            yield (torch.arange(BATCH * 8).view(BATCH, 8) % module.num_embeddings,), {}
        elif isinstance(module, nn.RNNBase):
            yield (image(8, module.input_size),), {}
        elif isinstance(module, nn.RNNCellBase):
            yield (image(module.input_size),), {}
        elif isinstance(module, nn.MultiheadAttention):
            signal = image(8, module.embed_dim)
            yield from (((signal,), {}), ((signal, signal, signal), {}))
        elif isinstance(module, nn.Bilinear):
            yield (image(module.in1_features), image(module.in2_features)), {}
        elif isinstance(module, nn.Linear) and isinstance(module.in_features, int):
            yield from (((image(module.in_features),), {}), ((image(8, module.in_features),), {}))
            if (
                module.in_features % 3 == 0
                and (side := round((module.in_features / 3) ** 0.5)) ** 2 * 3 == module.in_features
            ):
                yield (image(3, side, side),), {}
            if (side := round(module.in_features**0.5)) ** 2 == module.in_features:
                yield (image(1, side, side),), {}
        else:
            continue
        return
