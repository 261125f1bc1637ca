"""`trace`: a model and its inputs in, a graph out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fanin.errors import InputsError, article, compose
from fanin.graph import Graph, ParameterNode
from fanin.tracing import compatibility
from fanin.tracing.assembly import Assembler
from fanin.tracing.inputs import describe, traced_with_examples
from fanin.tracing.isolation import Kept, fake_copy, postponed_collection, preserved_randomness, real_copy, ways_to_keep
from fanin.tracing.joining import Joint
from fanin.tracing.memos import without_fake_memos
from fanin.tracing.modules import graph_of
from fanin.tracing.names import named_parameters, unwrap
from fanin.tracing.records import Call, Run
from fanin.tracing.repair import Failure, failure_of
from fanin.tracing.running import run_model
from fanin.tracing.towers import with_towers
from fanin.tracing.walks import Walker

Inputs = Any
"""A tensor, a tuple of positional arguments, or a mapping of keyword arguments."""


SOURCES = ("fake", "optimistic", "real")
"""The ways of running a model, the cheapest first."""

_ONE_AT_A_TIME = threading.RLock()
"""Flags of torch and global random states, which a run sets back, belong to all threads."""

_LARGEST_MATERIALISED = 50_000_000
_NO_GRADIENT = "does not require grad"
"""What torch says where a model asks for a gradient in its forward, and a recorded run keeps none."""
_UNTRIED = "the model could not be run without data"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One way to run a model."""

    source: str
    training: bool = False
    differentiates: bool = False
    kept: Kept = ()


def trace(model: nn.Module, inputs: Inputs = None) -> Graph:
    """Find out what a model does with each of its parameters, by running it once without computing anything.

    The run is recorded under fake tensors, on an isolated copy of the module tree that shares no state with the model
    and copies no weight. Where it fails because the model asks for data, it is repeated with plausible answers, then
    for real on the inputs given, and at last the types of the modules are taken; ``graph.source`` and ``graph.notes``
    say which and why.

    Args:
        model: any module; on any device, also built on ``meta``, compiled, or wrapped for data parallelism. It is
            left exactly as it was.
        inputs: what the model is called with: a tensor, a tuple or list of positional arguments, or a mapping of
            keyword arguments. Without them, example inputs are looked for (timm's and transformers' configurations,
            torchvision's conventions, the first layer) and tried.

    Raises:
        TraceError: a parameter has no shape yet (lazy modules).
        InputsError: the model fails on the inputs given, or is none.

    >>> import torch
    >>> graph = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4))
    >>> graph["0.weight"].activation, graph["2.weight"].output
    ('relu', True)
    """
    compatibility.check()
    require_module(model, "fanin.trace(model, inputs)")
    base = graph_of(model)
    if inputs is None:
        graph = _with_found_inputs(model, base)
    else:
        call = as_call(inputs)
        graph = replace(_trace_call(model, base, call)[0], inputs=describe(call))
        if graph.source == "modules":
            _require_taken(model, call)
    if graph.source == "modules" and type(unwrap(model)).forward is not nn.Module.forward:
        return graph
    return with_towers(model, graph, lambda tower: _with_found_inputs(tower, graph_of(tower)))


def require_module(given: object, call: str) -> None:
    """Raise unless something is a module.

    Raises:
        InputsError: it is none; the message shows the call that was meant.
    """
    if not isinstance(given, nn.Module):
        kind = f"the class {given.__name__}" if isinstance(given, type) else article(type(given).__name__)
        raise InputsError(compose(kind, "a module", instead=f"model = Build(...), and then {call}"))


def _require_taken(model: nn.Module, call: Call) -> None:
    """Raise if a model fails on what it is called with also where nobody watches; recording may be what failed."""
    if not _can_compute(model) or type(unwrap(model)).forward is nn.Module.forward:
        return
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        return  # a copy of a sharded model may not run by itself
    for kept in ways_to_keep(model):
        try:
            # With gradients, for models that differentiate on their way: physics-informed ones, energies and forces.
            with _ONE_AT_A_TIME, preserved_randomness(), torch.enable_grad():
                real_copy(model, kept).model.eval()(*call[0], **call[1])
            return
        except Exception as error:  # a model may raise anything
            failure = error
    raise rejected(model, call, failure) from failure


def rejected(model: nn.Module, call: Call, error: Exception) -> InputsError:
    """The error for inputs on which a model fails."""
    given = f"a {type(model).__name__} that fails when called with {describe(call)}"
    unpacked = call[1] and "unexpected keyword" in str(error)
    instead = "inputs=(batch,), for a model whose one argument is a mapping" if unpacked else ""
    return InputsError(compose(given, "inputs that the model takes", f"{type(error).__name__}: {error}", instead))


