"""One forward of an isolated copy under the recorder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fanin.tracing import compatibility
from fanin.tracing.capture import Recorder, tensors_in
from fanin.tracing.isolation import Isolated
from fanin.tracing.records import Call, Run

_LONGEST_SCALE = 1 << 16
_RAW, _COARSE = 4.0, 8.0


class Differentiation(TorchFunctionMode):
    """Lets the recorder answer for ``torch.autograd.grad``, which models of physics call in their forward."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.autograd.grad:
            return func(*args, **kwargs)
        named = dict(zip(("outputs", "inputs"), args, strict=False)) | kwargs
        return self._recorder.differentiated(named["outputs"], named["inputs"])


def run_model(
    isolated: Isolated,
    names: dict[int, str],
    inputs: Call,
    run: Run,
    *,
    mode: Any = None,
    training: bool = False,
    differentiates: bool = False,
) -> Run:
    """Run an isolated copy once, recording.

    Args:
        isolated: the copy.
        names: id of a parameter of the original → its canonical name.
        inputs: positional and keyword arguments; tensors on any device.
        run: what is filled.
        mode: the fake mode, or None to compute.
        training: whether the copy runs as in training.
        differentiates: whether the model asks for gradients on its way, of which a recorded run has none.
    """
    recorder = Recorder(run, mode, guess=run.source == "optimistic")
    for original, stand_in in isolated.parameters:
        run.parameters[names[id(original)]] = recorder.register(stand_in, "parameter", names[id(original)])
        if (number := _equal(original)) is not None:
            run.equal[names[id(original)]] = number
        if mode is None:
            recorder.protected.add(compatibility.storage_key(stand_in))
    for kept, stand_in in isolated.buffers:
        recorder.register(stand_in, "buffer", keep=None if kept.is_meta else kept.detach())
    isolated.model.train(training)
    stack = contextlib.ExitStack()
    try:
        with stack:
            for handle in _watch_modules(isolated.model, recorder):
                stack.callback(handle.remove)
            stack.enter_context(mode or contextlib.nullcontext())
            args = tuple(_prepare(item, recorder, mode) for item in inputs[0])
            kwargs = {key: _prepare(item, recorder, mode) for key, item in inputs[1].items()}
            stack.enter_context(recorder)
            stack.enter_context(torch.inference_mode())
            if differentiates:
                stack.enter_context(Differentiation(recorder))
            output = isolated.model(*args, **kwargs)
        run.outputs.update(recorder.read(tensor).id for tensor in tensors_in(output))
    finally:
        recorder.forget()
    return run


def _equal(parameter: torch.Tensor) -> float | None:
    """The one number that a scale's values are; None for other parameters, and where one device holds a part alone."""
    plain = type(parameter) in (torch.Tensor, nn.Parameter) and not parameter.is_meta
    if not plain or not 0 < parameter.numel() <= _LONGEST_SCALE or max(parameter.shape, default=1) < parameter.numel():
        return None
    if not parameter.is_floating_point() or compatibility.is_fake(parameter):
        return None
    first = parameter.detach().flatten()[0]
    return float(first) if bool((parameter.detach() == first).all()) else None


def _size(given: torch.Tensor) -> float:
    """The RMS of an input that is far above one, as of raw pixels, to a power of eight; 1 for any other.

    Rounded as coarsely as this, it is the same for any batch of the same data.
    """
    known = type(given) is torch.Tensor and given.is_floating_point() and not compatibility.is_fake(given)
    if not known or given.is_meta or not given.numel():
        return 1.0
    with compatibility.no_modes():
        rms = float(given.detach().double().square().mean().sqrt())
    return _COARSE ** round(math.log(rms, _COARSE)) if _RAW <= rms < math.inf else 1.0


def _watch_modules(model: nn.Module, recorder: Recorder) -> Iterator[Any]:
    """Hooks on the copy's own modules: nothing global, so threads do not disturb each other."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue

        def enter(_module: nn.Module, _args: Any, path: str = path) -> None:
            recorder.path.append(path)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            recorder.path.pop()

        yield module.register_forward_pre_hook(enter, prepend=True)
        yield module.register_forward_hook(leave, always_call=True)


def _prepare(item: Any, recorder: Recorder, mode: Any) -> Any:
    """An input as the run takes it: fake, or on the CPU, with its integers known."""
    if isinstance(item, torch.Tensor):
        plain = item.detach()
        tensor = compatibility.fake_like(mode, plain) if mode is not None else _computable(plain)
        value = recorder.register(tensor, "input", keep=None if item.is_meta or item.is_floating_point() else item)
        recorder.run.inputs.append(value)
        if (size := _size(item)) > 1:
            recorder.run.sizes[value.id] = size
        return tensor
    if isinstance(item, dict):
        return type(item)((key, _prepare(part, recorder, mode)) for key, part in item.items())
    if isinstance(item, list | tuple) and not hasattr(item, "_fields"):
        return type(item)(_prepare(part, recorder, mode) for part in item)
    return item


def _computable(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach().clone()
