"""BERT, as TensorFlow and as transformers build it, and T5."""

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
    is_named,
    positions,
    published,
    role,
    stream_width,
    weights,
)
from fanin.recipes.settings import require_sizes
from fanin.schemes import Normal, Scheme, TruncatedNormal


def bert(std: float = 0.02) -> PublishedRecipe:
    """BERT in transformers: N(0, std²), not truncated, for weights and embeddings; the padding row 0.

    Args:
        std: ``initializer_range`` of the model's configuration.

    Raises:
        RecipeError: a setting is no finite number of at least 0.

    Source: transformers, ``PreTrainedModel._init_weights``.

    Differs from `bert_tf`, the original, in that nothing is cut: the real std is 14 % larger.
    """
    require_sizes("bert", std=std)
    return _one_std("bert", Normal(std), f"std {std:g}, not truncated", std, "devlin2019", "wolf2020")


def bert_tf(std: float = 0.02) -> PublishedRecipe:
    """BERT as first released: a normal of std 0.02 cut at ±2σ and not corrected, so that its real std is 0.01759.

    Args:
        std: before the cut.

    Raises:
        RecipeError: a setting is no finite number of at least 0.

    Source: Devlin et al. 2019, released code: ``tf.truncated_normal_initializer``.
    """
    require_sizes("bert_tf", std=std)
    real = TruncatedNormal(std)
    return _one_std("bert-tf", real, f"std {std:g} cut at ±2σ, not corrected: ×0.8796", std, "devlin2019")


def _one_std(name: str, scheme: Scheme, reason: str, std: float, *sources: str) -> PublishedRecipe:
    def rules(graph: Graph) -> list[Rule]:
        return [
            Rule("weights", weights, give(scheme, reason), required=True),
            Rule("embeddings", _tables, give(scheme, f"embedding: {reason}"), required=True),
            *PLAIN,
        ]

    return published(name, rules, *sources, settings=changed(std=(std, 0.02)))


def t5(head_dim: int | None = None) -> PublishedRecipe:
    """T5: N(0, 1/fan_in) for weights, queries ÷ √head_dim more, embeddings N(0, 1).

    T5 does not divide its attention scores by √head_dim; the small query does it at the start. In a model that divides
    its scores this recipe scales twice. Relative position tables N(0, 1/d); no biases.

    Args:
        head_dim: width of a head; unless given, it is the width of a query ÷ the columns of the relative position
            table.

    Raises:
        RecipeError: ``head_dim`` is no positive integer; from the recipe, for a model without attention queries, or
            whose head width is not known.

    Source: Raffel et al. 2020, released code (Mesh TensorFlow); transformers, ``T5PreTrainedModel._init_weights``.
    """
    if head_dim is not None and not (type(head_dim) is int and head_dim > 0):
        raise RecipeError(
            compose(f"t5(head_dim={head_dim!r})", "a whole number above 0", instead="fanin.recipes.t5(head_dim=64)")
        )

    def rules(graph: Graph) -> list[Rule]:
        width = stream_width(graph, "t5")
        heads = next((node.shape[-1] for node in graph if positions(node) and is_named(node, "*relative*bias*")), None)

        def weight(node: ParameterNode, activation: str | None) -> Decision:
            fan_in = node.fans.fan_in
            if not _is_query(node, activation):
                return Normal(1 / math.sqrt(fan_in)), f"1/√fan_in, fan_in {fan_in:g}"
            dim = _head_dim(heads, node) if head_dim is None else head_dim
            return Normal(1 / math.sqrt(fan_in * dim)), f"1/√(fan_in · {dim}): query, whose scores T5 does not divide"

        relative = Normal(1 / math.sqrt(width)), f"relative positions: 1/√d, d = {width}"
        return [
            Rule("attention queries", _has_query, lambda node: for_each_block(node, weight), required=True),
            Rule("weights", weights, lambda node: for_each_block(node, weight)),
            Rule("relative position tables", positions, give(*relative)),
            Rule("embeddings", role(Role.EMBEDDING), give(Normal(1.0), "embedding: std 1"), required=True),
            *PLAIN,
        ]

    return published("t5", rules, "raffel2020", settings=changed(head_dim=(head_dim, None)))


def _is_query(node: ParameterNode, activation: str | None) -> bool:
    if activation is None and not node.axes.blocks:
        return is_named(node, "*.q.weight")
    return activation == "softmax_q"


def _has_query(node: ParameterNode) -> bool:
    activations = [block.activation for block in node.axes.blocks] or [node.activation]
    return node.is_weight and any(_is_query(node, activation) for activation in activations)


def _head_dim(heads: int | None, query: ParameterNode) -> int:
    if heads is None:
        raise RecipeError(
            compose(
                f"recipe 't5' and {query.name}, in a model without relative position tables",
                "the width of a head",
                "T5's queries are divided by its square root",
                "fanin.recipes.t5(head_dim=64)",
            )
        )
    rows = sum(b.size for b in query.axes.blocks if b.activation == "softmax_q") or int(query.fans.fan_out)
    return rows // heads


def _tables(node: ParameterNode) -> bool:
    return positions(node) or node.role in (Role.EMBEDDING, Role.TOKEN)


enter("bert", bert(), "BERT as transformers builds it", "weights, embeddings N(0, 0.02²); biases 0; padding row 0")
enter(
    "bert-tf",
    bert_tf(),
    "BERT as first released in TensorFlow",
    "weights, embeddings N(0, 0.02²) cut at ±2σ (std 0.01759); biases 0",
)
enter(
    "t5",
    t5(),
    "T5: queries carry the scale that its attention leaves out",
    "N(0, 1/fan_in); queries N(0, 1/(fan_in · head_dim)); embeddings N(0, 1)",
)
