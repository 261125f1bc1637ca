"""`measure`: a model and its inputs in, signals out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from fanin.errors import InputsError, compose
from fanin.examples import LOSSES, loss_named
from fanin.graph import BESIDE, Graph
from fanin.measuring.losses import Loss
from fanin.measuring.parameters import observe, observe_buffer, twins_of
from fanin.measuring.running import Observed, Part, run
from fanin.measuring.watching import Selector
from fanin.observations import BlockSignal, ParameterSignal
from fanin.signals import Signals
from fanin.tracing import trace
from fanin.tracing.capture import tensors_in
from fanin.tracing.inputs import describe
from fanin.tracing.isolation import ways_to_keep
from fanin.tracing.names import NamedParameter, canonical, named_parameters, unwrap
from fanin.tracing.records import Call
from fanin.tracing.tracer import Inputs, as_call, rejected, require_module, run_with

_MODES = {True: "as in training", False: "as in evaluation"}


def measure(
    model: nn.Module,
    inputs: Inputs = None,
    loss: Loss | str | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    training: bool = True,
    graph: Graph | None = None,
) -> Signals:
    """Run a model once forward and once backward, and record what the signal looks like on the way.

    Nothing of the model changes, also when it fails: the run is on a copy of the module tree that shares the weights'
    memory and nothing else. No activation is kept beyond what the backward needs. Dropout is left out. Under
    ``torch.autocast`` the run is in its precision.

    Args:
        model: any module whose parameters have values. Where some are on the meta device, nothing is run.
        inputs: what the model is called with, as for `fanin.trace`. Without them only the parameters are measured.
        loss: a function of the output that gives one number, or a name: ``cross-entropy`` and ``mse``, with drawn
            targets. Without it the model's own ``output.loss`` is taken, and without that a fixed random projection of
            the outputs.
        layers: globs over the paths of modules, such as ``blocks.*.mlp.*``; only these are measured.
        training: run as in training, with the statistics of the batch in batch normalization; where that fails, as
            in evaluation, with a note.
        graph: what `fanin.trace` gave for this model, if it is at hand.

    Raises:
        InputsError: the model is none, it or the loss fails on what is given, or ``layers`` matches no module.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> signals = measure(model, torch.ones(3, 4))
    >>> [signal.name for signal in signals.layers], signals.parameter("2.weight").reached
    (['0', '1', '2'], True)
    >>> 0.3 < measure(model, torch.ones(3, 4), "cross-entropy").loss < 1.2  # ln 2 says nothing
    True
    """
    require_module(model, "fanin.measure(model, inputs)")
    loss = _loss_of(loss)
    entries = named_parameters(model)
    graph = trace(model, inputs) if graph is None else graph
    facts = [observe(entry, graph[entry.name]) for entry in entries]
    buffers = tuple(
        observe_buffer(canonical(name), buffer)
        for name, buffer in unwrap(model).named_buffers()
        if buffer.is_floating_point()
    )
    signals = Signals((), tuple(facts), graph, buffers, twins_of(entries, facts))
    if inputs is None:
        return replace(signals, notes=("nothing was run: no inputs were given",))
    if any(fact.meta for fact in facts) or any(buffer.meta for buffer in buffers):
        return replace(signals, notes=("nothing was run: parameters or buffers are on the meta device",))
    call = as_call(inputs)
    _require_numbers(call)
    asked = {
        "zeros": frozenset(part for fact in facts for part in _may_block(fact, graph)),
        "repeating": frozenset(fact.name for fact in facts if fact.duplicate_columns),
    }
    observed, notes = _observe_run(model, entries, graph, call, loss, training, selector(model, layers), asked)
    return _complete(signals, observed, call, (*notes, *_unseen(model)))


def _loss_of(given: Loss | str | None) -> Loss | None:
    if isinstance(given, str):
        return loss_named(given)
    anything: object = given
    if anything is not None and not callable(anything):
        needed = f"a function of the output that gives one number, or a name: {', '.join(LOSSES)}"
        raise InputsError(
            compose(f"loss={given!r}", needed, instead="loss=lambda output: cross_entropy(output, labels)")
        )
    return given


def _may_block(fact: ParameterSignal, graph: Graph) -> Iterator[Part]:
    """A parameter that is all zero, or the blocks of it that are, unless it is merely added to something."""
    node = graph[fact.name]
    if node.frozen or node.role in BESIDE:
        return
    if fact.constant and not fact.rms:
        yield fact.name, ""
    elif not fact.non_finite:
        yield from ((fact.name, block.name) for block in fact.blocks if block.zero)


def _require_numbers(call: Call) -> None:
    for tensor in tensors_in(call):
        if tensor.is_floating_point() and not tensor.is_meta and bool(torch.isnan(tensor).any()):
            given = f"inputs that hold not-a-number, in a tensor of shape {tuple(tensor.shape)}"
            raise InputsError(compose(given, "numbers", "whatever they meet is not a number either"))


def _unseen(model: nn.Module) -> tuple[str, ...]:
    """What the recorder cannot look into: the operations of scripted modules run inside of torch."""
    scripted: list[str] = []
    for path, part in unwrap(model).named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not any(path.startswith(f"{outer}.") for outer in scripted):
            scripted.append(path)
    return (f"scripted modules were not looked into: {', '.join(scripted)}",) if scripted else ()


def selector(model: nn.Module, layers: str | Sequence[str] | None) -> Selector:
    """Which modules the globs mean.

    Raises:
        InputsError: one of them matches no module.
    """
    if layers is None:
        return lambda _: True
    globs = (layers,) if isinstance(layers, str) else tuple(layers)
    paths = [canonical(path) for path, _ in unwrap(model).named_modules()]
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise InputsError(compose(f"layers={glob!r}, which matches no module", "a glob over the modules' paths"))
    return lambda path: any(fnmatchcase(path, glob) for glob in globs)


def _observe_run(
    model: nn.Module,
    entries: tuple[NamedParameter, ...],
    graph: Graph,
    call: Call,
    loss: Loss | None,
    training: bool,
    selected: Selector,
    asked: dict[str, Any],
) -> tuple[Observed, tuple[str, ...]]:
    axes = {entry.name: graph[entry.name].axes for entry in entries}
    notes: tuple[str, ...] = ()
    for mode in (True, False) if training else (False,):
        for kept in ways_to_keep(model):
            try:
                observed = run(model, entries, axes, call, loss, training=mode, selected=selected, kept=kept, **asked)
                return observed, (*notes, *run_with(kept), *observed.notes)
            except InputsError:
                raise
            except Exception as error:  # a model may raise anything
                failure = error
        why = str(failure).partition("\n")[0]
        notes = (f"run {_MODES[False]}, for it fails {_MODES[True]}: {type(failure).__name__}: {why}",)
    raise rejected(model, call, failure) from failure


def _complete(signals: Signals, observed: Observed, call: Call, notes: tuple[str, ...]) -> Signals:
    start = observed.start
    assert start is not None
    backward = start.scalar is not None
    if not backward:
        notes = (*notes, "no backward: no output depends on a parameter that requires a gradient")
    return replace(
        signals,
        layers=tuple(observed.layers),
        parameters=tuple(_with_gradient(fact, signals.graph, observed, backward) for fact in signals.parameters),
        inputs=describe(call),
        samples=observed.samples,
        precision=_precision(),
        loss=start.value,
        loss_from=start.source if backward else "",
        uninformed=start.uninformed,
        uninformed_from=start.uninformed_from,
        notes=notes,
    )


def _with_gradient(fact: ParameterSignal, graph: Graph, observed: Observed, backward: bool) -> ParameterSignal:
    gradient: dict[str, Any] = observed.gradients.get(fact.name, {})
    if backward and not graph[fact.name].frozen:
        asked = {"influential": observed.influential.get(fact.name), "blocked": observed.blocked.get((fact.name, ""))}
        gradient = {"reached": False, **asked, **gradient}
        fact = replace(fact, blocks=tuple(_block_with_gradient(fact.name, block, observed) for block in fact.blocks))
    used = observed.effective.get(fact.name)
    if used is not None:
        gradient = {**gradient, "effective_std": used.std, "effective_duplicates": used.duplicates}
    return replace(fact, **gradient)


def _block_with_gradient(name: str, block: BlockSignal, observed: Observed) -> BlockSignal:
    part = (name, block.name)
    return replace(block, grad_rms=observed.block_gradients.get(part), blocked=observed.blocked.get(part))


def _precision() -> str:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device)).removeprefix("torch.")
    return ""
