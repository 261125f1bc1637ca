"""Example inputs for models that come without: from what libraries say of their models, else from the first layer.

Every candidate is tried under fake tensors, and the graph says which one was used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fanin.graph import Graph
from fanin.tracing.names import unwrap
from fanin.tracing.synthesis import transformers_calls

Call = tuple[tuple[Any, ...], dict[str, Any]]

BATCH = 2
_IMAGE_SIZES = (224, 256, 64, 32, 28, 299, 384)
_LENGTHS = (64, 256, 1024, 16, 4000)
_MOST_TRIES = 12


def traced_with_examples(model: nn.Module, base: Graph, attempt: Callable[[Call], Graph]) -> Graph:
    """The graph from the first example inputs that the model accepts; the base graph where it accepts none.

    Args:
        model: the model.
        base: its graph from module types.
        attempt: traces the model on inputs; where it fails, the graph is from module types and its notes say why.
    """
    tries, failures = 0, list[str]()
    for origin, call in candidates(model):
        if tries == _MOST_TRIES:
            break
        tries += 1
        graph = attempt(call)
        if graph.source == "modules":
            failures += [note for note in graph.notes if "failed" in note][-1:]
            continue
        note = f"inputs were not given; these are from {origin}"
        guessed = origin.startswith("a guess")
        nodes = (
            tuple(replace(n, confidence=round(n.confidence * 0.9, 3)) for n in graph) if guessed else graph.parameters
        )
        return replace(graph, parameters=nodes, notes=(note, *graph.notes))
    tried = f"{tries} kinds of example inputs were tried and failed" if tries else "no example inputs were found"
    notes = [*failures[:2], f"{tried}; roles and axes are from module types: give inputs"]
    return replace(base, notes=(*base.notes, *notes))


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


def image(*shape: int) -> torch.Tensor:
    """A batch of that shape; without data, for only its shape is read."""
    return torch.empty(BATCH, *shape, device="meta")


def _torchvision_calls(model: nn.Module) -> Iterator[Call]:
    module = type(model).__module__
    if "detection" in module:
        yield ([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(BATCH)],), {}
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
        elif isinstance(module, nn.Linear):
            yield from (((image(module.in_features),), {}), ((image(8, module.in_features),), {}))
            if module.in_features % 3 == 0 and (side := round((module.in_features / 3) ** 0.5)) ** 2 * 3:
                yield (image(3, side, side),), {}
            if (side := round(module.in_features**0.5)) ** 2 == module.in_features:
                yield (image(1, side, side),), {}
        else:
            continue
        return
