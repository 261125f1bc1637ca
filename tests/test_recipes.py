"""Published recipes on hand-written graphs: formulas at known sizes, what they refuse, and laws that hold for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fanin import recipes
from fanin.citations import source
from fanin.errors import RecipeError
from fanin.fans import ELEMENTWISE, EMBEDDING, Axes, even_blocks
from fanin.graph import Activation, Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.recipes.departures import DEPARTURES
from fanin.recipes.registry import REGISTRY
from fanin.schemes import Keep, TruncatedNormal

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
PUBLISHED = [name for name, entry in REGISTRY.items() if entry.formula]
FOREIGN = Graph((ParameterNode("scale", (1,), Role.OTHER, ELEMENTWISE),), "fake")
"""A model that no published recipe is about."""


def linear(name: str, out: int, inward: int, activation: str = "none", **fields: object) -> ParameterNode:
    return ParameterNode(name, (out, inward), Role.LINEAR, Axes(), activation=activation, **fields)  # type: ignore[arg-type]


def last(name: str, out: int, inward: int, branches: int, **fields: object) -> ParameterNode:
    return linear(name, out, inward, residual_last=True, stream=0, stream_depth=branches, **fields)


def vector(name: str, role: Role, size: int = 1) -> ParameterNode:
    return ParameterNode(name, (size,), role, ELEMENTWISE)


def table(name: str, rows: int, width: int, role: Role = Role.EMBEDDING) -> ParameterNode:
    return ParameterNode(name, (rows, width), role, EMBEDDING)


def gated_decoder(width: int = 4096, hidden: int = 14336, layers: int = 32) -> Graph:
    """A decoder with gated MLPs, at its real size: nodes cost nothing."""

    def block(layer: int) -> Iterator[ParameterNode]:
        path = f"layers.{layer}"
        for letter, after in (("q", "softmax_q"), ("k", "softmax_k"), ("v", "attention_value")):
            yield linear(f"{path}.attention.w{letter}.weight", width, width, after)
        yield last(f"{path}.attention.wo.weight", width, width, 2 * layers)
        yield linear(f"{path}.mlp.w1.weight", hidden, width, "silu")
        yield linear(f"{path}.mlp.w3.weight", hidden, width, "gate_value")
        yield last(f"{path}.mlp.w2.weight", width, hidden, 2 * layers)
        yield vector(f"{path}.norm.weight", Role.NORM_SCALE, width)

    nodes = [node for layer in range(layers) for node in block(layer)]
    head = linear("output.weight", 128256, width, output=True)
    return Graph((table("embed.weight", 128256, width), *nodes, head), "fake")


def transformer(encoder: int, decoder: int, *, norms: bool, width: int = 512) -> Graph:
    """An encoder-decoder transformer with packed self-attention, as in ``nn.Transformer``."""
    nodes = [table("embed.weight", 1000, width)]
    for side, layers, branches in (("encoder", encoder, 2), ("decoder", decoder, 3)):
        for layer in range(layers):
            path, depth = f"{side}.layers.{layer}", branches * layers
            blocks = even_blocks("qkv", 3 * width, ("softmax_q", "softmax_k", "attention_value"))
            shape = (3 * width, width)
            nodes.append(ParameterNode(f"{path}.self_attn.in_proj", shape, Role.LINEAR, Axes(blocks=blocks)))
            sums = {"post_norm": norms, "skip_scaled": norms}
            nodes.append(replace(last(f"{path}.self_attn.out.weight", width, width, depth), **sums))
            nodes.append(linear(f"{path}.fc1.weight", 4 * width, width, "relu"))
            nodes.append(replace(last(f"{path}.fc2.weight", width, 4 * width, depth), **sums))
            nodes.append(vector(f"{path}.fc2.bias", Role.BIAS, width))
            if norms:
                nodes.append(vector(f"{path}.norm.weight", Role.NORM_SCALE, width))
    return Graph(tuple(nodes), "fake")


def residual_network(*, blocks: int = 54, weights: int = 2, scalars: bool = True, norms: bool = False) -> Graph:
    """A CIFAR residual network without norms, with Fixup's scalars."""
    conv = Axes()
    nodes = [ParameterNode("stem.weight", (16, 3, 3, 3), Role.CONV, conv, depth=0)]
    for block in range(blocks):
        path = f"layer.{block}"
        if scalars:
            nodes += [vector(f"{path}.bias1", Role.OTHER), vector(f"{path}.scale", Role.LAYER_SCALE)]
        for place in range(weights):
            node = ParameterNode(f"{path}.conv{place}.weight", (16, 16, 3, 3), Role.CONV, conv, depth=len(nodes))
            end = {"residual_last": True, "stream_depth": blocks} if place == weights - 1 else {}
            nodes.append(ParameterNode(**{**_fields(node), **end}))
        nodes.append(ParameterNode(f"{path}.downsample.weight", (16, 16, 1, 1), Role.CONV, conv, depth=len(nodes)))
        if norms:
            nodes.append(vector(f"{path}.bn.weight", Role.NORM_SCALE, 16))
    nodes.append(linear("fc.weight", 10, 16, output=True, depth=len(nodes)))
    return Graph(tuple(nodes), "fake")


