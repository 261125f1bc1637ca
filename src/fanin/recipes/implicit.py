"""Networks of sines (SIREN)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fanin.errors import RecipeError, compose
from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.following import frequency
from fanin.recipes.rules import (
    DEFAULT_BIASES,
    Decision,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    published,
    role,
)
from fanin.recipes.settings import is_number
from fanin.schemes import Uniform, VarianceScaling


def siren(omega: float = 30.0) -> PublishedRecipe:
    """SIREN, for layers sin(ω₀ · (W x + b)): first layer U(±1/fan_in), the others U(±√(6/fan_in)/ω₀).

    ω₀ is a factor in the model's code; give the recipe the one that the model has (``auto`` reads it off). Biases stay
    at torch's default.

    Args:
        omega: ω₀, above 0.

    Raises:
        RecipeError: ω₀ is not above 0; or, from the recipe, the model was traced and no sine follows a weight, or one
            of another frequency.

    Source: Sitzmann et al. 2020, section 3.2; released code.
    """
    if not (is_number(omega) and omega > 0):
        raise RecipeError(compose(f"siren(omega={omega!r})", "a frequency above 0", instead="siren(omega=30.0)"))

    def rules(graph: Graph) -> list[Rule]:
        _require_sines(graph)
        linear = [node for node in graph if node.role == Role.LINEAR]
        first = min(linear, key=lambda node: -1 if node.depth is None else node.depth).name if linear else ""
        _require_frequency([node for node in linear if node.name != first], omega)

        def first_layer(node: ParameterNode) -> Decision:
            bound = 1 / node.fans.fan_in
            return Uniform(-bound, bound), f"first layer: U(±1/fan_in), fan_in {node.fans.fan_in:g}"

        def hidden(node: ParameterNode) -> Decision:
            scheme = VarianceScaling(2 / omega**2, "fan_in", "uniform")
            bound = math.sqrt(6 / node.fans.fan_in) / omega
            return scheme, f"U(±√(6/fan_in)/ω₀) = ±{bound:.4g}, ω₀ = {omega:g}"

        return [
            Rule("linear layers", lambda node: node.name == first, first_layer, required=True),
            Rule("linear layers behind the first", role(Role.LINEAR), hidden, required=True),
            DEFAULT_BIASES,
        ]

    return published("siren", rules, "sitzmann2020", settings=changed(omega=(omega, 30.0)))


def _require_sines(graph: Graph) -> None:
    linear = [node for node in graph if node.role == Role.LINEAR]
    alone = [node.activation for node in linear if not node.axes.blocks]
    followers = {*alone, *(block.activation for node in linear for block in node.axes.blocks)}
    if graph.source == "modules" or not linear or any(name is None or "sin" in name for name in followers):
        return
    raise RecipeError(
        compose(
            "recipe 'siren' on a model whose linear layers are followed by "
            + ", ".join(sorted(str(name) for name in followers)),
            "layers sin(ω₀ · (W x + b))",
            "dividing by ω₀ = 30 would silence a network that does not multiply by it",
            'fanin.plan(model, inputs, recipe="auto")',
        )
    )


def _require_frequency(hidden: Sequence[ParameterNode], omega: float) -> None:
    """Refuse a model whose hidden layers multiply by something else than ω₀; the first one's start knows none."""
    for node in hidden:
        if node.activation != "sin":
            continue
        factor = frequency(node, "sin") or 1.0
        small = factor == 1 and omega < 2  # the trace knows factors from 2 on
        if abs(factor / omega - 1) > 0.01 and not small:
            times = f" of {factor:.4g} times what it puts out" if factor > 1 else ""
            given = f"{node.name} is followed by sin{times}"
            raise RecipeError(
                compose(
                    f"recipe 'siren' with ω₀ = {omega:g} on a model where {given}",
                    "the ω₀ of the model",
                    "weights divided by another one start the phases too small or too large",
                    f"fanin.plan(model, inputs, recipe=fanin.recipes.siren(omega={factor:.4g}))",
                )
            )


enter("siren", siren(), "SIREN: networks of sines", "first layer U(±1/fan_in); others U(±√(6/fan_in)/ω₀), ω₀ = 30")
