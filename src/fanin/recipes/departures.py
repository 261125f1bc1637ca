"""Where a recipe and a library that builds the same architecture differ on purpose, and by how much.

The recipes follow the publication, and the fans that a weight truly has. Tests measure every departure from a library
that can be installed; one that is no longer there makes them fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fanin.graph import ParameterNode, Role
from fanin.recipes.rules import is_named

CUT = 0.87962566103423978
"""The standard deviation of N(0, 1) cut at ±2."""

Ratio = Callable[[ParameterNode], float]


@dataclass(frozen=True, slots=True)
class Departure:
    """Some parameters that a library starts otherwise than the recipe of the same name.

    Args:
        recipe: its registered name.
        library: the package, with the mode or the class where it has several.
        where: the parameters, as globs.
        theirs: the library's formula.
        ours: the recipe's formula.
        why: the reason for the recipe's choice.
        ratio: the library's std ÷ the recipe's, from the parameter; None where a constant differs.
        shown: the ratio in words.
        installed: whether the tests build and measure the library's model.
        grouped: only grouped convolutions of those.
    """

    recipe: str
    library: str
    where: tuple[str, ...]
    theirs: str
    ours: str
    why: str
    ratio: Ratio | None = None
    shown: str = ""
    installed: bool = True
    grouped: bool = False

    def covers(self, node: ParameterNode) -> bool:
        """Whether it speaks of this parameter."""
        return is_named(node, self.where) and (not self.grouped or node.axes.groups > 1)


def _to_default(node: ParameterNode) -> float:
    """Torch's default, 1/√(3·fan_in), over Xavier's std."""
    fans = node.fans
    return math.sqrt((fans.fan_in + fans.fan_out) / (6 * fans.fan_in))


def _to_lecun(node: ParameterNode) -> float:
    """Xavier's std over LeCun's."""
    fans = node.fans
    return math.sqrt(2 * fans.fan_in / (fans.fan_in + fans.fan_out))


def _to_fixed(std: float) -> Ratio:
    """A fixed std over torch's default, or over an embedding's 0.02."""
    return lambda node: std / 0.02 if node.role == Role.EMBEDDING else std * math.sqrt(3 * node.fans.fan_in)


_PACKED = "the packed (3d, d) weight is three (d, d) projections, and the published code has them apart"
_GROUPS = "torch's fan_out counts every group: an output channel of one group is not reached from the others"

DEPARTURES = (
    Departure(
        "vit-jax",
        "timm jax mode",
        ("*.qkv.weight",),
        "Xavier of the packed weight, variance 2/(4d)",
        "Xavier of each, variance 2/(2d)",
        _PACKED,
        lambda _: math.sqrt(0.5),
        "1/√2",
    ),
    Departure(
        "vit-jax",
        "timm jax mode",
        ("cls_token",),
        "N(0, 10⁻¹²)",
        "0",
        "the published code starts the class token at zero",
    ),
    Departure(
        "vit-jax",
        "torchvision",
        ("*.in_proj_weight",),
        "Xavier of the packed weight, variance 2/(4d)",
        "Xavier of each, variance 2/(2d)",
        _PACKED,
        lambda _: math.sqrt(0.5),
        "1/√2",
    ),
    Departure(
        "vit-jax",
        "torchvision",
        ("*.out_proj.weight",),
        "torch's default U(±1/√d)",
        "Xavier uniform",
        "the published code draws it like the other projections",
        lambda _: math.sqrt(1 / 3),
        "1/√3",
    ),
    Departure(
        "vit-moco",
        "timm moco mode",
        ("patch_embed.proj.weight",),
        "torch's default U(±1/√fan_in)",
        "Xavier uniform, fans 3p² and d",
        "MoCo v3 draws the patches too; timm's mode leaves them out",
        _to_default,
        "√((fan_in + d)/(6 fan_in))",
    ),
    Departure(
        "vit-moco",
        "timm moco mode",
        ("patch_embed.proj.bias",),
        "torch's default U(±1/√fan_in)",
        "0",
        "MoCo v3 zeroes it",
    ),
    Departure(
        "mlp-mixer",
        "timm",
        ("*.fc1.weight", "*.fc2.weight"),
        "Xavier uniform",
        "LeCun truncated normal",
        "the published code has Flax's default",
        _to_lecun,
        "√(2 fan_in/(fan_in + fan_out))",
    ),
    Departure(
        "mlp-mixer",
        "timm",
        ("*.fc1.bias", "*.fc2.bias"),
        "N(0, 10⁻¹²)",
        "0",
        "the published code has Flax's default",
    ),
    Departure(
        "resnet",
        "torchvision",
        ("*.conv2.weight",),
        "2/(groups · fan_out) in ResNeXt's grouped convolutions",
        "2/fan_out",
        _GROUPS,
        lambda node: 1 / math.sqrt(node.axes.groups),
        "1/√groups",
        grouped=True,
    ),
    Departure(
        "efficientnet",
        "torchvision",
        ("*",),
        "2/(groups · fan_out) in depthwise convolutions",
        "2/fan_out",
        _GROUPS,
        lambda node: 1 / math.sqrt(node.axes.groups),
        "1/√channels",
        grouped=True,
    ),
    Departure(
        "bert-tf",
        "transformers",
        ("*.dense.weight", "*.query.weight", "*.key.weight", "*.value.weight", "*_embeddings.weight"),
        "N(0, 0.02²)",
        "N(0, 0.02²) cut at ±2σ, real std 0.01759",
        "BERT was trained from the truncated normal; recipe bert is transformers' own",
        lambda _: 1 / CUT,
        "1/0.8796",
    ),
    Departure(
        "gpt-neox",
        "transformers",
        ("*.query_key_value.weight", "*.dense_h_to_4h.weight", "*embed_in.weight", "*embed_out.weight", "lm_head.*"),
        "N(0, 0.02²)",
        "N(0, 2/(5d))",
        "GPT-NeoX and Pythia were trained from small init and Wang's",
        lambda node: 0.02 * math.sqrt(5 * _width(node) / 2),
        "0.02·√(5d/2)",
    ),
    Departure(
        "gpt-neox",
        "transformers",
        ("*.attention.dense.weight", "*.dense_4h_to_h.weight"),
        "N(0, 0.02²)",
        "N(0, 4/(L²d))",
        "GPT-NeoX and Pythia were trained from small init and Wang's",
        lambda node: 0.02 * (node.stream_depth / 2) * math.sqrt(node.fans.fan_out) / 2,
        "0.01·L·√d",
    ),
    Departure(
        "mamba",
        "transformers",
        ("*.in_proj.weight", "*.x_proj.weight"),
        "N(0, 0.1²)",
        "torch's default U(±1/√fan_in)",
        "the released code leaves them at torch's default",
        _to_fixed(0.1),
        "0.1·√(3 fan_in)",
    ),
    Departure(
        "mamba",
        "transformers",
        ("*embeddings.weight",),
        "N(0, 0.1²)",
        "N(0, 0.02²)",
        "the released code's initializer_range is 0.02",
        _to_fixed(0.1),
        "5",
    ),
    Departure(
        "mamba",
        "transformers",
        ("*.conv1d.bias",),
        "0",
        "torch's default",
        "the released code leaves it at torch's default",
    ),
    Departure(
        "dit",
        "DiT's released code",
        ("*.qkv.weight",),
        "Xavier of the packed weight, variance 2/(4d)",
        "Xavier of each, variance 2/(2d)",
        "a packed weight is three projections; nothing in the paper asks for less",
        lambda _: math.sqrt(0.5),
        "1/√2",
        installed=False,
    ),
    Departure(
        "lstm-keras",
        "Keras",
        ("*weight_hh*",),
        "one matrix with orthonormal columns over all gates",
        "an orthogonal matrix ÷ √gates for each gate",
        "the columns are orthonormal all the same, and every gate is an isometry up to a factor",
        lambda _: 1.0,
        "1",
        installed=False,
    ),
    Departure(
        "deepnorm",
        "torchscale",
        ("*fc1.weight", "*fc2.weight"),
        "torch's default U(±1/√fan_in) ÷ (8N)^(1/4)",
        "Xavier normal × (8N)^(−1/4)",
        "the paper's pseudocode is Xavier normal with gain β",
        _to_default,
        "√((fan_in + fan_out)/(6 fan_in))",
        installed=False,
    ),
)


def _width(node: ParameterNode) -> int:
    return node.shape[-1]


def departures(recipe: str, library: str) -> tuple[Departure, ...]:
    """What a recipe does otherwise than a library."""
    return tuple(entry for entry in DEPARTURES if entry.recipe == recipe and entry.library == library)