def _fields(node: ParameterNode) -> dict[str, object]:
    return {name: getattr(node, name) for name in ("name", "shape", "role", "axes", "depth")}


def test_gpt2_divides_the_ends_of_branches() -> None:
    plan = recipes.gpt2()(gated_decoder(768, 3072, 12))
    row = plan["layers.3.mlp.w2.weight"]
    assert row.std == pytest.approx(0.00408248, rel=1e-6)
    assert row.reason == "std 0.02 ÷ √24: last weight of a residual branch, 24 branches"
    assert plan["layers.3.mlp.w1.weight"].std == 0.02


def test_openai_gpt2_does_not_divide() -> None:
    graph = Graph((*gated_decoder(768, 3072, 2), table("wpe.weight", 1024, 768, Role.POSITION)), "fake")
    plan = recipes.recipe_named("gpt2-openai")(graph)
    assert plan["layers.0.mlp.w2.weight"].std == 0.02
    assert plan["wpe.weight"].std == 0.01
    assert recipes.gpt2()(graph)["wpe.weight"].std == 0.02


def test_megatron_embeddings_have_a_std_of_their_own() -> None:
    plan = recipes.megatron(embedding_std=1.0)(gated_decoder(768, 3072, 12))
    assert plan["embed.weight"].std == 1.0
    assert plan["layers.0.attention.wo.weight"].std == pytest.approx(0.00408248, rel=1e-6)


def test_gpt_neox_formulas() -> None:
    plan = recipes.gpt_neox()(gated_decoder(256, 1024, 12))
    assert plan["layers.0.mlp.w1.weight"].std == pytest.approx(0.0395284708)
    assert plan["layers.0.mlp.w2.weight"].std == pytest.approx(0.0104166667)
    assert plan["embed.weight"].std == pytest.approx(0.0395284708)


@pytest.mark.parametrize(("layer", "std"), [(0, 0.0141421356), (31, 0.0025)])
def test_torchtitan_llama_divides_by_the_layer(layer: int, std: float) -> None:
    plan = recipes.llama_torchtitan()(gated_decoder())
    for part in ("attention.wo", "mlp.w2", "mlp.w3"):
        assert plan[f"layers.{layer}.{part}.weight"].std == pytest.approx(std)
    for part in ("attention.wq", "attention.wk", "attention.wv", "mlp.w1"):
        assert plan[f"layers.{layer}.{part}.weight"].std == pytest.approx(0.02)
    assert plan["embed.weight"].std == 1.0
    assert plan["output.weight"].scheme == TruncatedNormal(0.015625, low=-3, high=3)


@pytest.mark.parametrize(("layer", "parent"), [(0, 0.0110485435), (31, 0.001953125)])
def test_olmo_divides_by_fan_in_and_layer(layer: int, parent: float) -> None:
    plan = recipes.olmo()(gated_decoder())
    cut = 0.9865783926  # the std of N(0, 1) cut at ±3
    assert plan[f"layers.{layer}.attention.wo.weight"].std == pytest.approx(parent * cut)
    expected = parent * math.sqrt(4096 / 14336) * cut
    assert plan[f"layers.{layer}.mlp.w2.weight"].std == pytest.approx(expected)
    assert plan["embed.weight"].std == pytest.approx(cut / 64)


