"""Models by name: timm's, torchvision's, transformers', and any factory that can be imported."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fanin.comparison.randomness import seeded
from fanin.errors import FaninError, InputsError, MissingExtraError, article, compose, nearest
from fanin.tracing.names import named_parameters

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "d_model": 64,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
}
"""What ``small`` sets in a transformers config, where the config has it."""

TOKENS = 16
"""The length of example sequences."""

Loaded = tuple[nn.Module, Any]
"""A model, and what it is called with; None where that is not known."""

Parts = tuple[nn.Module, Callable[[int], Any]]
"""A model, and a function that makes so many samples of what it is called with: values, which the model may lack."""


def load(spec: str, *, small: bool = False, meta: bool = False, samples: int = 1) -> Loaded:
    """A model by name, with example inputs where they are known; nothing is downloaded.

    Args:
        spec: ``timm/resnet50``, ``torchvision/vgg16``, ``transformers/gpt2`` (a model type or a class, from its default
            config), or ``package.module:factory``, a function that returns a model or a pair of a model and its inputs.
        small: shrink a transformers model to a few layers.
        meta: build on the meta device where the model allows it, so that no weight takes memory or time.
        samples: the size of the example batch, where it is fanin that makes it.

    Raises:
        InputsError: there is no such model, or it fails when it is built.
        MissingExtraError: the library is not installed.

    >>> model, inputs = load("torch.nn:Identity")
    >>> model, inputs
    (Identity(), None)
    """
    library, slash, name = spec.partition("/")
    if small and library != "transformers":
        raise InputsError(
            compose(f"{spec}, small", "a transformers model", "only their configs say what can be shrunk")
        )
    if slash and name and library in _LIBRARIES:
        build = partial(_LIBRARIES[library], name, small)
    elif ":" in spec:
        build = partial(_factory, spec)
    else:
        raise InputsError(
            compose(
                f"the model {spec!r}",
                "library/name with timm, torchvision or transformers, or package.module:factory",
                instead=f"timm/{spec.rpartition('/')[2] or 'resnet50'}, or mymodels:build",
            )
        )
    # What a user's code prints is not fanin's output, which may be read by a program.
    failing = blamed(f"{spec}, which fails when it is built", "a model that can be built")
    with seeded(0), redirect_stdout(sys.stderr), failing:
        model, example = _on_meta(build) if meta else build()
        return model, example(samples)


def imported(spec: str) -> Any:
    """What ``package.module:name`` refers to; modules of the working directory can be imported too.

    Raises:
        InputsError: there is no such module, or no such name in it.

    >>> imported("math:pi")
    3.141592653589793
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise InputsError(compose(f"{spec!r}", "package.module:name", instead="mymodels:build"))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise InputsError(
            compose(
                f"{spec!r}: no module {error.name!r}",
                "a module that can be imported from here",
                "it is looked for in the working directory and among the installed packages",
                instead=f"{'.'.join(Path(module_name).with_suffix('').parts)}:{name}"
                if module_name.endswith(".py")
                else "",
            )
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            names = _public(found)
            why = nearest(part, names) if names else f"what stands before it is {article(type(found).__name__)}"
            raise InputsError(compose(f"{spec!r}: no {part!r} in it", "a name it has", why))
        found = getattr(found, part)
    return found


def _public(found: Any) -> list[str]:
    """The names that a module or a class has of its user's own, without those that Python gives it."""
    return [name for name in getattr(found, "__dict__", ()) if not name.startswith("__")]


@contextmanager
def blamed(given: str, needed: str) -> Iterator[None]:
    """Turn what a user's code raises into one message that says where; it may not end the program either.

    Raises:
        InputsError: the code inside failed, or called ``sys.exit``.
    """
    try:
        yield
    except FaninError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[::-1]
        place = next((frame for frame in frames if "site-packages" not in frame.filename), frames[0])
        why = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
        raise InputsError(compose(given, needed, why)) from error


@dataclass(frozen=True)
class Theirs:
    """A user's function by its name: what it raises becomes one message. Unlike a closure, another process can take it.

    Args:
        spec: as `imported` takes it.
        function: what was imported.
        needed: what it should have done.
    """

    spec: str
    function: Callable[..., Any]
    needed: str

    @property
    def __name__(self) -> str:  # what plans and races call it
        return getattr(self.function, "__name__", self.spec)

    def __call__(self, *args: Any) -> Any:
        with blamed(f"{self.spec}, which fails when it is called", self.needed):
            return self.function(*args)


def _on_meta(build: Callable[[], Parts]) -> Parts:
    try:
        with torch.device("meta"):
            parts = build()
    except FaninError:
        raise
    except Exception:
        # Some constructors compute with their weights, which hold nothing on meta: those are built as they are.
        return build()
    return build() if _needs_values(parts[0]) else parts


def _needs_values(model: nn.Module) -> bool:
    """Whether what the plan may fill depends on values: a parametrization is asked, by trying, what it can hold."""
    # Weight normalization can hold everything: it needs no trial.
    return any(
        entry.weight is not None and not entry.weight.is_weight_norm and entry.parameter.is_meta
        for entry in named_parameters(model)
    )


def _timm(name: str, small: bool) -> Parts:
    timm = _library("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model: nn.Module = timm.create_model(name, pretrained=False)
    size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    return model, lambda samples: torch.randn(samples, *size)


def _torchvision(name: str, small: bool) -> Parts:
    models = _library("torchvision").models
    known = models.list_models()
    if name not in known:
        raise _unknown("torchvision", name, known)
    model = torchvision_model(name)
    transform = models.get_model_weights(name).DEFAULT.transforms()
    crop = getattr(transform, "crop_size", None)
    size = crop[0] if isinstance(crop, list | tuple) and len(crop) == 1 else 224
    image_model = isinstance(crop, list | tuple) and len(crop) == 1
    return model, lambda samples: torch.randn(samples, 3, size, size) if image_model else None


def torchvision_model(name: str) -> nn.Module:
    """A model of torchvision as its constructor starts it; detectors take no pretrained backbone either."""
    models = _library("torchvision").models
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    backbone = {"weights_backbone": None} if "weights_backbone" in accepted else {}
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce that their defaults will change.
        warnings.simplefilter("ignore", FutureWarning)
        model: nn.Module = models.get_model(name, weights=None, **backbone)
    return model


def _transformers(name: str, small: bool) -> Parts:
    transformers = _library("transformers")
    kind = getattr(transformers, name, None)
    config = _config(transformers, name, kind, small)
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        model: nn.Module = kind(config)
    else:
        model = transformers_model(config)
    return model, partial(_tokens, model, config)


def transformers_model(config: Any) -> nn.Module:
    """The model of a transformers config, with its language head if it has one."""
    transformers = _library("transformers")
    tasks = ("SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "CAUSAL_LM")
    heads = (getattr(transformers, f"MODEL_FOR_{task}_MAPPING") for task in tasks)
    headed: nn.Module | None = next((head[type(config)](config) for head in heads if type(config) in head), None)
    return transformers.AutoModel.from_config(config) if headed is None else headed


def _tokens(model: nn.Module, config: Any, samples: int) -> dict[str, torch.Tensor] | None:
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int) or getattr(model, "main_input_name", "") != "input_ids":
        return None
    tokens = torch.randint(0, vocabulary, (samples, TOKENS))
    two_sided = getattr(config, "is_encoder_decoder", False)
    return {"input_ids": tokens, **({"decoder_input_ids": tokens} if two_sided else {})}


def _config(transformers: Any, name: str, kind: Any, small: bool) -> Any:
    if isinstance(kind, type) and hasattr(kind, "config_class"):
        config_class = kind.config_class
    elif name in transformers.CONFIG_MAPPING:
        config_class = transformers.CONFIG_MAPPING[name]
    else:
        raise _unknown("transformers", name, transformers.CONFIG_MAPPING.keys())
    config = config_class()
    if small:
        # A property follows from what else is set, and can itself be set no more than read.
        keys = (key for key in SMALL if not isinstance(inspect.getattr_static(config_class, key, None), property))
        given = [key for key in keys if isinstance(getattr(config, key, None), int)]
        # By the names that the config itself has for them, for what it derives from these when it is built.
        config = config_class(**{config_class.attribute_map.get(key, key): SMALL[key] for key in given})
    return config


def _factory(spec: str) -> Parts:
    made = imported(spec)
    if callable(made) and not isinstance(made, nn.Module):
        made = made()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InputsError(
            compose(
                f"{spec}, which gives {article(type(model).__name__)}",
                "a function that returns an nn.Module, or a pair of one and its inputs",
            )
        )
    return model, lambda _: inputs


_LIBRARIES: dict[str, Callable[[str, bool], Parts]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingExtraError(name, "zoo", f"the models of {name}") from error


def _unknown(library: str, name: str, known: Iterable[str]) -> InputsError:
    return InputsError(compose(f"{library}/{name}", f"a model that {library} has", nearest(name, known)))
