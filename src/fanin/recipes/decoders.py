"""Llama, as two libraries build it, and OLMo 1 and 2."""

from __future__ import annotations

import math

from fanin.errors import RecipeError, compose
from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.classic import for_each_block
from fanin.recipes.rules import (
    PLAIN,
    Decision,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    give,
    last_of_branch,
    layer_indices,
    outputs,
    positions,
    published,
    require_branches,
    role,
    stream_width,
    weights,
)
from fanin.recipes.settings import require_sizes
from fanin.schemes import Normal, TruncatedNormal


def llama(std: float = 0.02) -> PublishedRecipe:
    """Llama in transformers: N(0, std²) for every weight and embedding, no scaling with depth.

    The Llama papers do not publish an initialization.

    Args:
        std: ``initializer_range`` of the model's configuration.

    Raises:
        RecipeError: a setting is no finite number of at least 0.

    Source: transformers, ``PreTrainedModel._init_weights``.
    """
    require_sizes("llama", std=std)

    def rules(graph: Graph) -> list[Rule]:
        fixed = Normal(std), f"a fixed std of {std:g}, whatever the depth"
        return [
            Rule("weights", weights, give(*fixed), required=True),
            Rule("embeddings", role(Role.EMBEDDING, Role.POSITION), give(*fixed)),
            *PLAIN,
        ]

    return published("llama", rules, "touvron2023", "wolf2020", settings=changed(std=(std, 0.02)))


def llama_torchtitan(std: float = 0.02) -> PublishedRecipe:
    """Llama 3 in torchtitan: std 0.02; ÷ √(2(l+1)) in layer l for the ends of branches and the gate's value path.

    Embeddings N(0, 1). The output layer is normal with std 1/√d, cut at ±3σ and not corrected, which leaves
    0.9866/√d. ``trunc_normal_`` with bounds ±2 cuts the others at ±100σ, that is, not at all.

    Args:
        std: of the weights before they are divided.

    Raises:
        RecipeError: a setting is no finite number of at least 0.
        RecipeError: from the recipe, for a model whose residual branches are not known, or whose layers have no
            numbers in their names.

    Source: torchtitan, Llama 3 (Liang et al. 2024).
    """
    require_sizes("llama_torchtitan", std=std)

    def rules(graph: Graph) -> list[Rule]:
        require_branches(graph, "llama-torchtitan")
        layers = layer_indices(graph)
        width = stream_width(graph, "llama-torchtitan")
        head = TruncatedNormal(1 / math.sqrt(width), low=-3, high=3), f"output layer: 1/√d, d = {width}, cut at ±3σ"
        embedding = role(Role.EMBEDDING)

        def scaled(node: ParameterNode) -> Decision:
            layer = _layer(layers, node, "llama-torchtitan")
            part = "last weight of a residual branch" if node.residual_last else "value path of a gate"
            return _uncut(std / math.sqrt(2 * (layer + 1))), f"std {std:g} ÷ √{2 * (layer + 1)}: {part}, layer {layer}"

        def is_scaled(node: ParameterNode) -> bool:
            return last_of_branch(node) or (node.is_weight and node.activation == "gate_value")

        fixed = _uncut(std), f"a fixed std of {std:g}"

        def holds_values(node: ParameterNode) -> bool:
            return node.is_weight and any(block.activation == "gate_value" for block in node.axes.blocks)

        def packed(node: ParameterNode) -> Decision:
            return for_each_block(node, lambda _, follows: scaled(node) if follows == "gate_value" else fixed)

        return [
            Rule("embeddings", embedding, give(Normal(1.0), "embedding: std 1"), required=True),
            Rule("last weights of residual branches", is_scaled, scaled, required=True),
            Rule("gates packed with their values", holds_values, packed),
            Rule("output layers", outputs(graph), give(*head)),
            Rule("weights", weights, give(*fixed), required=True),
            *PLAIN,
        ]

    return published("llama-torchtitan", rules, "liang2024", settings=changed(std=(std, 0.02)))