def test_fixed_stds_of_olmo2_llama_and_bert() -> None:
    graph = gated_decoder(512, 1024, 2)
    name = "layers.1.mlp.w2.weight"
    assert recipes.olmo2()(graph)[name].std == pytest.approx(0.0197315679)
    assert recipes.llama()(graph)[name].std == 0.02
    assert recipes.bert_tf()(graph)[name].std == pytest.approx(0.0175925132)
    assert recipes.bert(std=0.01)(graph)[name].std == 0.01


def test_t5_scales_the_query_by_the_head() -> None:
    graph = gated_decoder(512, 2048, 2)
    plan = recipes.t5(head_dim=64)(graph)
    assert plan["layers.0.attention.wq.weight"].std == pytest.approx(0.00552427173)
    assert plan["layers.0.attention.wk.weight"].std == pytest.approx(0.0441941738)
    assert plan["layers.0.mlp.w2.weight"].std == pytest.approx(0.0220970869)
    relative = Graph((*graph, table("relative_attention_bias.weight", 32, 8, Role.POSITION)), "fake")
    found = recipes.t5()(relative)
    assert found["layers.0.attention.wq.weight"].std == pytest.approx(0.00552427173)
    assert found["relative_attention_bias.weight"].std == pytest.approx(0.0441941738)
    with pytest.raises(RecipeError, match=r"head_dim=64"):
        recipes.t5()(graph)


@pytest.mark.parametrize("head_dim", [0, -64, 6.4])
def test_t5_refuses_a_width_that_is_none(head_dim: float) -> None:
    with pytest.raises(RecipeError, match="whole number above 0"):
        recipes.t5(head_dim)  # type: ignore[arg-type]


def test_deit_tokens_have_stds_of_their_own() -> None:
    names = ("cls_token", "dist_token")
    tokens = [ParameterNode(name, (1, 1, 8), Role.TOKEN, ELEMENTWISE) for name in names]
    patches = ParameterNode("patch_embed.proj.weight", (8, 3, 4, 4), Role.CONV, Axes())
    plan = recipes.vit()(Graph((*tokens, patches, linear("head.weight", 4, 8)), "fake"))
    assert [plan[name].std for name in names] == pytest.approx([1e-6, 0.02])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: recipes.gpt2(std=-1), r"gpt2\(std=-1\)"),
        (lambda: recipes.megatron(embedding_std=math.nan), r"megatron\(embedding_std=nan\)"),
        (lambda: recipes.convnext(std="a"), r"convnext\(std='a'\)"),  # type: ignore[arg-type]
        (lambda: recipes.siren(omega="a"), r"siren\(omega='a'\)"),  # type: ignore[arg-type]
        (lambda: recipes.vit_jax(head_bias=None), r"vit_jax\(head_bias=None\)"),  # type: ignore[arg-type]
        (lambda: recipes.ppo(value_gain=True), r"ppo\(value_gain=True\)"),
    ],
)
def test_settings_are_checked_when_a_recipe_is_built(build: Callable[[], object], words: str) -> None:
    with pytest.raises(RecipeError, match=words + r"(?s:.*)write instead"):
        build()
    assert recipes.vit_jax(head_bias=-10.0).name == "vit-jax(head_bias=-10.0)"


def test_ddpm_ends_branches_and_model_at_nearly_zero() -> None:
    graph = gated_decoder(256, 512, 2)
    plan = recipes.ddpm()(graph)
    assert plan["layers.0.mlp.w1.weight"].std == pytest.approx(0.0510310363)
    assert plan["layers.0.mlp.w2.weight"].std == pytest.approx(5.10310363e-7)
    assert plan["output.weight"].std < 1e-6


