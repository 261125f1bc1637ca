"""Residual networks without normalization: Fixup."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fanin.errors import RecipeError, compose
from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    ZERO_BIASES,
    Decision,
    PublishedRecipe,
    Rule,
    enter,
    give,
    is_named,
    last_of_branch,
    outputs,
    published,
    require_branches,
    role,
    weights,
)
from fanin.schemes import Normal, Ones, Zeros

SHORTCUTS = ("*downsample*", "*shortcut*", "*skip*")
"""What the projections on skips are called; they are no part of a branch."""


def fixup() -> PublishedRecipe:
    """Fixup: residual networks without norms that start as their shortcuts and take steps of a fixed size.

    With L residual branches of m weights each: the last weight of a branch 0, the others He normal (by fan_out)
    × L^(−1/(2m−2)); output layers 0; scalar biases 0, scalar multipliers 1; every other weight He normal.

    Raises:
        RecipeError: from the recipe, for a model with norms (they undo the scaling), without residual branches, or
            without the scalar biases and multipliers that the method puts around the weights of a branch.

    Source: Zhang, Dauphin & Ma 2019, section 3; released code.

    Differs from the released code in grouped convolutions, where fans are true, and in the stem, which the CIFAR code
    leaves at torch's default.
    """

    def rules(graph: Graph) -> list[Rule]:
        require_no_norms(graph, "fixup")
        require_branches(graph, "fixup")
        branches = _branches(graph)
        count = len(branches)
        lengths = {name: len(branch) for branch in branches for name in branch}
        is_output = outputs(graph)

        def inner(node: ParameterNode) -> Decision:
            length = lengths[node.name]
            std = _he(node) * count ** (-1 / (2 * length - 2))
            return Normal(std), f"He by fan_out × {count}^(−1/{2 * length - 2}): {count} branches of {length} weights"

        hint = "nn.Parameter(torch.zeros(1)) before each weight, nn.Parameter(torch.ones(1)) at the end of each branch"
        zero = Zeros(), "last weight of a residual branch: the block starts as its shortcut"
        head = Zeros(), "the output layer starts at zero"
        return [
            Rule("scalar multipliers", _multiplier, give(Ones(), "a scalar multiplier starts at one"), True, hint),
            Rule("scalar biases", _scalar, give(Zeros(), "a scalar bias starts at zero"), True, hint),
            Rule("last weights of residual branches", last_of_branch, give(*zero), required=True),
            Rule("output layers", is_output, give(*head)),
            Rule("weights inside residual branches", lambda node: node.name in lengths, inner),
            Rule("weights", weights, lambda n: (Normal(_he(n)), "outside of branches: He by fan_out"), required=True),
            ZERO_BIASES,
        ]

    return published("fixup", rules, "zhang2019", "he2015")


def _branches(graph: Graph) -> list[tuple[str, ...]]:
    """The weights of each residual branch: those of its block that run after the branch before, shortcuts left out."""
    found = [node for node in graph if node.is_weight and not is_named(node, SHORTCUTS)]
    ordered = sorted(found, key=lambda node: -1 if node.depth is None else node.depth)
    result, current = [], list[ParameterNode]()
    for node in ordered:
        current.append(node)
        if node.residual_last:
            result.append(_of_block(node, current))
            current = []
    return result


def _of_block(last: ParameterNode, candidates: Sequence[ParameterNode]) -> tuple[str, ...]:
    block = _block(last)
    return tuple(node.name for node in candidates if _block(node) == block)


def _block(node: ParameterNode) -> str:
    """The path up to its last number (``layer1.0``); where there is none, the path of the owner's parent."""
    path = node.name.split(".")
    numbers = [place for place, part in enumerate(path[:-2]) if part.isdecimal()]
    return ".".join(path[: numbers[-1] + 1] if numbers else path[:-2])


def require_no_norms(graph: Graph, recipe: str) -> None:
    norm = next((n.name for n in graph if n.role in (Role.NORM_SCALE, Role.NORM_SHIFT) or n.norm_after), None)
    if norm is None:
        return
    raise RecipeError(
        compose(
            f"recipe {recipe!r} on a model with norms, such as at {norm}",
            "a model without normalization layers",
            "a norm sets the scale of what it normalizes, so that the recipe's scaling does nothing",
            'fanin.plan(model, inputs, recipe="auto"), or remove the norms',
        )
    )


def _scalar(node: ParameterNode) -> bool:
    return math.prod(node.shape) == 1 and not node.is_weight and node.role != Role.EMBEDDING


def _multiplier(node: ParameterNode) -> bool:
    return _scalar(node) and (role(Role.LAYER_SCALE)(node) or is_named(node, ("*scale*", "*mult*", "*gain*")))


def _he(node: ParameterNode) -> float:
    return math.sqrt(2 / node.axes.fans(node.shape, stride=False).fan_out)


enter(
    "fixup",
    fixup(),
    "Fixup: residual networks without norms",
    "last weight of a branch 0; others in it He × L^(−1/(2m−2)); output 0; scalar biases 0, multipliers 1",
)
