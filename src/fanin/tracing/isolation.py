"""A copy of a module tree to run in place of the model: new shells, no weight copied, nothing of the user's touched."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from fanin.errors import article
from fanin.tracing import compatibility
from fanin.tracing.names import unwrap
from fanin.tracing.rebinding import holds_modules, rebound

Substitute = Callable[[torch.Tensor], torch.Tensor]
"""What stands in the copy for a tensor of the model."""

_IMMUTABLE = (int, float, bool, str, bytes, type, type(None), types.FunctionType, types.BuiltinFunctionType)
"""What a copy may share: copying these one by one is most of the time that a copy takes."""

_TABLES = frozenset(key for key, value in vars(nn.Module()).items() if value == type(value)())
"""The tables of every module (hooks, buffers, ...), most of them empty: those are made anew, which is quicker."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


TABLES, HOOKS = "the tensors in its plain dicts", "its hooks that are plain functions"
"""What a copy leaves out at first: most such dicts are caches, and most such hooks write down what they see."""

Kept = tuple[str, ...]
"""What of these a copy has."""


class Isolated:
    """A copy of a model's module tree, and which of its tensors stands for which of the model's.

    Args:
        model: the model; it is only read.
        parameter: gives the stand-in of a parameter.
        buffer: gives the stand-in of a buffer, or of any other tensor that a module keeps.
        kept: what the copy has of `TABLES` and `HOOKS`.
    """

    def __init__(self, model: nn.Module, parameter: Substitute, buffer: Substitute, kept: Kept = ()) -> None:
        self.parameters: list[tuple[nn.Parameter, torch.Tensor]] = []
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.notes: list[str] = []
        self._kept = kept
        self._memo: dict[int, Any] = {}
        self._alive: list[Any] = []
        root = unwrap(model)
        modules = list(root.modules())
        for module in modules:
            self._substitute_tensors(module, parameter, buffer)
        for module in modules:
            self._make_shell(module)
        for module in modules:
            shell = self._memo[id(module)]
            if unwrap(module) is module and shell.__dict__.get("_fanin_empty"):
                del shell.__dict__["_fanin_empty"]
                self._fill(module, shell)
        self.notes = list(dict.fromkeys(self.notes))
        self.model: nn.Module = self._memo[id(root)]

    def _substitute_tensors(self, module: nn.Module, parameter: Substitute, buffer: Substitute) -> None:
        for value in module._parameters.values():
            if value is not None and id(value) not in self._memo:
                stand_in = parameter(value)
                self._memo[id(value)] = stand_in
                self.parameters.append((value, stand_in))
        kept = [value for value in module.__dict__.values() if isinstance(value, torch.Tensor)]
        if TABLES in self._kept:
            kept += [tensor for table in _tables(module).values() for tensor in table.values()]
        for tensor in (*module._buffers.values(), *kept):
            if tensor is not None and id(tensor) not in self._memo:
                stand_in = buffer(tensor)
                self._memo[id(tensor)] = stand_in
                self.buffers.append((tensor, stand_in))

    def _make_shell(self, module: nn.Module) -> None:
        if id(module) in self._memo:
            return
        inner = unwrap(module)
        if inner is not module:
            self._make_shell(inner)
            self._memo[id(module)] = self._memo[id(inner)]
        elif isinstance(module, torch.jit.ScriptModule):
            copied = copy.deepcopy(module)
            self._pair_scripted(module, copied)
            self._memo[id(module)] = copied
        else:
            kind = compatibility.fsdp_original(type(module))
            shell = kind.__new__(kind)
            shell.__dict__["_fanin_empty"] = True
            self._memo[id(module)] = shell

    def _pair_scripted(self, module: nn.Module, copied: nn.Module) -> None:
        stand_ins = dict(copied.named_parameters())
        for name, value in module.named_parameters():
            # A scripted module hands out a new Python object at every access unless one is alive.
            self._alive += [value, stand_ins[name]]
            self.parameters.append((value, stand_ins[name]))
        self._alive += list(copied.modules())
        for original, twin in zip(module.modules(), copied.modules(), strict=False):
            self._memo[id(original)] = twin

    def _fill(self, module: nn.Module, shell: nn.Module) -> None:
        left_out = () if TABLES in self._kept else _tables(module)
        for key, value in module.__dict__.items():
            if key == "_compiled_call_impl":
                shell.__dict__[key] = None
            elif key in _TABLES and not value:
                shell.__dict__[key] = type(value)()
            elif key in _HOOKS:
                hooks = ((i, hook) for i, hook in value.items() if self._keeps(hook))
                shell.__dict__[key] = type(value)((i, self._copy(hook, "hook")) for i, hook in hooks)
            elif key in left_out:
                shell.__dict__[key] = type(value)()
            else:
                shell.__dict__[key] = self._copy(value, f"{type(module).__name__}.{key}")
        for key in ("_forward_hooks_always_called", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"):
            value = module.__dict__.get(key)
            if value:
                shell.__dict__[key] = type(value)(value)

    def _keeps(self, hook: Any) -> bool:
        return _belongs(hook) or (HOOKS in self._kept and _is_plain(hook))

    def _copy(self, value: Any, place: str) -> Any:
        if holds_modules(value, self._memo):
            return rebound(value, self._memo)
        if isinstance(value, _IMMUTABLE):
            return value
        if type(value) is tuple and all(isinstance(item, _IMMUTABLE) for item in value):
            return value
        if type(value) is dict and all(
            id(item) in self._memo or isinstance(item, _IMMUTABLE) for item in value.values()
        ):
            return {key: self._memo.get(id(item), item) for key, item in value.items()}
        try:
            return copy.deepcopy(value, self._memo)
        except Exception as error:  # anything may refuse to be copied: locks, generators, process groups
            what = f"{place}, {article(type(value).__name__)}, could not be copied"
            self.notes.append(f"{what} ({type(error).__name__}): what the model writes there stays")
            return value


def ways_to_keep(model: nn.Module) -> Iterator[Kept]:
    """What copies of a model keep, one after the other where it fails: nothing, then its tables, then its hooks too."""
    modules = list(unwrap(model).modules())
    kept: Kept = ()
    yield kept
    if any(map(_tables, modules)):
        kept = (TABLES,)
        yield kept
    if any(_is_plain(hook) for module in modules for key in _HOOKS for hook in _hooks(module, key)):
        yield (*kept, HOOKS)


def _tables(module: nn.Module) -> dict[str, dict[Any, torch.Tensor]]:
    """Tensors in a plain dict. Where a former forward left them there, the copy would skip the code that made them."""
    return {
        key: value
        for key, value in module.__dict__.items()
        if key not in ("_parameters", "_buffers", "_modules") and isinstance(value, dict) and value
        if all(isinstance(item, torch.Tensor) for item in value.values())
    }


def _hooks(module: nn.Module, key: str) -> Iterable[Any]:
    return (module.__dict__.get(key) or {}).values()


def _belongs(hook: Any) -> bool:
    """A hook that is part of the model: torch's own, or a method of an object that is copied with the model.

    A plain function of the user's may append to the user's lists, so it is left out.
    """
    module = _module_of(hook)
    if module.startswith("torch.distributed"):
        return False
    return module.startswith("torch.") or not isinstance(hook, types.FunctionType)


def _is_plain(hook: Any) -> bool:
    """A plain function of the user's; one of torch.distributed's talks to other processes, and is never called."""
    return not _belongs(hook) and not _module_of(hook).startswith("torch.distributed")


def _module_of(hook: Any) -> str:
    """The file that a hook is from, or the object whose method it is."""
    if isinstance(hook, types.MethodType):
        hook = hook.__self__
    return getattr(hook, "__module__", None) or type(hook).__module__


def fake_copy(model: nn.Module, mode: Any, kept: Kept = ()) -> Isolated:
    """A copy whose parameters and buffers have shapes only."""
    return Isolated(
        model,
        lambda value: compatibility.fake_parameter(mode, value),
        lambda value: compatibility.fake_like(mode, value.detach()),
        kept,
    )


def real_copy(model: nn.Module, kept: Kept = ()) -> Isolated:
    """A copy that computes: it shares the parameters, has its own buffers, and draws what is on the meta device."""
    generator = torch.Generator().manual_seed(0)

    def parameter(value: torch.Tensor) -> torch.Tensor:
        if value.is_meta:
            drawn = torch.zeros(value.shape, dtype=value.dtype)
            if value.is_floating_point():
                drawn.normal_(0, 0.02, generator=generator)
            return nn.Parameter(drawn, requires_grad=value.requires_grad)
        return value

    def buffer(value: torch.Tensor) -> torch.Tensor:
        return torch.zeros(value.shape, dtype=value.dtype) if value.is_meta else value.detach().clone()

    return Isolated(model, parameter, buffer, kept)


@contextlib.contextmanager
def postponed_collection() -> Iterator[None]:
    """No search for cyclic garbage: a run makes many objects, all alive, and looking through them takes its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """The random states of Python, NumPy and torch (CPU and every device in use), as they were."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda._initialized else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
