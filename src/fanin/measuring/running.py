"""One forward and backward on a copy of the module tree that shares the weights and nothing else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fanin.fans import Axes
from fanin.measuring.losses import Loss, Start, start_of
from fanin.measuring.parameters import along, block_of, equal_groups, local, observe_gradient, shared_gradient
from fanin.measuring.statistics import scale_of
from fanin.measuring.trails import Trail, leave, tensors_in, trail_of
from fanin.measuring.watching import Effective, Selector, Watch
from fanin.observations import Kind, LayerSignal
from fanin.tracing.capture import tensors_in as tensors_within
from fanin.tracing.isolation import Isolated, Kept, preserved_randomness
from fanin.tracing.names import NamedParameter, canonical
from fanin.tracing.records import Call

_STOCHASTIC = ("drop", "stochastic")
"""Marks of modules whose only use is noise: they are left out of a measured run, as dropout is."""

CHANGE = 0.5
"""What is left of a parameter under as much noise, to see whether anything depends on it; and the noise of zeros."""
OPENINGS = 5
"""Zeros in a row that open one after the other: head, scale of a branch, its last weight, a gate, a factor in it."""
MOVED = 0.02
"""About what the first steps make of a zero, and far from any range's end."""
NOISE = 1e-6
"""Between two runs of the same values that sum in another order, beside the largest value."""


Part = tuple[str, str]
"""A parameter by its name, and one of its blocks by its own; the empty name for all of the parameter."""


