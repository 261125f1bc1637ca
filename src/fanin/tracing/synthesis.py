"""Example inputs of transformers' models, from their configuration and the signature of their forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fanin.tracing.documented import BATCH, LENGTH, Documented, required
from fanin.tracing.records import Call

_BINS = ("num_mel_bins", "input_feat_per_channel", "input_feat_size", "feature_size")
_WAVE = 15360
"""About a second of sound: a multiple of all hop lengths in use (320, 640, 1920)."""

_SECTIONS = (
    *("text_config", "vision_config", "audio_config", "encoder", "decoder", "backbone_config", "text_encoder"),
    *("encoder_config", "decoder_config"),
)
_PARTNERS = ("input_ids", "decoder_input_ids", "pixel_values", "input_features", "input_values", "bbox")


class Settings:
    """A configuration, asked by several names, in itself and then in its sections."""

    def __init__(self, config: Any) -> None:
        sections = [getattr(config, name, None) for name in _SECTIONS]
        self._places = [config, *[section for section in sections if section is not None]]

    def get(self, *names: str, default: Any = None, section: str = "") -> Any:
        """The first of several settings that is set."""
        places = [place for place in self._places if section and section in type(place).__name__.lower()]
        for place in (*places, *self._places):
            for name in names:
                value = place.get(name) if isinstance(place, dict) else getattr(place, name, None)
                if value is not None:
                    return value
        return default

    @property
    def kind(self) -> str:
        """The model's type, as the configuration names it."""
        return str(getattr(self._places[0], "model_type", ""))


def transformers_calls(model: nn.Module) -> Iterator[Call]:
    """Keyword arguments to try, the most complete that is likely first."""
    settings = Settings(model.config)
    documented = Documented(model, settings)
    accepted = documented.parameters
    main = str(model.main_input_name)
    if main not in accepted:
        main = next((name for name in (*_MAKERS, *_PARTNERS) if name in accepted), main)
    made = dict(_made(settings, accepted))
    needed = [main, *required(accepted)]
    for name in needed:
        if name not in made and (tensor := documented.make(name)) is not None:
            made[name] = tensor
    if main not in made:
        return
    chosen = {name: made[name] for name in needed if name in made}
    encodes = bool(getattr(model.config, "is_encoder_decoder", False)) or main in ("input_features", "input_values")
    if encodes and "decoder_input_ids" in made:
        chosen["decoder_input_ids"] = made["decoder_input_ids"]
    everything = {**chosen, **{name: made[name] for name in _PARTNERS if name in made}}
    if any(name.endswith("grid_thw") for name in chosen):
        yield from _gridded(chosen, main, settings, documented)
    if set(everything) != set(chosen) and hasattr(model.config, "text_config"):
        yield (), everything
    yield (), chosen
    if set(everything) != set(chosen):
        yield (), everything
    if "use_cache" in accepted:
        yield (), {**chosen, "use_cache": False}
    yield from _other_shapes(chosen, settings)
    if "pixel_values" in everything and "pixel_values" not in chosen:
        yield from _other_shapes(everything, settings)


