"""From a model to a plan, and from a plan into the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fanin import gains, parametrized, sharding
from fanin.applying import apply
from fanin.errors import RecipeError, article, compose
from fanin.graph import WEIGHTS, Activation, Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.recipes import Recipe, resolve
from fanin.tracing import trace

ActivationArgument = str | nn.Module | Callable[[Any], Any]


def plan(
    model: nn.Module,
    inputs: Any = None,
    *,
    recipe: Recipe = "auto",
    activation: ActivationArgument | None = None,
) -> Plan:
    """Decide how every parameter of a model starts; nothing is written.

    Args:
        model: any module, also on the meta device.
        inputs: what the model is called with: a tensor, a tuple of positional arguments, a dict of keyword arguments.
            They are looked at for their shapes, for the model is traced on fake tensors; and where their numbers are
            far from unit size, as raw pixels are, for that size, rounded so coarsely that any batch gives the same.
        recipe: a name (``fanin.recipes.REGISTRY`` lists them) or a function from a graph to a plan.
        activation: the non-linearity that follows the weights, where the model's structure does not tell it: a name,
            a module, or any function of a tensor.

    Returns:
        A plan with a row, and a reason, for every parameter.

    Raises:
        RecipeError: the recipe is unknown or refuses the model.
        SchemeError: the activation is unknown.

    >>> print(plan(nn.Sequential(nn.Linear(256, 512), nn.ReLU()), recipe="he")["0.weight"].reason)
    followed by relu: gain 1.4142, fan_in 256
    """
    graph = trace(model, inputs)
    if activation is not None:
        graph = with_activation(graph, activation)
    name, function = resolve(recipe)
    decided: object = function(graph)
    if not isinstance(decided, Plan):
        given = f"recipe {name!r}, which gives {article(type(decided).__name__)}"
        raise RecipeError(compose(given, "a plan", instead="fanin.Plan.of(graph, name, lambda node: (scheme, reason))"))
    return sharding.note(parametrized.fit(decided, model), model)


def initialize(
    model: nn.Module,
    inputs: Any = None,
    *,
    recipe: Recipe = "auto",
    seed: int = 0,
    activation: ActivationArgument | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """Decide how every parameter starts, and write it; returns the plan that was applied.

    Args:
        model: any module; one on the meta device needs ``device``.
        inputs: what the model is called with.
        recipe: a name or a function from a graph to a plan.
        seed: with a parameter's name it decides the parameter's values, and nothing else does.
        activation: see `plan`.
        device: where parameters that are on the meta device are made.

    >>> model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10))
    >>> applied = initialize(model, recipe="he", seed=0)
    >>> bool(applied.verify(model))
    True
    """
    decided = plan(model, inputs, recipe=recipe, activation=activation)
    apply(decided, model, seed=seed, device=device)
    return decided


def with_activation(graph: Graph, activation: ActivationArgument) -> Graph:
    """The graph with this activation wherever a weight's or bias's own is not known.

    Raises:
        SchemeError: the activation is neither a known name nor an element-wise function.
    """
    found = gains.moments(activation)
    name, _, parameters = found.activation.partition("(")
    known = not parameters and name in gains.names()
    captured = None if known else Activation(name, found.second_moment, found.derivative_second_moment)

    def fill(node: ParameterNode) -> ParameterNode:
        unknown = node.role in (*WEIGHTS, Role.BIAS) and node.activation is None and not node.axes.blocks
        return replace(node, activation=name, captured=captured) if unknown else node

    return replace(graph, parameters=tuple(fill(node) for node in graph.parameters))