@dataclass
class Observed:
    """What one run gave."""

    layers: list[LayerSignal]
    samples: int | None = None
    gradients: dict[str, dict[str, Any]] = field(default_factory=dict)
    effective: dict[str, Effective] = field(default_factory=dict)
    start: Start | None = None
    influential: dict[str, bool] = field(default_factory=dict)
    block_gradients: dict[Part, float] = field(default_factory=dict)
    blocked: dict[Part, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def run(
    model: nn.Module,
    entries: tuple[NamedParameter, ...],
    axes: dict[str, Axes],
    call: Call,
    loss: Loss | None,
    *,
    training: bool,
    selected: Selector,
    kept: Kept = (),
    zeros: frozenset[Part] = frozenset(),
    repeating: frozenset[str] = frozenset(),
) -> Observed:
    """Run a copy of a model forward and backward, and measure on the way.

    The copy has parameters of its own that share the memory of the model's, so gradients and hooks stay on the copy.
    Of those among ``zeros`` that receive no gradient, it is asked whether the first steps open them; of those among
    ``repeating``, in which columns equal others, whether their gradients are equal too.
    """
    with preserved_randomness(), torch.inference_mode(False), torch.enable_grad():
        _seed()
        with torch.no_grad():  # a scripted module copies its parameters by operations, which would be recorded
            isolated = Isolated(model, _shared, lambda value: value.detach().clone(), kept)
        _set_mode(isolated.model, training)
        observed = Observed([], _samples(call), notes=tuple(isolated.notes))
        watch = Watch(observed.samples, selected)
        stand_ins = {id(original): stand_in for original, stand_in in isolated.parameters}
        for entry in entries:
            stand_in = stand_ins[id(entry.parameter)].requires_grad_(entry.parameter.requires_grad)
            leave(stand_in, Trail(weights=(entry.name,), parameter=True))
            if stand_in.numel():
                watch.shared.add(stand_in.untyped_storage().data_ptr())
            _watch_gradient(stand_in, entry.name, axes[entry.name], observed, zeros, repeating)
        watch.buffers = {
            buffer.untyped_storage().data_ptr(): canonical(name)
            for name, buffer in isolated.model.named_buffers()
            if buffer.numel()
        }
        output = _forward(isolated.model, call, watch)
        observed.start = start_of(output, loss)
        returned = [item.detach() for item in tensors_within(output)]
        del output
        if observed.start.scalar is not None:
            torch.autograd.backward(observed.start.scalar)
            # The hooks on parameters hold what was observed; with the graph in it, nothing would ever be freed.
            observed.start = replace(observed.start, scalar=observed.start.scalar.detach())
            _ask_influence(isolated.model, call, stand_ins, entries, observed, returned)
            shut = [part for part in zeros if _gradient_of(part, observed) == 0]
            if shut:
                trained = {e.name: stand_ins[id(e.parameter)] for e in entries if e.parameter.requires_grad}
                observed.blocked = _ask_opening(isolated.model, call, loss, trained, axes, shut)
        observed.effective = watch.effective
        observed.layers = _named(watch)
        return observed


def _gradient_of(part: Part, observed: Observed) -> float | None:
    name, block = part
    found = observed.block_gradients.get(part) if block else observed.gradients.get(name, {}).get("grad_rms")
    return None if found is None else float(found)


def _shared(value: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(value.detach(), requires_grad=value.requires_grad)


def _seed() -> None:
    """What a model draws in its forward is the same every time; the states are put back afterwards."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.default_generator.manual_seed(0)
    initialized: Callable[[], bool] = torch.cuda.is_initialized
    if initialized():
        torch.cuda.manual_seed_all(0)


def _set_mode(model: nn.Module, training: bool) -> None:
    model.train(training)
    for module in model.modules():
        if any(mark in type(module).__name__.lower() for mark in _STOCHASTIC) and not any(module.children()):
            module.train(False)


def _samples(call: Call) -> int | None:
    sizes = [item.shape[0] for item in tensors_within([*call[0], *call[1].values()]) if item.ndim]
    return sizes[0] if sizes else None


def _watch_gradient(
    stand_in: torch.Tensor,
    name: str,
    axes: Axes,
    observed: Observed,
    zeros: frozenset[Part],
    repeating: frozenset[str],
) -> None:
    if not stand_in.requires_grad:
        return
    blocks = [block for other, block in zeros if other == name and block]

    def note(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            with torch.no_grad():
                found = observe_gradient(parameter.grad, axes)
                found["grad_along"] = along(local(parameter), local(parameter.grad))
                if name in repeating and found["grad_rms"]:
                    shared = shared_gradient(local(parameter), local(parameter.grad), axes)
                    found["grad_duplicate_columns"] = shared
                if (name, "") in zeros and found["grad_rms"]:
                    found |= equal_groups(local(parameter.grad), axes)
                for block in blocks:
                    rms = scale_of(block_of(local(parameter.grad), axes, block)).rms
                    observed.block_gradients[name, block] = rms
                observed.gradients[name] = found
            parameter.grad = None

    on_gradient: Callable[..., Any] = stand_in.register_post_accumulate_grad_hook
    on_gradient(note)


def _forward(model: nn.Module, call: Call, watch: Watch) -> Any:
    args, kwargs = pytree.tree_map(_input, call)
    with contextlib.ExitStack() as stack:
        for handle in _watch_modules(model, watch):
            stack.callback(handle.remove)
        stack.enter_context(watch)
        return model(*args, **kwargs)


def _ask_influence(
    model: nn.Module,
    call: Call,
    stand_ins: dict[int, torch.Tensor],
    entries: tuple[NamedParameter, ...],
    observed: Observed,
    returned: list[torch.Tensor],
) -> None:
    """Of the parameters without a gradient, and of those whose gradient is zero: does the output depend on them?"""
    groups: dict[bool, dict[str, torch.Tensor]] = {False: {}, True: {}}
    for entry in entries:
        gradient = observed.gradients.get(entry.name)
        if entry.parameter.requires_grad and not (gradient and gradient["grad_rms"]):
            groups[gradient is not None][entry.name] = stand_ins[id(entry.parameter)]
    for group in groups.values():
        if group:
            before = [parameter.data for parameter in group.values()]
            observed.influential |= dict.fromkeys(group, _changes(model, call, group, returned))
            for parameter, data in zip(group.values(), before, strict=True):
                parameter.data = data


def _changes(model: nn.Module, call: Call, parameters: dict[str, torch.Tensor], before: list[torch.Tensor]) -> bool:
    """Whether what the model returns is another when these parameters are; asked of all of them at once.

    It tells a gradient that was cut off from a part whose result nothing needs. A run that fails counts as changed.
    Each value changes by itself: what compares them, as an argmax does, takes no notice of a change of all alike.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters.values():  # memory of its own: the stand-in shares that of the model
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.data = parameter.data.mul(CHANGE).add_(noise.mul_(scale_of(parameter.data).rms or CHANGE))
    _seed()
    try:
        # By the same watch, which leaves out dropout, though it selects no layer.
        after = list(tensors_within(_forward(model, call, Watch(None, lambda _path: False))))
    except Exception:  # a model may raise anything when its parameters are others
        return True
    return len(after) != len(before) or not all(map(_same, before, after))


def _ask_opening(
    model: nn.Module,
    call: Call,
    loss: Loss | None,
    trained: dict[str, torch.Tensor],
    axes: dict[str, Axes],
    shut: list[Part],
) -> dict[Part, bool]:
    """Of what is zero and has no gradient: whether training, which moves what has one, leaves it so.

    A zero head passes nothing back until it has moved, and then the zero gates behind it are next: so what is zero
    and receives a gradient is given small values, and asked again. The rows of a table that were not looked up stay.
    """
    generator = torch.Generator().manual_seed(0)
    before = {name: parameter.data for name, parameter in trained.items()}
    closed, tried = list(shut), set[str]()
    try:
        for _ in range(OPENINGS):
            _seed()
            start = start_of(_forward(model, call, Watch(None, lambda _path: False)), loss)
            if start.scalar is None:
                return {}
            gradients = torch.autograd.grad(start.scalar, list(trained.values()), allow_unused=True)
            moved = _move_zeros(trained, gradients, generator)
            closed = [part for part in closed if not _in_part(moved, part, axes)]
            if not closed or moved.keys() <= tried:
                break
            tried |= moved.keys()
    except Exception:  # a model may raise anything when its parameters are others
        return {}
    finally:
        for name, parameter in trained.items():
            parameter.data = before[name]
    return {part: part in closed for part in shut}


def _in_part(moved: dict[str, torch.Tensor], part: Part, axes: dict[str, Axes]) -> bool:
    """Whether any value of a part was moved."""
    name, block = part
    return name in moved and bool(block_of(moved[name], axes[name], block).any())


def _move_zeros(
    trained: dict[str, torch.Tensor], gradients: tuple[torch.Tensor | None, ...], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Give small values to what is zero and has a gradient; by parameter, which values those were, where any."""
    moved = {}
    for (name, parameter), found in zip(trained.items(), gradients, strict=True):
        if found is None:
            continue
        gradient = found.to_dense() if found.is_sparse else found
        opened = (parameter.data == 0) & (gradient != 0)
        if bool(opened.any()):
            moved[name] = opened
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.data = parameter.data + MOVED * noise * opened  # memory of its own
    return moved


def _same(before: torch.Tensor, after: torch.Tensor) -> bool:
    if before.shape != after.shape or not before.is_floating_point():
        return torch.equal(before, after)
    before, after = before.double(), after.detach().double()
    largest = float(before.nan_to_num(0.0, 0.0, 0.0).abs().max()) if before.numel() else 0.0
    return torch.allclose(before, after, rtol=NOISE, atol=NOISE * largest, equal_nan=True)


def _input(item: Any) -> Any:
    if not isinstance(item, torch.Tensor):
        return item
    copied = item.detach().clone()
    leave(copied, Trail())
    return copied


def _watch_modules(model: nn.Module, watch: Watch) -> Iterator[Any]:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks; its gradients are seen, its insides are not
            continue
        enter, leave_module = _module_hooks(canonical(path), watch)
        yield module.register_forward_pre_hook(enter, prepend=True)
        yield module.register_forward_hook(leave_module, always_call=True)


def _module_hooks(path: str, watch: Watch) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(_module: nn.Module, args: Any) -> None:
        for item in tensors_in(args):
            if trail_of(item) is None and item.is_floating_point():
                leave(item, Trail())
        watch.path.append(path)

    def leave_module(module: nn.Module, args: Any, output: Any) -> None:
        # What no function of torch's brought forth: an autograd function of the user's own.
        lost = [item for item in tensors_in((output,)) if trail_of(item) is None and item.is_floating_point()]
        if lost:
            parents = tuple(trail for item in tensors_in(args) if (trail := trail_of(item)) is not None)
            own = [trail for item in module.parameters() if (trail := trail_of(item)) is not None]
            weights = tuple(name for trail in own for name in trail.weights)
            depth = max((trail.depth for trail in parents), default=0) + bool(weights)
            trail = Trail((*parents, *own), depth, None, weights)
            watch.enter_tower(trail)
            for item in lost:
                leave(item, trail)
            if lost[0].numel():
                watch.record(lost[0], type(module).__name__, Kind.WEIGHT if weights else Kind.OTHER, trail)
        watch.path.pop()

    return enter, leave_module


def _named(watch: Watch) -> list[LayerSignal]:
    """The signals with their gradients and with names that are unique: the module's path where it has but one."""
    operations: dict[str, set[str]] = {}
    for signal in watch.signals:
        operations.setdefault(signal.module, set()).add(signal.target)
    calls: dict[str, int] = {}
    named = []
    for signal in watch.signals:
        alone = len(operations[signal.module]) == 1 and signal.module
        name = signal.module if alone else f"{signal.module}:{signal.target}" if signal.module else signal.target
        calls[name] = calls.get(name, 0) + 1
        unique = name if calls[name] == 1 else f"{name}#{calls[name]}"
        named.append(replace(signal, name=unique, **watch.gradients.get(signal.index, {})))
    return named