def test_ddpm_and_resnet_do_not_count_the_stride() -> None:
    strided = ParameterNode("down.weight", (64, 32, 3, 3), Role.CONV, Axes(stride=4))
    graph = Graph((*residual_network(blocks=2), strided), "fake")
    assert recipes.resnet()(graph)["down.weight"].std == pytest.approx(math.sqrt(2 / 576))
    assert recipes.ddpm()(graph)["down.weight"].std == pytest.approx(math.sqrt(2 / (288 + 576)))


def test_dit_zeroes_what_makes_blocks_identities() -> None:
    qkv = Axes(blocks=even_blocks("qkv", 768, ("softmax_q", "softmax_k", "attention_value")))
    graph = Graph(
        (
            ParameterNode("x_embedder.proj.weight", (256, 4, 2, 2), Role.CONV, Axes(stride=4)),
            linear("t_embedder.mlp.0.weight", 256, 256, "silu"),
            vector("t_embedder.mlp.0.bias", Role.BIAS, 256),
            table("y_embedder.embedding_table.weight", 1001, 256),
            ParameterNode("blocks.0.attn.qkv.weight", (768, 256), Role.LINEAR, qkv),
            linear("blocks.0.adaLN_modulation.1.weight", 1536, 256),
            linear("final_layer.linear.weight", 32, 256, output=True),
            vector("pos_embed", Role.POSITION, 256),
        ),
        "fake",
    )
    plan = recipes.dit()(graph)
    assert plan["blocks.0.adaLN_modulation.1.weight"].std == plan["final_layer.linear.weight"].std == 0
    assert plan["t_embedder.mlp.0.weight"].std == plan["y_embedder.embedding_table.weight"].std == 0.02
    assert plan["x_embedder.proj.weight"].std == pytest.approx(math.sqrt(2 / (16 + 256)))
    assert plan["blocks.0.attn.qkv.weight"].block_std["q"] == pytest.approx(1 / 16)
    assert plan["pos_embed"].kept


def test_siren_divides_by_its_frequency() -> None:
    thirty = Activation("sin", second_moment=0.5, derivative_second_moment=450.0)
    hidden = replace(linear("1.weight", 256, 256, "sin", depth=1), captured=thirty)
    graph = Graph((linear("0.weight", 256, 2, "sin", depth=0), hidden), "fake")
    plan = recipes.siren()(graph)
    assert plan["0.weight"].std == pytest.approx(0.5 / math.sqrt(3))
    assert plan["1.weight"].std == pytest.approx(0.00294627825)
    plain = Graph((graph["0.weight"], linear("1.weight", 256, 256, "sin", depth=1)), "fake")
    assert recipes.siren(omega=1.0)(plain)["1.weight"].std == pytest.approx(0.0883883476)


def test_siren_refuses_other_activations() -> None:
    graph = Graph((linear("0.weight", 8, 2, "relu", depth=0), linear("1.weight", 8, 8, depth=1)), "fake")
    with pytest.raises(RecipeError, match="followed by none, relu"):
        recipes.siren()(graph)
    packed = ParameterNode(
        "1.weight", (8, 8), Role.LINEAR, Axes(blocks=even_blocks("qk", 8, ("softmax_q", "softmax_k")))
    )
    with pytest.raises(RecipeError, match="followed by relu, softmax_k, softmax_q"):
        recipes.siren()(Graph((graph["0.weight"], packed), "fake"))
    with pytest.raises(RecipeError, match="above 0"):
        recipes.siren(omega=0.0)


def test_dcgan_spreads_norm_scales_around_one() -> None:
    conv = ParameterNode("0.weight", (64, 32, 4, 4), Role.CONV_TRANSPOSE, Axes((0,), (1,), transposed=True))
    plan = recipes.dcgan()(Graph((conv, vector("1.weight", Role.NORM_SCALE, 32), linear("2.weight", 8, 8))))
    assert plan["0.weight"].std == 0.02
    assert plan["1.weight"].expected == (1.0, 0.02)
    assert plan["2.weight"].std == pytest.approx(1 / math.sqrt(24))


