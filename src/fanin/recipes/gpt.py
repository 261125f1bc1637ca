"""GPT-2 and its descendants: a fixed small std, and less for the last weight of every residual branch."""

from __future__ import annotations

import math
from collections.abc import Callable

from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    PLAIN,
    Decision,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    give,
    last_of_branch,
    positions,
    published,
    require_branches,
    role,
    stream_width,
    weights,
)
from fanin.recipes.settings import require_sizes
from fanin.schemes import Normal


def gpt2(std: float = 0.02, *, position_std: float = 0.02, scale_branches: bool = True) -> PublishedRecipe:
    """GPT-2 as nanoGPT and transformers build it: N(0, 0.02²), residual branches scaled down at their end.

    Weights and embeddings N(0, std²); last weight of a residual branch N(0, (std/√branches)²), where a block has two
    branches, attention and MLP; biases 0, norms 1 and 0.

    Args:
        std: of weights and embeddings.
        position_std: of position tables; 0.01 in OpenAI's released code.
        scale_branches: False in OpenAI's released code, although the report describes the scaling.

    Raises:
        RecipeError: a setting is no finite number of at least 0.
        RecipeError: from the recipe, for a model whose residual branches are not known.

    >>> gpt2(std=0.01).name
    'gpt2(std=0.01)'

    Source: Radford et al. 2019, section 2.3; nanoGPT, ``model.py``.

    Differs from transformers in that the branches are found by dataflow, not by the name ``c_proj``.
    """
    require_sizes("gpt2", std=std, position_std=position_std)

    def rules(graph: Graph) -> list[Rule]:
        result = []
        if scale_branches:
            require_branches(graph, "gpt2")
            result.append(Rule("last weights of residual branches", last_of_branch, _divided(std), required=True))
        fixed = f"a fixed std of {std:g}"
        position = Normal(position_std), f"position table: std {position_std:g}"
        return [
            *result,
            Rule("weights", weights, give(Normal(std), fixed), required=True),
            Rule("position tables", positions, give(*position), required=position_std != std),
            Rule("embeddings", role(Role.EMBEDDING, Role.TOKEN), give(Normal(std), f"embedding: {fixed}")),
            *PLAIN,
        ]

    settings = changed(std=(std, 0.02), position_std=(position_std, 0.02), scale_branches=(scale_branches, True))
    return published("gpt2", rules, "radford2019", "nanogpt" if scale_branches else "gpt2", settings=settings)


def megatron(std: float = 0.02, *, embedding_std: float | None = None) -> PublishedRecipe:
    """Megatron-LM: N(0, std²), the output layer of every branch ÷ √branches, embeddings with a std of their own.

    Args:
        std: of weights.
        embedding_std: of embeddings and position tables; the same as ``std`` unless given.

    Raises:
        RecipeError: a setting is no finite number of at least 0.
        RecipeError: from the recipe, for a model whose residual branches are not known.

    Source: Shoeybi et al. 2019; Megatron-LM's ``scaled_init_method_normal``.
    """
    table_std = std if embedding_std is None else embedding_std
    require_sizes("megatron", std=std, embedding_std=table_std)

    def rules(graph: Graph) -> list[Rule]:
        require_branches(graph, "gpt2-megatron")
        tables = Normal(table_std), f"embedding: std {table_std:g}"
        return [
            Rule("last weights of residual branches", last_of_branch, _divided(std), required=True),
            Rule("weights", weights, give(Normal(std), f"a fixed std of {std:g}"), required=True),
            Rule("position tables", positions, give(*tables)),
            Rule("embeddings", role(Role.EMBEDDING, Role.TOKEN), give(*tables), required=embedding_std is not None),
            *PLAIN,
        ]

    settings = changed(std=(std, 0.02), embedding_std=(embedding_std, None))
    return published("gpt2-megatron", rules, "shoeybi2019", settings=settings)


def gpt_neox() -> PublishedRecipe:
    """GPT-NeoX-20B and Pythia: "small init" √(2/(5d)), and 2/(L√d) at the end of every branch, d the model's width.

    L is the number of layers, two branches each, also where attention and MLP run in parallel.

    Raises:
        RecipeError: from the recipe, for a model without residual branches or width.

    Source: Black et al. 2022; Nguyen & Salazar 2019 for the first, Wang 2021 for the second formula.

    Differs from transformers' GPT-NeoX, which draws everything from N(0, 0.02²).
    """

    def rules(graph: Graph) -> list[Rule]:
        require_branches(graph, "gpt-neox")
        width = stream_width(graph, "gpt-neox")
        small = Normal(math.sqrt(2 / (5 * width)))

        def wang(node: ParameterNode) -> Decision:
            layers = node.stream_depth / 2
            std = 2 / (layers * math.sqrt(width))
            return Normal(std), f"2/(L√d), L = {layers:g}, d = {width}: last weight of a residual branch"

        return [
            Rule("last weights of residual branches", last_of_branch, wang, required=True),
            Rule("weights", weights, give(small, f"small init √(2/(5d)), d = {width}"), required=True),
            Rule("embeddings", _tables, give(small, f"embedding: small init √(2/(5d)), d = {width}")),
            *PLAIN,
        ]

    return published("gpt-neox", rules, "black2022", "nguyen2019", "wang2021")


def _tables(node: ParameterNode) -> bool:
    return positions(node) or node.role in (Role.EMBEDDING, Role.TOKEN)


def _divided(std: float) -> Callable[[ParameterNode], Decision]:
    def divide(node: ParameterNode) -> Decision:
        count = node.stream_depth
        reason = f"std {std:g} ÷ √{count}: last weight of a residual branch, {count} branches"
        return Normal(std / math.sqrt(count)), reason

    return divide


enter(
    "gpt2",
    gpt2(),
    "GPT-2 as nanoGPT and transformers build it",
    "weights, embeddings N(0, 0.02²); last weight of a branch ÷ √branches; biases 0",
)
enter(
    "gpt2-openai",
    gpt2(position_std=0.01, scale_branches=False),
    "GPT-2 as OpenAI's released code builds it",
    "weights, embeddings N(0, 0.02²); positions N(0, 0.01²); no scaling of branches; biases 0",
)
enter(
    "gpt2-megatron",
    megatron(),
    "GPT-2 and others in Megatron-LM, whose embeddings can have a std of their own",
    "as gpt2; megatron(embedding_std=…) sets the tables apart",
)
enter(
    "gpt-neox",
    gpt_neox(),
    "GPT-NeoX-20B and Pythia: small init, and Wang's at the end of branches",
    "N(0, 2/(5d)); last weight of a branch N(0, (2/(L√d))²); biases 0",
)
