"""Actor-critic networks."""

from __future__ import annotations

import math

from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    PLAIN,
    Decision,
    Predicate,
    PublishedRecipe,
    Rule,
    changed,
    enter,
    give,
    is_named,
    named,
    published,
    role,
)
from fanin.recipes.settings import require_sizes
from fanin.schemes import Orthogonal, Zeros

VALUE_NAMES = ("*critic*", "*value*", "*vf*", "*baseline*")
"""What implementations call the estimate of the return."""
HEADS = ("critic", "value", "vf", "baseline", "actor", "policy", "action", "logits")
"""Words in the names of the children that end in a head."""


def ppo(hidden_gain: float = math.sqrt(2), policy_gain: float = 0.01, value_gain: float = 1.0) -> PublishedRecipe:
    """PPO's actor-critic: orthogonal weights, gain √2 inside, 0.01 for the policy head, 1 for the value head.

    The small policy head makes the first actions nearly independent of the observation. Biases 0; log standard
    deviations of the actions 0; recurrent weights orthogonal with gain 1.

    Args:
        hidden_gain: √2 whatever the activation; for tanh, its own gain is 1.5925.
        policy_gain: of the layer that puts out actions or their logits.
        value_gain: of the layer that puts out the value, told by its name (critic, value, vf, baseline).

    Raises:
        RecipeError: a setting is no finite number of at least 0.
        RecipeError: from the recipe, for a model without a policy head or a value head.

    Source: Huang et al. 2022 (CleanRL); Andrychowicz et al. 2021 on the policy head.
    """
    require_sizes("ppo", hidden_gain=hidden_gain, policy_gain=policy_gain, value_gain=value_gain)

    def rules(graph: Graph) -> list[Rule]:
        is_head = _heads(graph)

        def is_value(node: ParameterNode) -> bool:
            return is_head(node) and is_named(node, VALUE_NAMES)

        def hidden(node: ParameterNode) -> Decision:
            return Orthogonal(hidden_gain), f"orthogonal, gain {hidden_gain:.4g}"

        policy = Orthogonal(policy_gain), f"policy head: orthogonal, gain {policy_gain:g}"
        value = Orthogonal(value_gain), f"value head: orthogonal, gain {value_gain:g}"
        hint = "fanin.plan(model, inputs, recipe=...), or name the layers after actor and critic"
        return [
            Rule("value heads", is_value, give(*value), required=True, hint=hint),
            Rule("policy heads", is_head, give(*policy), required=True, hint=hint),
            Rule("recurrent weights", role(Role.RECURRENT), give(Orthogonal(), "recurrent: orthogonal, gain 1")),
            Rule("weights", role(Role.LINEAR, Role.CONV), hidden, required=True),
            Rule("log standard deviations", named("*log*std*"), give(Zeros(), "actions start with std 1")),
            *PLAIN,
        ]

    settings = changed(
        hidden_gain=(hidden_gain, math.sqrt(2)), policy_gain=(policy_gain, 0.01), value_gain=(value_gain, 1.0)
    )
    return published("ppo", rules, "schulman2017", "huang2022", "andrychowicz2021", settings=settings)


def _heads(graph: Graph) -> Predicate:
    """The output layers; for the policy or the value, where it has none, the last weight of each child of that name.

    A policy whose forward samples actions puts out these and their probabilities, and not what its last layer makes.
    """
    outputs = [node for node in graph if node.output and node.is_weight]
    has = {is_named(node, VALUE_NAMES) for node in outputs}
    linear = [node for node in graph if node.role == Role.LINEAR and is_named(node, VALUE_NAMES) not in has]
    children = {node.name: node.name.split(".")[0] for node in linear}
    last = {child: name for name, child in children.items() if any(word in child for word in HEADS)}
    heads = {*last.values(), *(node.name for node in outputs)}
    return lambda node: node.name in heads


enter(
    "ppo",
    ppo(),
    "PPO's actor-critic",
    "orthogonal: gain √2, policy head 0.01, value head 1; biases 0",
)
