"""Generative models: DCGAN, the DDPM U-Net and DiT."""

from __future__ import annotations

from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    NORM_SHIFTS,
    PLAIN,
    Decision,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    give,
    last_of_branch,
    named,
    outputs,
    published,
    require_branches,
    role,
    torch_default,
    weights,
    without_stride,
)
from fanin.recipes.settings import require_sizes
from fanin.schemes import Keep, Normal, VarianceScaling, Zeros, xavier_uniform

NEARLY_ZERO = 1e-10
"""The scale that the DDPM code puts in the place of 0, which TensorFlow's variance scaling refuses."""


def dcgan(std: float = 0.02) -> PublishedRecipe:
    """DCGAN: convolutions N(0, 0.02²), batch norm scales N(1, 0.02²), shifts 0.

    Args:
        std: of all of them.

    Raises:
        RecipeError: a setting is no finite number of at least 0.

    Source: Radford, Metz & Chintala 2016, section 4; norm scales by the authors' and PyTorch's example code.
    """
    require_sizes("dcgan", std=std)

    def rules(graph: Graph) -> list[Rule]:
        return [
            Rule("convolutions", _convolution, give(Normal(std), f"a fixed std of {std:g}"), required=True),
            Rule("norm scales", role(Role.NORM_SCALE), give(Normal(std, 1.0), f"norm scale: std {std:g} around 1")),
            NORM_SHIFTS,
            Rule("linear weights and biases", role(Role.LINEAR, Role.BIAS), torch_default),
        ]

    return published("dcgan", rules, "radford2016", settings=changed(std=(std, 0.02)))


def ddpm() -> PublishedRecipe:
    """The DDPM U-Net: Xavier uniform everywhere, nearly zero for the end of every branch and the output.

    Weights have variance 1/fan_avg, and 10⁻¹⁰/fan_avg for the last weight of residual blocks, of attention, and of the
    model. Fans count kernel · channels, without regard to stride. Biases 0, norms 1 and 0.

    Raises:
        RecipeError: from the recipe, for a model whose residual branches are not known.

    Source: Ho, Jain & Abbeel 2020, released code: ``default_init``.
    """

    def rules(graph: Graph) -> list[Rule]:
        require_branches(graph, "ddpm")
        is_output = outputs(graph)

        def weight(node: ParameterNode) -> Decision:
            return without_stride(node, xavier_uniform()), "Xavier uniform, stride not counted"

        def nearly_zero(node: ParameterNode) -> Decision:
            part = "last weight of a residual branch" if node.residual_last else "output layer"
            scheme = without_stride(node, VarianceScaling(NEARLY_ZERO, "fan_avg", "uniform"))
            return scheme, f"{part}: Xavier uniform × 10⁻⁵, nearly zero"

        return [
            Rule("last weights of residual branches", last_of_branch, nearly_zero, required=True),
            Rule("output layers", is_output, nearly_zero),
            Rule("weights", weights, weight, required=True),
            *PLAIN,
        ]

    return published("ddpm", rules, "ho2020")


def dit() -> PublishedRecipe:
    """DiT with adaLN-Zero: Xavier uniform for the transformer, zeros for modulations and output.

    Every block starts as the identity, because its gates are 0. Patches Xavier uniform with fans (in·p², out);
    label embeddings and the time MLP N(0, 0.02²); biases 0; positions a fixed sine-cosine table.

    Raises:
        RecipeError: from the recipe, for a model without the names that the recipe is defined by:
            ``adaLN_modulation``, ``t_embedder``, ``final_layer.linear``.

    Source: Peebles & Xie 2023, released code: ``DiT.initialize_weights``.

    Differs from the released code in that queries, keys and values have Xavier fans (d, d) each; the code draws the
    packed (3d, d) weight √2 smaller.
    """

    def rules(graph: Graph) -> list[Rule]:
        zero = give(Zeros(), "adaLN-Zero: modulations start at zero, so that every block is the identity")
        small = Normal(0.02), "std 0.02"
        patches = xavier_uniform(), "patches: Xavier uniform with fans in·p² and out"
        return [
            Rule("adaLN modulations", named("*adaLN_modulation*"), zero, required=True),
            Rule("final layers", named("*final_layer.linear.*"), give(Zeros(), "the output starts at zero"), True),
            Rule("time embeddings", named("*t_embedder.*.weight"), give(*small), required=True),
            Rule("label embeddings", role(Role.EMBEDDING), give(*small)),
            Rule("linear weights", role(Role.LINEAR), give(xavier_uniform(), "Xavier uniform"), required=True),
            Rule("patch convolutions", role(Role.CONV), give(*patches)),
            Rule("positions", named("*pos_embed"), give(Keep(), "a fixed sine-cosine table: kept as constructed")),
            *PLAIN,
        ]

    return published("dit", rules, "peebles2023")


def _convolution(node: ParameterNode) -> bool:
    return node.role in (Role.CONV, Role.CONV_TRANSPOSE)


enter("dcgan", dcgan(), "DCGAN", "convolutions N(0, 0.02²); norm scales N(1, 0.02²), shifts 0")
enter(
    "ddpm",
    ddpm(),
    "The DDPM U-Net",
    "Xavier uniform; × 10⁻⁵ at the end of branches and at the output; biases 0",
)
enter(
    "dit",
    dit(),
    "DiT with adaLN-Zero",
    "Xavier uniform; modulations and output 0; labels, time MLP N(0, 0.02²)",
)
