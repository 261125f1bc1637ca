"""The tracer against what a person reads in the models' sources (see expectations/README.md)."""

from __future__ import annotations

import pytest

from expectations import differences, load, names
from fanin.tracing import trace

SOME = (
    "timm/cait_xxs24_224",
    "timm/dm_nfnet_f0",
    "timm/efficientnet_b0",
    "timm/levit_128s",
    "timm/resnet18",
    "timm/swin_tiny_patch4_window7_224",
    "timm/swinv2_tiny_window8_256",
    "torchvision/googlenet",
    "torchvision/vit_b_16",
)
"""Large models of which the tests take these; `python benchmarks/tracing.py expectations` scores all."""


@pytest.mark.parametrize(
    "name", [name for name in names() if name.startswith(("awkward", "transformers")) or name in SOME]
)
def test_every_listed_field_is_exactly_right(name: str) -> None:
    model, inputs = load(name)
    assert differences(name, trace(model, inputs)) == []