def _with_found_inputs(model: nn.Module, base: Graph) -> Graph:
    def attempt(call: Call) -> Graph | Failure:
        graph, failure = _trace_call(model, base, call, SOURCES[:2])
        return failure if failure and graph.source == "modules" else replace(graph, inputs=describe(call))

    return traced_with_examples(model, base, attempt)


def as_call(inputs: Inputs) -> Call:
    """Positional and keyword arguments from whatever a user gave."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _trace_call(
    model: nn.Module, base: Graph, call: Call, sources: tuple[str, ...] = SOURCES
) -> tuple[Graph, Failure | None]:
    """The graph, and how the last way of running that failed ended."""
    notes: list[str] = []
    failure = None
    for source in sources:
        if source == "real" and not _can_compute(model):
            notes.append("a real run was not tried: the model is on the meta device and large")
            break
        result = _run(model, base, call, source)
        if isinstance(result, Graph):
            return replace(result, notes=(*notes, *result.notes)), failure
        failure = result
        notes.append(f"{source} run failed: {failure.text[:180]}")
    notes.append(f"{_UNTRIED}; roles and axes are from module types")
    return replace(base, notes=tuple(notes)), failure


def _run(model: nn.Module, base: Graph, call: Call, source: str) -> Graph | Failure:
    """What one way of running gives, on a copy that keeps no more of the model than it needs."""
    for kept in ways_to_keep(model):
        attempt = _Attempt(source, kept=kept)
        result = _attempt(model, base, call, attempt)
        if isinstance(result, Failure) and _NO_GRADIENT in result.text:
            result = _attempt(model, base, call, replace(attempt, differentiates=True))
        if isinstance(result, Graph):
            graph = _with_training(model, base, call, result, replace(attempt, training=True))
            return replace(graph, notes=(*run_with(kept), *graph.notes))
    return result


def _attempt(model: nn.Module, base: Graph, call: Call, attempt: _Attempt) -> Graph | Failure:
    run = Run(attempt.source)
    with without_fake_memos(run) as memos:
        result = _recorded(model, base, call, attempt, run)
        memos.failed = isinstance(result, Failure)
    return result


def _recorded(model: nn.Module, base: Graph, call: Call, attempt: _Attempt, run: Run) -> Graph | Failure:
    names = {id(entry.parameter): entry.name for entry in named_parameters(model)}
    try:
        with (
            _ONE_AT_A_TIME,
            preserved_randomness(),
            postponed_collection(),
            compatibility.plain_execution(),
        ):
            if attempt.source == "real":
                isolated, mode = real_copy(model, attempt.kept), None
            else:
                mode = compatibility.fake_mode()
                isolated = fake_copy(model, mode, attempt.kept)
            run_model(
                isolated, names, call, run, mode=mode, training=attempt.training, differentiates=attempt.differentiates
            )
            graph = Assembler(Walker(run), base).graph()
            return replace(graph, notes=(*isolated.notes, *graph.notes))
    except Exception as error:  # a model may raise anything; the next way of running it is tried
        return failure_of(error, len(run.operations))


def run_with(kept: Kept) -> tuple[str, ...]:
    """The note of a run that needed more of the model than its copies have at first."""
    return (f"run with {' and '.join(kept)}, without which the model fails",) if kept else ()


def _with_training(model: nn.Module, base: Graph, call: Call, graph: Graph, attempt: _Attempt) -> Graph:
    """Parameters that only training uses (auxiliary heads, mask tokens), from a second run as in training."""
    idle = [node.name for node in graph if not node.exercised]
    if not idle or graph.source == "real":
        return graph
    training = _attempt(model, base, call, attempt)
    if isinstance(training, Failure):
        return graph
    found = [training[name] for name in idle if training[name].exercised]
    if not found:
        return graph
    note = f"{len(found)} parameters are used in training only, as {found[0].name}"
    joint = Joint.behind(graph)
    nodes = [_merged(node, training, joint) for node in graph]
    return replace(graph, parameters=tuple(nodes), notes=(*graph.notes, note))


def _merged(node: ParameterNode, training: Graph, joint: Joint) -> ParameterNode:
    if node.exercised or not training[node.name].exercised:
        return node
    other = joint.moved(training[node.name])
    return replace(other, evidence=f"in training only: {other.evidence}", confidence=round(0.9 * other.confidence, 3))


def _can_compute(model: nn.Module) -> bool:
    on_meta = sum(parameter.numel() for parameter in unwrap(model).parameters() if parameter.is_meta)
    return on_meta <= _LARGEST_MATERIALISED
