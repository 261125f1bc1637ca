"""Mamba."""

from __future__ import annotations

import math

from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    NORM_SCALES,
    NORM_SHIFTS,
    Decision,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    give,
    last_of_branch,
    named,
    published,
    require_branches,
    role,
    torch_default,
    weights,
)
from fanin.recipes.settings import require_sizes
from fanin.schemes import Keep, Normal, Ones, Uniform, VarianceScaling, Zeros


def mamba(dt_scale: float = 1.0) -> PublishedRecipe:
    """Mamba: torch's defaults, small ends of branches, and a state space that only the constructor knows.

    - ``out_proj`` and any other last weight of a branch: U(±1/√fan_in) ÷ √branches;
    - ``dt_proj.weight``: U(±dt_scale/√rank); ``D``: 1; embeddings N(0, 0.02²); biases of linear layers 0;
    - ``A_log`` (the logarithms of 1 … N) and ``dt_proj.bias`` (the inverse softplus of a step drawn log-uniformly) are
      kept as constructed: zeroing that bias, as generic recipes do, makes every step about ln 2.

    Args:
        dt_scale: factor on the step projection.

    Raises:
        RecipeError: a setting is no finite number of at least 0.
        RecipeError: from the recipe, for a model without ``A_log`` and ``dt_proj``, or whose residual branches are not
            known.

    Source: Gu & Dao 2023, released code.

    Differs from transformers, which draws ``in_proj``, ``x_proj`` and embeddings from N(0, 0.1²), zeroes the
    convolution's bias, and divides ``out_proj`` only with ``rescale_prenorm_residual=True``.
    """
    require_sizes("mamba", dt_scale=dt_scale)

    def last(node: ParameterNode) -> Decision:
        count = node.stream_depth
        reason = f"U(±1/√fan_in) ÷ √{count}: last weight of a residual branch, {count} branches"
        return VarianceScaling(1 / (3 * count), "fan_in", "uniform"), reason

    def step(node: ParameterNode) -> Decision:
        bound = dt_scale / math.sqrt(node.fans.fan_in)
        return Uniform(-bound, bound), f"step projection: U(±{dt_scale:g}/√rank), rank {node.fans.fan_in:g}"

    def rules(graph: Graph) -> list[Rule]:
        require_branches(graph, "mamba")
        zero_bias = give(Zeros(), "biases of linear layers start at zero")
        steps = Keep(), "the inverse softplus of a log-uniform step: kept as constructed"
        return [
            Rule("A_log", named("*A_log"), give(Keep(), "log(1 … N) for every channel: kept as constructed"), True),
            Rule("skips D", named("*.D"), give(Ones(), "the skip D starts at one")),
            Rule("step projections", named("*dt_proj.weight"), step, required=True),
            Rule("step biases", named("*dt_proj.bias", "*dt_bias"), give(*steps)),
            Rule("last weights of residual branches", last_of_branch, last, required=True),
            Rule("embeddings", role(Role.EMBEDDING), give(Normal(0.02), "embedding: std 0.02")),
            Rule("weights", weights, torch_default, required=True),
            Rule("linear biases", lambda n: n.role == Role.BIAS and n.module_type == "Linear", zero_bias),
            Rule("convolution biases", role(Role.BIAS), torch_default),
            NORM_SCALES,
            NORM_SHIFTS,
        ]

    return published("mamba", rules, "gu2023", settings=changed(dt_scale=(dt_scale, 1.0)))


enter(
    "mamba",
    mamba(),
    "Mamba",
    "U(±1/√fan_in); last weight of a branch ÷ √branches; dt_proj U(±1/√rank); D 1; A_log, dt bias kept",
)