def test_fixup_on_resnet_110() -> None:
    plan = recipes.fixup()(residual_network())
    he = math.sqrt(2 / (16 * 9))
    assert plan["layer.7.conv0.weight"].std == pytest.approx(he * 0.1360828)
    assert plan["layer.7.conv1.weight"].std == plan["fc.weight"].std == 0
    assert plan["layer.7.downsample.weight"].std == pytest.approx(math.sqrt(2 / 16))
    assert plan["layer.7.scale"].expected.mean == 1
    assert plan["layer.7.bias1"].expected.mean == 0
    assert plan["stem.weight"].std == pytest.approx(he)


def test_fixup_counts_the_weights_of_a_branch() -> None:
    plan = recipes.fixup()(residual_network(blocks=16, weights=3))
    he = math.sqrt(2 / (16 * 9))
    assert plan["layer.0.conv0.weight"].std == plan["layer.0.conv1.weight"].std == pytest.approx(he * 0.5)
    assert "16 branches of 3 weights" in plan["layer.0.conv0.weight"].reason


def test_fixup_refuses_norms_and_missing_scalars() -> None:
    with pytest.raises(RecipeError, match=r"with norms, such as at layer\.0\.bn\.weight"):
        recipes.fixup()(residual_network(blocks=2, norms=True))
    with pytest.raises(RecipeError, match="without scalar multipliers"):
        recipes.fixup()(residual_network(blocks=2, scalars=False))


def test_t_fixup_factors() -> None:
    plan = recipes.t_fixup()(transformer(6, 6, norms=False))
    xavier, wide = math.sqrt(1 / 512), math.sqrt(2 / (512 + 2048))
    assert plan["encoder.layers.0.fc1.weight"].std == pytest.approx(0.428092 * wide, rel=1e-6)
    assert plan["decoder.layers.5.fc2.weight"].std == pytest.approx(0.368894 * wide, rel=1e-6)
    blocks = plan["decoder.layers.0.self_attn.in_proj"].block_std
    assert blocks["q"] == blocks["k"] == pytest.approx(xavier)
    assert blocks["v"] == pytest.approx(0.368894 * xavier, rel=1e-6)
    assert plan["embed.weight"].std == pytest.approx(0.368894 * xavier, rel=1e-6)


def test_t_fixup_refuses_norms_and_unnamed_sides() -> None:
    with pytest.raises(RecipeError, match="with norms"):
        recipes.t_fixup()(transformer(2, 2, norms=True))
    decoder = Graph(tuple(node for node in gated_decoder(64, 128, 2) if node.role != Role.NORM_SCALE), "fake")
    with pytest.raises(RecipeError, match="neither encoder nor decoder"):
        recipes.t_fixup()(decoder)


def test_deepnorm_of_one_stack() -> None:
    plan = recipes.deepnorm()(transformer(12, 0, norms=True))
    xavier, wide = math.sqrt(1 / 512), math.sqrt(2 / (512 + 2048))
    assert plan["encoder.layers.0.fc1.weight"].std == pytest.approx(0.319472 * wide, rel=1e-5)
    blocks = plan["encoder.layers.0.self_attn.in_proj"].block_std
    assert blocks["q"] == pytest.approx(xavier)
    assert blocks["v"] == pytest.approx(0.319472 * xavier, rel=1e-5)
    assert "α = 2.213" in plan.notes[-1]


def test_deepnorm_refuses_norms_before_the_branches() -> None:
    graph = transformer(6, 0, norms=True)
    before = Graph(tuple(replace(node, post_norm=False) for node in graph), "fake")
    with pytest.raises(RecipeError, match=r"pre-norm(?s:.*)norm\(alpha \* x \+ f\(x\)\)"):
        recipes.deepnorm()(before)


def test_deepnorm_refuses_a_stream_that_nothing_multiplies() -> None:
    plain = Graph(tuple(replace(node, skip_scaled=False) for node in transformer(12, 0, norms=True)), "fake")
    with pytest.raises(RecipeError, match=r"multiplied by α = 2\.213 in every sum(?s:.*)norm\(alpha \* x \+ f\(x\)\)"):
        recipes.deepnorm()(plain)


