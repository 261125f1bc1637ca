"""Parts of a model that its run did not reach, traced by themselves: the image tower of a model that was given text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn

from fanin.graph import Graph, ParameterNode
from fanin.tracing.joining import Joint
from fanin.tracing.names import canonical, unwrap

Trace = Callable[[nn.Module], Graph]


def with_towers(model: nn.Module, graph: Graph, trace: Trace) -> Graph:
    """The graph, with what its run left out filled in by runs of whole submodels that know their own inputs.

    Args:
        model: the model.
        graph: what its run gave; from module types where the model has no forward of its own, only parts that have.
        trace: traces a submodel on example inputs of its own.
    """
    if graph.source == "modules":
        return _of_towers(model, graph, trace)
    for prefix, tower in _idle_towers(unwrap(model), graph):
        inner = trace(tower)
        if inner.source != "modules":
            graph = _grafted(graph, prefix, inner)
    return graph


def _of_towers(model: nn.Module, base: Graph, trace: Trace) -> Graph:
    """A model without a forward is traced where all its parts are; else it stays described by module types."""
    graph = replace(base, parameters=tuple(replace(node, exercised=False) for node in base), notes=())
    for prefix, tower in _idle_towers(unwrap(model), graph):
        inner = trace(tower)
        if inner.source == "modules":
            return base
        graph = replace(_grafted(graph, prefix, inner), source=inner.source)
    return graph if graph.parameters and all(node.exercised for node in graph) else base


def _idle_towers(model: nn.Module, graph: Graph) -> Iterator[tuple[str, nn.Module]]:
    """The outermost submodels none of whose parameters were exercised."""
    idle = {node.name for node in graph if not node.exercised}
    done: list[str] = []
    for path, module in model.named_modules():
        if not path or any(path.startswith(f"{outer}.") for outer in done) or not hasattr(module, "main_input_name"):
            continue
        names = {f"{canonical(path)}.{canonical(name)}" for name, _ in module.named_parameters()}
        if names and names <= idle:
            done.append(path)
            yield canonical(path), module


def _grafted(graph: Graph, prefix: str, inner: Graph) -> Graph:
    joint = Joint.behind(graph)

    def filled(node: ParameterNode) -> ParameterNode:
        own = node.name.removeprefix(f"{prefix}.")
        if own == node.name or own not in inner or not inner[own].exercised:
            return node
        found = joint.moved(inner[own], prefix)
        return replace(
            found,
            name=node.name,
            aliases=node.aliases,
            # What is the end of a tower is not the end of the model.
            output=False,
            confidence=round(0.9 * found.confidence, 3),
            evidence=f"in a run of {prefix} by itself: {found.evidence}",
        )

    note = f"{prefix} was not reached and was traced by itself, on {inner.inputs}"
    nodes = tuple(filled(node) for node in graph)
    return replace(graph, parameters=nodes, notes=(*graph.notes, note))
