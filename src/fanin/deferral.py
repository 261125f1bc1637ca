"""Building a model without memory for its large weights, and giving them memory when they get their values."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from fanin import sharding
from fanin.memory import prefer_large_pages

LARGE = 2**16
"""Parameters of more elements than this are deferred: 256 KB in single precision."""

_FACTORIES = frozenset(
    {torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.rand, torch.randn}
    | {torch.rand_like, torch.randn_like}
)
"""What allocates a tensor whose values nobody has chosen yet, or has left to chance."""

_CHANCE = frozenset({"normal_", "uniform_"})
"""What leaves values to chance in place."""

_STRUCTURE = frozenset(
    {"requires_grad_", "detach_", "t_", "squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "resize_"}
    | {"resize_as_", "as_strided_", "set_", "share_memory_"}
)
"""Methods that end like those which write values, and write none."""

_MARK = "_fanin_without_values"


_SET_DATA: Callable[..., Any] = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_swap: Callable[[torch.Tensor, torch.Tensor], None] = torch.utils.swap_tensors


@contextmanager
def deferred(larger_than: int = LARGE) -> Iterator[None]:
    """Build a model whose large weights take no memory and no time until `fanin.initialize` writes them.

    Within the context a parameter goes to the meta device when it has more than ``larger_than`` elements and was
    allocated without chosen values (``torch.empty``, as all of torch's layers do, or ``torch.randn``). Everything else
    is made for real: buffers (rotary tables, running statistics), small parameters, and parameters that were computed
    (a state-space ``A_log``). Initialization functions that the constructors call on deferred parameters do nothing.
    Ties survive.

    Args:
        larger_than: a number of elements; 0 defers every parameter without values.

    >>> import fanin
    >>> with deferred():
    ...     model = nn.Sequential(nn.Linear(1024, 1024), nn.BatchNorm1d(1024))
    >>> model[0].weight.device, model[1].weight.device
    (device(type='meta'), device(type='cpu'))
    >>> plan = fanin.initialize(model, recipe="he", device="cpu")
    >>> round(model[0].weight.std().item(), 3)
    0.031

    Differs from ``torch.device("meta")``, which also takes the values of buffers and of computed parameters away.
    """
    deferral = _Deferral(larger_than)
    handle = register_module_parameter_registration_hook(cast(Callable[..., None], deferral.register))
    try:
        with deferral:
            yield
    finally:
        handle.remove()


class _Deferral(TorchFunctionMode):
    """Marks memory that has no values yet, moves marked parameters to meta, and skips what would fill them."""

    def __init__(self, larger_than: int) -> None:
        super().__init__()
        self._larger_than = larger_than
        self._moved: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and _writes(func):
            if first.is_meta:
                return first
            if func.__name__ not in _CHANCE:
                _unmark(first)
        if func == _SET_DATA and isinstance(first, nn.Parameter) and first.is_meta and not args[1].is_meta:
            return _swap(first, nn.Parameter(args[1], requires_grad=first.requires_grad))
        result = func(*args, **(kwargs or {}))
        if func in _FACTORIES and isinstance(result, torch.Tensor):
            setattr(result.untyped_storage(), _MARK, True)
        return result

    def register(self, module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        """The parameter that is registered instead: on meta when it is large and has no values; None for no change."""
        if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
            return None
        known = self._moved.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1]
        if parameter.numel() <= self._larger_than or not hasattr(parameter.untyped_storage(), _MARK):
            return None
        moved = like(parameter, torch.device("meta"))
        self._moved[id(parameter)] = (weakref.ref(parameter), moved)
        return moved


def _writes(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name not in _STRUCTURE)


def _unmark(tensor: torch.Tensor) -> None:
    storage = tensor.untyped_storage()
    if hasattr(storage, _MARK):
        delattr(storage, _MARK)


def like(parameter: nn.Parameter, device: torch.device | str) -> nn.Parameter:
    """A parameter of the same class, layout and attributes with unset values on another device."""
    with torch.no_grad():
        empty = torch.empty_like(parameter.detach(), device=device)
    if type(empty) is torch.Tensor:
        made: nn.Parameter = torch.Tensor._make_subclass(type(parameter), empty, parameter.requires_grad)
    else:
        made = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for name, value in vars(parameter).items():
        vars(made).setdefault(name, value)
    return made


def materialize_(parameter: nn.Parameter, device: torch.device | str, model: nn.Module) -> nn.Parameter:
    """Give a meta parameter memory, with unset values, and return it.

    The object stays the same, so ties, optimizers and other references keep it; where something holds a weak reference
    to it, which forbids that, it is replaced wherever the model has it.
    """
    made = like(parameter, device)
    prefer_large_pages(sharding.local(made))
    try:
        _swap(parameter, made)
    except RuntimeError:
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is parameter:
                    module._parameters[name] = made
        return made
    return parameter
