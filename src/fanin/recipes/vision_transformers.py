"""Vision transformers: ViT as JAX, timm and MoCo v3 build it, and Swin."""

from __future__ import annotations

from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    NORM_SCALES,
    NORM_SHIFTS,
    PLAIN,
    ZERO_BIASES,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    give,
    is_named,
    named,
    outputs,
    positions,
    published,
    role,
    torch_default,
)
from fanin.recipes.settings import require_numbers, require_sizes
from fanin.schemes import Constant, Keep, Normal, TruncatedNormal, VarianceScaling, Zeros, xavier_uniform

TINY = 1e-6
"""The std with which the JAX code draws MLP biases and timm draws class tokens: zero for all purposes."""


def vit_jax(head_bias: float = 0.0) -> PublishedRecipe:
    """ViT as published in JAX: Xavier uniform for each projection, LeCun for the patches, zeros for the head.

    Queries, keys and values are matrices of their own there, each with fans (d, d). Positions N(0, 0.02²), class token
    0, MLP biases N(0, 10⁻¹²).

    Args:
        head_bias: of the output layer; −ln C makes every class start at probability 1/C under a sigmoid loss.

    Raises:
        RecipeError: a setting is no finite number.

    Source: Dosovitskiy et al. 2021, released code.

    Differs from timm's ``jax`` mode and torchvision's ViT, which apply Xavier to the packed (3d, d) weight and so draw
    queries, keys and values √2 too small.
    """
    require_numbers("vit_jax", head_bias=head_bias)

    def rules(graph: Graph) -> list[Rule]:
        is_head = outputs(graph)
        heads = {node.name.rpartition(".")[0] for node in graph if is_head(node)}
        start = Constant(head_bias), f"the head's bias starts at {head_bias:g}"

        def is_head_bias(node: ParameterNode) -> bool:
            return node.role == Role.BIAS and node.name.rpartition(".")[0] in heads

        each = xavier_uniform(), "Xavier uniform, each projection at its own fans"
        patches = VarianceScaling(1.0, "fan_in", "truncated_normal"), "patches: LeCun truncated normal, Flax's default"
        return [
            Rule("head weights", is_head, give(Zeros(), "the head starts at zero"), required=True),
            Rule("head biases", is_head_bias, give(*start)),
            Rule("MLP biases", _mlp_bias, give(Normal(TINY), "MLP bias: std 1e-6")),
            Rule("patch convolutions", role(Role.CONV), give(*patches), required=True),
            Rule("linear weights", role(Role.LINEAR), give(*each), required=True),
            Rule("position tables", positions, give(Normal(0.02), "position table: std 0.02")),
            Rule("tokens", role(Role.TOKEN), give(Zeros(), "the class token starts at zero")),
            *PLAIN,
        ]

    return published("vit-jax", rules, "dosovitskiy2021", settings=changed(head_bias=(head_bias, 0.0)))


def vit(std: float = 0.02) -> PublishedRecipe:
    """ViT and DeiT in timm: std 0.02 for linear weights and positions, patches as torch's constructor draws them.

    timm cuts at ±2, which is ±100σ: nothing. Class token N(0, 10⁻¹²), DeiT's distillation token as the linear weights,
    biases of linear layers 0.

    Args:
        std: of linear weights and positions.

    Raises:
        RecipeError: a setting is no finite number of at least 0.

    Source: timm, ``init_weights_vit_timm``.
    """
    require_sizes("vit", std=std)
    uncut = TruncatedNormal(std, low=-2, high=2, bounds="absolute"), f"std {std:g} (cut at ±2: not at all)"

    def rules(graph: Graph) -> list[Rule]:
        return [
            Rule("linear weights", role(Role.LINEAR), give(*uncut), required=True),
            Rule("patch convolutions", role(Role.CONV), torch_default, required=True),
            Rule("patch biases", _of_convolution, torch_default),
            Rule("position tables", positions, give(*uncut)),
            Rule("distillation tokens", named("dist_token", "*.dist_token"), give(*uncut)),
            Rule("tokens", role(Role.TOKEN), give(Normal(TINY), "class token: std 1e-6")),
            *PLAIN,
        ]

    return published("vit", rules, "wightman2019", settings=changed(std=(std, 0.02)))


def vit_moco() -> PublishedRecipe:
    """ViT in MoCo v3: Xavier uniform for every linear weight and the patches, queries, keys and values apart.

    Positions are a fixed sine-cosine table and stay as constructed. Class token N(0, 10⁻¹²), biases 0.

    Source: Chen, Xie & He 2021, released code.

    Differs from timm's ``moco`` mode, which leaves the patches at torch's default and draws the positions.
    """

    def rules(graph: Graph) -> list[Rule]:
        each = xavier_uniform(), "Xavier uniform; queries, keys and values each at their own fans"
        patches = xavier_uniform(), "patches: Xavier uniform with fans 3p² and d"
        return [
            Rule("linear weights", role(Role.LINEAR), give(*each), required=True),
            Rule("patch convolutions", role(Role.CONV), give(*patches), required=True),
            Rule("position tables", positions, give(Keep(), "a fixed sine-cosine table: kept as constructed")),
            Rule("tokens", role(Role.TOKEN), give(Normal(TINY), "class token: std 1e-6")),
            *PLAIN,
        ]

    return published("vit-moco", rules, "chen2021")


def swin(std: float = 0.02) -> PublishedRecipe:
    """Swin: std 0.02 for linear weights and relative positions, biases 0, patches as torch's constructor draws them.

    Args:
        std: of linear weights and relative position tables.

    Raises:
        RecipeError: a setting is no finite number of at least 0.

    Source: Liu et al. 2021, released code; timm and torchvision agree.
    """
    require_sizes("swin", std=std)
    uncut = TruncatedNormal(std, low=-2, high=2, bounds="absolute"), f"std {std:g} (cut at ±2: not at all)"

    def rules(graph: Graph) -> list[Rule]:
        return [
            Rule("linear weights", role(Role.LINEAR), give(*uncut), required=True),
            Rule("relative position tables", positions, give(*uncut), required=True),
            Rule("patch convolutions", role(Role.CONV), torch_default, required=True),
            Rule("patch biases", _of_convolution, torch_default),
            ZERO_BIASES,
            NORM_SCALES,
            NORM_SHIFTS,
        ]

    return published("swin", rules, "liu2021", settings=changed(std=(std, 0.02)))


def _mlp_bias(node: ParameterNode) -> bool:
    return node.role == Role.BIAS and is_named(node, "*mlp*")


def _of_convolution(node: ParameterNode) -> bool:
    return node.role == Role.BIAS and node.module_type.startswith("Conv")


enter(
    "vit-jax",
    vit_jax(),
    "ViT as published in JAX",
    "q, k, v, out, MLP Xavier uniform; patches LeCun truncated; head 0; positions N(0, 0.02²)",
)
enter(
    "vit",
    vit(),
    "ViT and DeiT as timm builds them",
    "linear, positions N(0, 0.02²); patches U(±1/√fan_in); class token N(0, 10⁻¹²); biases 0",
)
enter(
    "vit-moco",
    vit_moco(),
    "ViT as MoCo v3 builds it",
    "linear, patches Xavier uniform, q, k, v apart; class token N(0, 10⁻¹²); biases 0",
)
enter(
    "swin",
    swin(),
    "Swin transformer",
    "linear, relative positions N(0, 0.02²); patches U(±1/√fan_in); biases 0",
)
