"""Transformers that are made trainable by their start: T-Fixup and DeepNorm."""

from __future__ import annotations

from dataclasses import dataclass

from fanin.errors import RecipeError, compose
from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.classic import for_each_block
from fanin.recipes.rules import (
    NORM_SCALES,
    NORM_SHIFTS,
    ZERO_BIASES,
    Decision,
    PublishedRecipe,
    Rule,
    enter,
    last_of_branch,
    layer_indices,
    positions,
    published,
    require_branches,
    role,
    stream_width,
    weights,
)
from fanin.recipes.unnormalized import require_no_norms
from fanin.schemes import Normal, xavier_normal, xavier_uniform
from fanin.tables import counted

SCORES = ("softmax_q", "softmax_k")


@dataclass(frozen=True, slots=True)
class Stacks:
    """How many layers a transformer's encoder and decoder have; 0 for a side that it lacks.

    A model whose names speak of neither is one stack, counted as ``encoder``.
    """

    encoder: int
    decoder: int

    @property
    def single(self) -> int:
        """The number of layers of a model with one stack; 0 when it has both."""
        return 0 if self.encoder and self.decoder else self.encoder or self.decoder


def t_fixup() -> PublishedRecipe:
    """T-Fixup: encoder-decoder transformers without layer norm and without warm-up.

    With N layers a side and Xavier uniform everywhere: values, attention outputs and MLP weights × 0.67·N^(−1/4) in the
    encoder and × (9N)^(−1/4) in the decoder; embeddings N(0, 1/d) × (9N)^(−1/4); queries and keys as they are.

    Raises:
        RecipeError: from the recipe, for a model with norms, without residual branches, or whose parameters' names say
            neither encoder nor decoder.

    Source: Huang et al. 2020, section 3; released code. Queries, keys and values have fans (d, d) each; the code
    reaches the same by a factor √2 on the value.
    """

    def rules(graph: Graph) -> list[Rule]:
        require_no_norms(graph, "t-fixup")
        require_branches(graph, "t-fixup")
        stacks = _require_sides(graph)
        width = stream_width(graph, "t-fixup")
        layers = layer_indices(graph)

        def weight(node: ParameterNode, activation: str | None) -> Decision:
            side = _side(node)
            if activation in SCORES or not side or node.name not in layers:
                return xavier_uniform(), "Xavier uniform, not scaled"
            if side == "encoder":
                return xavier_uniform(0.67 * stacks.encoder**-0.25), f"Xavier × 0.67·N^(−1/4), N = {stacks.encoder}"
            return xavier_uniform((9 * stacks.decoder) ** -0.25), f"Xavier × (9N)^(−1/4), N = {stacks.decoder}"

        def embedding(node: ParameterNode) -> Decision:
            count = stacks.decoder if _side(node) == "decoder" else stacks.encoder or stacks.decoder
            std = width**-0.5 * (9 * count) ** -0.25
            return Normal(std), f"embedding: 1/√d × (9N)^(−1/4), d = {width}, N = {count}"

        return [
            Rule("weights", weights, lambda node: for_each_block(node, weight), required=True),
            Rule("embeddings", _word_table, embedding, required=True),
            ZERO_BIASES,
        ]

    return published("t-fixup", rules, "huang2020")


def deepnorm() -> PublishedRecipe:
    """DeepNorm: post-norm transformers of up to 1,000 layers.

    The model computes x ← LayerNorm(α·x + f(x)); α is a factor in its own code, which no initialization can supply: a
    model that multiplies its stream with nothing is refused, and the plan's notes say the number. Xavier normal for
    every weight: gain 1 for queries and keys, β for values, attention outputs and MLP weights.

    - one stack of N layers: α = (2N)^(1/4), β = (8N)^(−1/4);
    - N encoder and M decoder layers: encoder α = 0.81·(N⁴M)^(1/16), β = 0.87·(N⁴M)^(−1/16); decoder α = (3M)^(1/4),
      β = (12M)^(−1/4).

    Raises:
        RecipeError: from the recipe, for a model without norms or residual branches, one that normalizes before its
            branches, or one without α.

    Source: Wang et al. 2022, figure 2.

    Differs from the released torchscale code, which divides each layer's own default (torch's for MLPs) by 1/β
    instead of drawing from Xavier normal.
    """

    def rules(graph: Graph) -> list[Rule]:
        require_branches(graph, "deepnorm")
        _require_post_norm(graph)
        stacks = _stacks(graph)
        _require_alpha(graph, stacks)
        layers = layer_indices(graph)

        def weight(node: ParameterNode, activation: str | None) -> Decision:
            if activation in SCORES:
                return xavier_normal(), "query or key: Xavier normal, gain 1"
            if node.name not in layers:
                return xavier_normal(), "outside of layers: Xavier normal, gain 1"
            beta = _constants(stacks, _side(node))[1]
            return xavier_normal(beta), f"Xavier normal, gain β = {beta:.4g} for {_depth(stacks)}"

        hint = "x = norm(alpha * x + f(x)) in every block"
        return [
            Rule("norm scales", NORM_SCALES.where, NORM_SCALES.give, required=True, hint=hint),
            NORM_SHIFTS,
            Rule("weights", weights, lambda node: for_each_block(node, weight), required=True),
            ZERO_BIASES,
        ]

    return published("deepnorm", rules, "wang2022", notes=_alpha_note)