@pytest.mark.parametrize("name", ["t-fixup", "deepnorm"])
def test_one_branch_is_one_layer(name: str) -> None:
    """Half a layer must be no division by zero, and a stream of one branch is no pre-norm."""
    norms = name == "deepnorm"
    nodes = [replace(node, post_norm=False, stream_depth=1) for node in transformer(1, 0, norms=norms)]
    graph = Graph(tuple(node for node in nodes if ".self_attn." not in node.name), "fake")
    reason = recipes.recipe_named(name)(graph)["encoder.layers.0.fc2.weight"].reason
    assert reason.endswith("β = 0.5946 for 1 layer" if norms else "N = 1")


def test_deepnorm_of_two_stacks() -> None:
    plan = recipes.deepnorm()(transformer(6, 6, norms=True))
    wide = math.sqrt(2 / (512 + 2048))
    assert plan["encoder.layers.0.fc1.weight"].std == pytest.approx(0.496989 * wide, rel=1e-5)
    assert plan["decoder.layers.0.fc1.weight"].std == pytest.approx(0.343295 * wide, rel=1e-5)
    assert "α = 1.418 in the encoder, α = 2.06 in the decoder" in plan.notes[-1]


def test_deepnorm_refuses_a_model_without_norms() -> None:
    with pytest.raises(RecipeError, match="without norm scales"):
        recipes.deepnorm()(transformer(2, 2, norms=False))


BRANCHED: dict[str, Callable[[], Graph]] = {
    "gpt2": gated_decoder,
    "gpt2-megatron": gated_decoder,
    "gpt-neox": gated_decoder,
    "llama-torchtitan": gated_decoder,
    "olmo": gated_decoder,
    "ddpm": gated_decoder,
    "deepnorm": lambda: transformer(2, 2, norms=True),
    "t-fixup": lambda: transformer(2, 2, norms=False),
    "fixup": residual_network,
}


@pytest.mark.parametrize("name", BRANCHED)
def test_branches_must_be_known(name: str) -> None:
    """A graph from module types knows no branches; a recipe that is about them says that it needs inputs."""
    graph = BRANCHED[name]()
    recipe = recipes.recipe_named(name)
    assert recipe(graph).rows
    nodes = tuple(
        ParameterNode(node.name, node.shape, node.role, node.axes, activation=node.activation) for node in graph
    )
    with pytest.raises(RecipeError, match=r"not traced[\s\S]*fanin\.plan\(model, inputs, recipe="):
        recipe(Graph(nodes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_refuses_a_foreign_model_in_four_parts(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.recipe_named(name)(FOREIGN)
    message = str(caught.value)
    assert [message.find(part) >= 0 for part in ("given:", "needed:", "why:", "write instead:")] == [True] * 4
    assert name.split("-")[0] in message


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_has_sources_formula_and_summary(name: str) -> None:
    entry = REGISTRY[name]
    assert entry.summary
    assert entry.sources
    assert all(source(key).label for key in entry.sources)


@pytest.mark.parametrize("name", BRANCHED)
def test_every_row_has_a_reason_and_a_source(name: str) -> None:
    plan = recipes.recipe_named(name)(BRANCHED[name]())
    assert plan.recipe == name
    assert Plan.from_json(plan.to_json()) == plan
    for row in plan:
        assert row.reason
        assert isinstance(row.scheme, Keep) or (math.isfinite(row.expected.std) and row.sources)
    assert all(source(key).title in plan.cite() for key in REGISTRY[name].sources)


def test_settings_show_in_the_name() -> None:
    assert recipes.gpt2(std=0.01, scale_branches=False).name == "gpt2(std=0.01, scale_branches=False)"
    assert recipes.gpt2().name == "gpt2"


@pytest.mark.parametrize("name", PUBLISHED)
def test_page_of_recipes_is_current(name: str) -> None:
    """docs/recipes.md is printed by benchmarks/recipes.py; a changed formula asks for it to be printed again."""
    entry = REGISTRY[name]
    assert f"| `{name}` | {entry.summary} | {entry.formula} |" in PAGE.read_text(encoding="utf-8")


def test_departures_name_known_recipes() -> None:
    assert {entry.recipe for entry in DEPARTURES} <= set(REGISTRY)