def olmo() -> PublishedRecipe:
    """OLMo 1: std 1/√fan_in, ÷ √(2(l+1)) at the end of layer l's branches, all cut at ±3σ without correction.

    Raises:
        RecipeError: from the recipe, for a model whose residual branches are not known, or whose layers have no
            numbers in their names.

    Source: Groeneveld et al. 2024; OLMo's ``InitFnType.mitchell``.
    """

    def rules(graph: Graph) -> list[Rule]:
        require_branches(graph, "olmo")
        layers = layer_indices(graph)

        def plain(node: ParameterNode) -> Decision:
            return _cut(1 / math.sqrt(node.fans.fan_in)), f"1/√fan_in, fan_in {node.fans.fan_in:g}, cut at ±3σ"

        def scaled(node: ParameterNode) -> Decision:
            layer, fan_in = _layer(layers, node, "olmo"), node.fans.fan_in
            std = 1 / math.sqrt(2 * fan_in * (layer + 1))
            reason = f"1/√fan_in ÷ √{2 * (layer + 1)}, fan_in {fan_in:g}, layer {layer}, cut at ±3σ"
            return _cut(std), f"last weight of a residual branch: {reason}"

        def table(node: ParameterNode) -> Decision:
            width = node.shape[-1]
            return _cut(1 / math.sqrt(width)), f"embedding: 1/√d, d = {width}, cut at ±3σ"

        return [
            Rule("embeddings", _tables, table),
            Rule("last weights of residual branches", last_of_branch, scaled, required=True),
            Rule("weights", weights, plain, required=True),
            *PLAIN,
        ]

    return published("olmo", rules, "groeneveld2024")


def olmo2(std: float = 0.02) -> PublishedRecipe:
    """OLMo 2: one std everywhere, cut at ±3σ without correction (0.02 leaves 0.01973).

    Args:
        std: before the cut.

    Raises:
        RecipeError: a setting is no finite number of at least 0.

    Source: Walsh et al. 2025: the depth scaling of OLMo 1 was removed for fewer loss spikes.
    """
    require_sizes("olmo2", std=std)

    def rules(graph: Graph) -> list[Rule]:
        fixed = _cut(std), f"std {std:g} cut at ±3σ, whatever the depth"
        return [
            Rule("weights", weights, give(*fixed), required=True),
            Rule("embeddings", _tables, give(*fixed)),
            *PLAIN,
        ]

    return published("olmo2", rules, "walsh2025", settings=changed(std=(std, 0.02)))


def _tables(node: ParameterNode) -> bool:
    return positions(node) or node.role == Role.EMBEDDING


def _cut(std: float) -> TruncatedNormal:
    return TruncatedNormal(std, low=-3, high=3)


def _uncut(std: float) -> TruncatedNormal:
    return TruncatedNormal(std, low=-2, high=2, bounds="absolute")


def _layer(layers: dict[str, int], node: ParameterNode, recipe: str) -> int:
    layer = layers.get(node.name)
    if layer is None:
        raise RecipeError(
            compose(
                f"recipe {recipe!r} and {node.name}",
                "the number of its layer in its name, as in layers.3.mlp.down_proj.weight",
                "the std depends on the layer's number",
                'fanin.plan(model, inputs, recipe="gpt2"), which needs only the number of branches',
            )
        )
    return layer


enter("llama", llama(), "Llama as transformers builds it", "weights, embeddings N(0, 0.02²); norms 1")
enter(
    "llama-torchtitan",
    llama_torchtitan(),
    "Llama 3 as torchtitan builds it",
    "N(0, 0.02²); ends of branches and gate values ÷ √(2(l+1)); embeddings N(0, 1); output 1/√d cut at ±3σ",
)
enter(
    "olmo",
    olmo(),
    "OLMo 1 (Mitchell's)",
    "N(0, 1/fan_in) cut at ±3σ; last weight of a branch ÷ √(2(l+1)); embeddings 1/√d",
)
enter("olmo2", olmo2(), "OLMo 2", "weights, embeddings N(0, 0.02²) cut at ±3σ")
