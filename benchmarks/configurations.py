"""Configurations of transformers made small, so that a laptop can build what they describe."""

from __future__ import annotations

from typing import Any

from fanin.models import SMALL


def shrunk(config: Any, only: tuple[str, ...] = ()) -> Any:
    """The configuration with the sizes of `fanin.models.SMALL`, or only some of them, in its sections too."""
    sections = [value for value in vars(config).values() if hasattr(value, "to_dict") and hasattr(value, "model_type")]
    for section in (config, *sections):
        for key, value in SMALL.items():
            if (not only or key in only) and type(getattr(section, key, None)) is int:
                setattr(section, key, value)
        if isinstance(vars(section).get("layer_types"), list):  # some compute it
            section.layer_types = section.layer_types[:2]
    return config