def _made(settings: Settings, accepted: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """What can be made of the accepted arguments; a strange configuration makes fewer, not an error."""
    for name in accepted:
        if name in _MAKERS:
            with contextlib.suppress(TypeError, ValueError, AttributeError, RuntimeError):
                yield name, _MAKERS[name](settings)


def _other_shapes(chosen: dict[str, Any], settings: Settings) -> Iterator[Call]:
    """The same inputs in the other layouts that models of their kind take."""
    if "pixel_values" in chosen:
        pixels = chosen["pixel_values"]
        if pixels.ndim == 4:
            for frames in (int(settings.get("num_frames", default=8)), 2):
                yield (), {**chosen, "pixel_values": pixels.unsqueeze(1).expand(-1, frames, -1, -1, -1)}
        if settings.get("patch_size"):
            yield (), {**chosen, "pixel_values": _patches(settings).view(BATCH, LENGTH, -1)}
        for size in (1024, 256, 512):
            yield (), {**chosen, "pixel_values": torch.empty(BATCH, pixels.shape[-3], size, size, device="meta")}
    if "input_values" in chosen:
        yield (), {**chosen, "input_values": torch.empty(BATCH, 1, _WAVE, device="meta")}
        yield (), {**chosen, "input_values": _spectrogram(settings)}
    if "input_features" in chosen:
        yield (), {**chosen, "input_features": _spectrogram(settings)}
        bins = chosen["input_features"].shape[-1]
        yield (), {**chosen, "input_features": torch.empty(BATCH, bins, 3000, device="meta")}


def _gridded(chosen: dict[str, Any], main: str, settings: Settings, documented: Documented) -> Iterator[Call]:
    """Images as patches, in the forms that go with a table of how many there are."""
    patches = _patches(settings)
    side = int(settings.get("patch_size", default=14))
    for form in (patches, documented.make(main), patches.view(len(patches), -1, side, side)):
        if form is not None:
            yield (), {**chosen, main: form}


def _ids(settings: Settings) -> torch.Tensor:
    vocabulary = int(settings.get("vocab_size", default=32, section="text"))
    longest = int(settings.get("max_position_embeddings", "n_positions", default=LENGTH, section="text"))
    length = min(LENGTH, longest) if longest > 2 else LENGTH
    # Small numbers are often special tokens; two in front keep padding out of the sequence.
    return (torch.arange(BATCH * length).view(BATCH, length) % max(vocabulary - 3, 1)) + min(2, vocabulary - 1)


def _pixels(settings: Settings) -> torch.Tensor:
    size = settings.get("image_size", "img_size", "input_size", default=224, section="vision")
    if isinstance(size, dict):
        size = (size.get("height", 224), size.get("width", 224))
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = int(settings.get("num_channels", "in_channels", "in_chans", default=3, section="vision"))
    return torch.empty(BATCH, channels, int(height), int(width), device="meta")


def _video(settings: Settings) -> torch.Tensor:
    frames = int(settings.get("num_frames", "frames_per_clip", default=8))
    return _pixels(settings).unsqueeze(1).expand(-1, frames, -1, -1, -1)


def _series(settings: Settings) -> torch.Tensor:
    channels = int(settings.get("num_input_channels", "input_size", default=1))
    return torch.empty(BATCH, int(settings.get("context_length", default=32)), channels, device="meta")


def _features(settings: Settings) -> torch.Tensor:
    bins = int(settings.get(*_BINS, default=80, section="audio"))
    longest = settings.get("max_source_positions", default=0, section="audio")
    if settings.kind.startswith("whisper") and longest:
        return torch.empty(BATCH, bins, 2 * int(longest), device="meta")
    return torch.empty(BATCH, 64, bins, device="meta")


def _spectrogram(settings: Settings) -> torch.Tensor:
    bins = int(settings.get(*_BINS, default=80))
    length = int(settings.get("max_length", default=128))
    return torch.empty(BATCH, length, bins, device="meta")


def _wave(settings: Settings) -> torch.Tensor:
    if settings.get("num_mel_bins") and settings.get("max_length"):
        return _spectrogram(settings)
    if settings.get("audio_channels"):
        return torch.empty(BATCH, int(settings.get("audio_channels")), _WAVE, device="meta")
    return torch.empty(BATCH, _WAVE, device="meta")


def _patches(settings: Settings) -> torch.Tensor:
    """Images as the rows of patches that ``grid_thw`` counts."""
    side = int(settings.get("patch_size", default=14))
    channels = int(settings.get("in_channels", "in_chans", "num_channels", default=3))
    frames = int(settings.get("temporal_patch_size", default=1))
    return torch.empty(BATCH * 16, channels * frames * side * side, device="meta")


def _embeddings(settings: Settings) -> torch.Tensor:
    return torch.empty(BATCH, LENGTH, int(settings.get("hidden_size", "d_model", default=64)), device="meta")


def _mask(settings: Settings) -> torch.Tensor:
    return torch.ones(BATCH, 64, dtype=torch.bool)


def _boxes(settings: Settings) -> torch.Tensor:
    return torch.zeros(*_ids(settings).shape, 4, dtype=torch.int64)


_MAKERS: dict[str, Callable[[Settings], torch.Tensor]] = {
    "input_ids": _ids,
    "pixel_values": _pixels,
    "input_features": _features,
    "input_values": _wave,
    "decoder_input_ids": _ids,
    "bbox": _boxes,
    "pixel_values_videos": _video,
    "past_values": _series,
    "hidden_states": _embeddings,
    "inputs_embeds": _embeddings,
    "qformer_input_ids": _ids,
    "audio_mel": _features,
    "input_features_mask": _mask,
    "audio_mel_mask": _mask,
}
