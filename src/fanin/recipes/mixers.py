"""MLP-Mixer."""

from __future__ import annotations

from fanin.graph import Graph, Role
from fanin.recipes.rules import PLAIN, PublishedRecipe, Rule, enter, give, outputs, published, role
from fanin.schemes import VarianceScaling, Zeros


def mlp_mixer() -> PublishedRecipe:
    """MLP-Mixer: Flax's default for every weight, LeCun truncated normal at ±2σ, and zeros for the head.

    Weights have variance 1/fan_in after the cut; biases 0.

    Source: Tolstikhin et al. 2021, released code.

    Differs from timm's Mixer, which draws linear weights from Xavier uniform and MLP biases from N(0, 10⁻¹²).
    """

    def rules(graph: Graph) -> list[Rule]:
        lecun = VarianceScaling(1.0, "fan_in", "truncated_normal"), "LeCun truncated normal, Flax's default"
        return [
            Rule("head weights", outputs(graph), give(Zeros(), "the head starts at zero"), required=True),
            Rule("linear weights", role(Role.LINEAR), give(*lecun), required=True),
            Rule("patch convolutions", role(Role.CONV), give(*lecun), required=True),
            *PLAIN,
        ]

    return published("mlp-mixer", rules, "tolstikhin2021")


enter(
    "mlp-mixer",
    mlp_mixer(),
    "MLP-Mixer as published in JAX",
    "weights N(0, 1/fan_in) cut at ±2σ, corrected; head 0; biases 0",
)
