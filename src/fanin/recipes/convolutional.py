"""Convolutional networks: ResNet, EfficientNet and ConvNeXt."""

from __future__ import annotations

import math

from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    DEFAULT_BIASES,
    NORM_SCALES,
    NORM_SHIFTS,
    PLAIN,
    Decision,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    give,
    is_named,
    last_of_branch,
    outputs,
    published,
    require_branches,
    role,
    torch_default,
)
from fanin.recipes.settings import require_sizes
from fanin.schemes import Constant, Normal, TruncatedNormal, Uniform, Zeros


def resnet(zero_last: bool = False) -> PublishedRecipe:
    """ResNet: He normal by fan_out for convolutions, the classifier as torch draws it, optionally last norms at 0.

    Convolutions N(0, 2/fan_out), fan_out = k² · out_channels / groups, without regard to stride; norms 1 and 0.

    Args:
        zero_last: start the last norm's scale of each residual branch at 0, so that each block starts as its shortcut
            (timm's default; torchvision's ``zero_init_residual``).

    Raises:
        RecipeError: from the recipe, with ``zero_last``, for a model whose branches are not known or do not end in a
            norm.

    Source: He et al. 2016 with torchvision's choice of fan_out; Goyal et al. 2017 for the zero scale.

    Differs from torchvision and timm in grouped convolutions (ResNeXt), whose fan_out torch takes to be ``groups``
    times what it is.
    """

    def rules(graph: Graph) -> list[Rule]:
        last = _last_norms(graph) if zero_last else frozenset()
        reason = "the last norm of a residual branch starts at zero: the block starts as its shortcut"
        zeros = Rule("norms at the end of residual branches", lambda n: n.name in last, give(Zeros(), reason), True)
        return [
            *([zeros] if zero_last else []),
            Rule("convolutions", role(Role.CONV), _he_fan_out, required=True),
            Rule("linear weights", role(Role.LINEAR), torch_default),
            DEFAULT_BIASES,
            NORM_SCALES,
            NORM_SHIFTS,
        ]

    sources = ("he2016", "he2015", "torchvision2016", *(("goyal2017",) if zero_last else ()))
    return published("resnet", rules, *sources, settings=changed(zero_last=(zero_last, False)))


def _last_norms(graph: Graph) -> frozenset[str]:
    require_branches(graph, "resnet-zero-last")
    names = {node.tamed_by for node in graph if last_of_branch(node) and node.tamed_by}
    return frozenset(name for name in names if name in graph and graph[name].role == Role.NORM_SCALE)


def _he_fan_out(node: ParameterNode) -> Decision:
    fan_out = node.axes.fans(node.shape, stride=False).fan_out
    return Normal(math.sqrt(2 / fan_out)), f"√(2/fan_out), fan_out {fan_out:g} without regard to stride"


def efficientnet() -> PublishedRecipe:
    """EfficientNet, MobileNetV3 and MnasNet: He normal by fan_out, true also for depthwise convolutions.

    Convolutions N(0, 2/fan_out), fan_out = k² · out_channels / groups; classifier U(±1/√classes); biases 0.

    Source: Tan & Le 2019, released code; timm's ``_init_weight_goog``.

    Differs from torchvision, whose depthwise fan_out is ``groups`` times too large: a kernel over 240 channels starts
    √240 = 15 times too small.
    """

    def classifier(node: ParameterNode) -> Decision:
        bound = 1 / math.sqrt(node.fans.fan_out)
        return Uniform(-bound, bound), f"classifier: U(±1/√fan_out), fan_out {node.fans.fan_out:g}"

    def rules(graph: Graph) -> list[Rule]:
        return [
            Rule("convolutions", role(Role.CONV), _he_fan_out, required=True),
            Rule("linear weights", role(Role.LINEAR), classifier),
            *PLAIN,
        ]

    return published("efficientnet", rules, "tan2019", "wightman2019")


def convnext(std: float = 0.02, *, layer_scale: float = 1e-6, head_scale: float = 1.0) -> PublishedRecipe:
    """ConvNeXt: std 0.02 for every weight, biases 0, layer scales 10⁻⁶.

    Args:
        std: of convolutions and linear weights.
        layer_scale: at which every branch starts.
        head_scale: factor on the classifier's weight; 0.001 is used for fine-tuning.

    Raises:
        RecipeError: a setting is no finite number of at least 0.
        RecipeError: from the recipe, for a model without layer scales (such as ConvNeXt V2).

    Source: Liu et al. 2022, released code.
    """
    require_sizes("convnext", std=std, layer_scale=layer_scale, head_scale=head_scale)

    def rules(graph: Graph) -> list[Rule]:
        fixed = TruncatedNormal(std, low=-2, high=2, bounds="absolute"), f"std {std:g} (cut at ±2: not at all)"
        head = (
            fixed[0].scaled(head_scale),
            f"classifier: {fixed[1]}" + (f" × {head_scale:g}" if head_scale != 1 else ""),
        )
        scale = Constant(layer_scale), f"a layer scale starts at {layer_scale:g}"
        return [
            Rule("layer scales", _layer_scale, give(*scale), required=True),
            Rule("output layers", outputs(graph), give(*head), required=head_scale != 1),
            Rule("weights", role(Role.CONV, Role.LINEAR), give(*fixed), required=True),
            *PLAIN,
        ]

    settings = changed(std=(std, 0.02), layer_scale=(layer_scale, 1e-6), head_scale=(head_scale, 1.0))
    return published("convnext", rules, "liu2022", settings=settings)


def _layer_scale(node: ParameterNode) -> bool:
    return node.role == Role.LAYER_SCALE or (node.role == Role.OTHER and is_named(node, ("*.gamma", "*layer_scale*")))


enter(
    "resnet",
    resnet(),
    "ResNet as torchvision builds it",
    "convolutions N(0, 2/fan_out); classifier U(±1/√fan_in); norms 1 and 0",
)
enter(
    "resnet-zero-last",
    resnet(zero_last=True),
    "ResNet as timm builds it: every branch starts at zero",
    "as resnet; the last norm's scale of each branch 0",
)
enter(
    "efficientnet",
    efficientnet(),
    "EfficientNet, MobileNetV3 and MnasNet",
    "convolutions N(0, 2/fan_out) at true fans; classifier U(±1/√classes); biases 0",
)
enter("convnext", convnext(), "ConvNeXt", "weights N(0, 0.02²); biases 0; layer scales 10⁻⁶")