def _require_post_norm(graph: Graph) -> None:
    ends = [node for node in graph if last_of_branch(node)]
    # Of one branch it is not known how its stream would go on: whether α is there must do.
    if not _is_normed(graph) or all(node.post_norm or node.stream_depth == 1 for node in ends):
        return
    raise RecipeError(
        compose(
            "recipe 'deepnorm' on a model whose residual sums are not normalized before they go on (pre-norm)",
            "x = norm(alpha * x + f(x)) in every block",
            "β balances the α that a post-norm block multiplies its stream with",
            'fanin.plan(model, inputs, recipe="auto")',
        )
    )


def _require_alpha(graph: Graph, stacks: Stacks) -> None:
    if not _is_normed(graph) or all(node.skip_scaled for node in graph if last_of_branch(node)):
        return
    plain = next(node.name for node in graph if last_of_branch(node) and not node.skip_scaled)
    raise RecipeError(
        compose(
            f"recipe 'deepnorm' on a model whose stream is added to the branch of {plain} as it is",
            f"a stream that is multiplied by {_alphas(stacks)} in every sum",
            "the small β of the branches is for a large α; without it they hardly count",
            "x = norm(alpha * x + f(x)) in the model's code",
        )
    )


def _is_normed(graph: Graph) -> bool:
    """Whether there is a norm; a model without any is refused for that."""
    return any(node.role == Role.NORM_SCALE for node in graph)


def _alpha_note(graph: Graph) -> tuple[str, ...]:
    alphas = _alphas(_stacks(graph))
    return (f"deepnorm is half of the method: the model must compute LayerNorm(α·x + f(x)) with {alphas}",)


def _alphas(stacks: Stacks) -> str:
    sides = ("",) if stacks.single else ("encoder", "decoder")
    return ", ".join(f"α = {_constants(stacks, side)[0]:.4g}{f' in the {side}' if side else ''}" for side in sides)


def _constants(stacks: Stacks, side: str) -> tuple[float, float]:
    """α and β of DeepNorm."""
    if stacks.single:
        return (2 * stacks.single) ** 0.25, (8 * stacks.single) ** -0.25
    if side == "decoder":
        return (3 * stacks.decoder) ** 0.25, (12 * stacks.decoder) ** -0.25
    both = stacks.encoder**4 * stacks.decoder
    return 0.81 * both ** (1 / 16), 0.87 * both ** (-1 / 16)


def _depth(stacks: Stacks) -> str:
    if stacks.single:
        return counted(stacks.single, "layer")
    return f"{stacks.encoder} encoder and {stacks.decoder} decoder layers"


def _side(node: ParameterNode) -> str:
    """``encoder`` or ``decoder``, whichever the name says first; empty when it says neither."""
    places = {side: node.name.find(side) for side in ("encoder", "decoder")}
    return min((place, side) for side, place in {**places, "": len(node.name)}.items() if place >= 0)[1]


def _stacks(graph: Graph) -> Stacks:
    """Layers a side: branches ÷ 2, and ÷ 3 where a decoder also attends to an encoder; what is begun is one."""
    depths = {"encoder": 0, "decoder": 0, "": 0}
    for node in graph:
        if last_of_branch(node):
            depths[_side(node)] = max(depths[_side(node)], node.stream_depth)
    encoder, decoder = depths["encoder"] or depths[""], depths["decoder"]
    return Stacks(-(-encoder // 2), -(-decoder // (3 if encoder else 2)))


def _require_sides(graph: Graph) -> Stacks:
    stacks = _stacks(graph)
    if any(_side(node) for node in graph if last_of_branch(node)):
        return stacks
    raise RecipeError(
        compose(
            "recipe 't-fixup' on a model whose parameters' names say neither encoder nor decoder",
            "paths such as encoder.layers.0.fc1.weight",
            "the two sides are scaled by different factors",
            'fanin.plan(model, inputs, recipe="auto")',
        )
    )


def _word_table(node: ParameterNode) -> bool:
    return role(Role.EMBEDDING)(node) and not positions(node)


enter(
    "t-fixup",
    t_fixup(),
    "T-Fixup: transformers without layer norm and warm-up",
    "Xavier uniform; v, out, MLP × 0.67·N^(−1/4) (encoder), (9N)^(−1/4) (decoder); embeddings (1/√d)(9N)^(−1/4)",
)
enter(
    "deepnorm",
    deepnorm(),
    "DeepNorm: post-norm transformers of up to 1,000 layers",
    "Xavier normal; v, out, MLP × β = (8N)^(−1/4); q, k × 1; the model adds α·x, α = (2N)^(1/4)",
)
