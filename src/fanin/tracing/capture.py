"""The recorder: every torch operation of one forward, as values and operations.

It sits on top of fake tensors inside ``inference_mode``, where the autograd keys are skipped and composite operations
arrive whole: ``linear``, ``layer_norm``, ``scaled_dot_product_attention``, also from TorchScript and from custom
autograd functions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fanin.tracing import compatibility, optimistic
from fanin.tracing.records import Operation, Run, Value
from fanin.tracing.shortcuts import quick_result
from fanin.tracing.vocabulary import FILLED, SHAPE_ONLY

_LARGEST_CONSTANT = 1 << 20
_MOST_OPERATIONS = 200_000

_NOT_RECORDED = frozenset({"device", "size", "sym_size", "stride", "is_contiguous", "numel", "dim", "storage_offset"})


class Recorder(compatibility.DispatchMode):
    """Records what is called while it is active."""

    supports_higher_order_operators = True

    def __init__(self, run: Run, mode: Any = None, guess: bool = False) -> None:
        super().__init__()
        self.run = run
        self.mode = mode
        self.guess = guess
        self.path: list[str] = []
        self.protected: set[int] = set()
        self._values: dict[int, Value] = {}
        self._alive: list[torch.Tensor] = []
        self._written: dict[int, Value] = {}
        self._versions: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._memories: dict[int, torch.Tensor | None] = {}
        self._guesses = optimistic.Guesses()

    def forget(self) -> None:
        """Hold no tensor any more: what is alive afterwards, something else keeps."""
        for held in (self._values, self._alive, self._written, self._memories):
            held.clear()

    def register(self, tensor: torch.Tensor, kind: str, name: str = "", keep: torch.Tensor | None = None) -> Value:
        """Make a tensor known before the run; a small `keep` gives it its numbers."""
        known = self._values.get(id(tensor))
        if known is not None:
            return known
        value = self.run.new_value(tensor, kind, name)
        value.constant = _small(keep)
        self._bind(tensor, value)
        return value

    def _bind(self, tensor: torch.Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        storage = compatibility.storage_key(tensor)
        self._seen[id(tensor)] = self._versions.get(storage, 0)
        if value.constant is not None and storage not in self._memories:
            whole = tensor.is_contiguous() and tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()
            self._memories[storage] = value.constant if whole else None

    def read(self, tensor: torch.Tensor) -> Value:
        """The value of a tensor now: after a write through another view of its memory it is a new one."""
        value = self._values.get(id(tensor))
        if value is None:
            real = None if compatibility.is_fake(tensor) else tensor
            return self.register(tensor, "constant", keep=real)
        storage = compatibility.storage_key(tensor)
        if storage and self._versions.get(storage, 0) != self._seen[id(tensor)]:
            written = self._written[storage]
            fresh = self.run.new_value(tensor, "op")
            fresh.constant = self._remembered(tensor, storage)
            self._emit("alias_sync", None, {"self": value, "source": written}, (fresh,))
            self._values[id(tensor)] = fresh
            self._seen[id(tensor)] = self._versions[storage]
            return fresh
        return value

    def _write(self, tensor: torch.Tensor, storage: int, numbers: torch.Tensor | None) -> None:
        """What was written into a part of a memory, for those who read other parts of it."""
        memory = self._memories.get(storage)
        if memory is None:
            return
        if numbers is None:
            self._memories[storage] = None
            return
        with compatibility.no_modes():
            memory = memory.clone() if storage not in self._versions else memory
            memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(numbers)
        self._memories[storage] = memory

    def _remembered(self, tensor: torch.Tensor, storage: int) -> torch.Tensor | None:
        """The numbers of a tensor after a write into its memory, where they are known."""
        memory = self._memories.get(storage)
        if memory is None:
            return None
        with compatibility.no_modes():
            return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).clone()

    def _values_in(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return self.read(argument)
        if isinstance(argument, list | tuple):
            return [self._values_in(item) for item in argument]
        return argument

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is None:
            return self._higher_order(func, args, kwargs)
        target = compatibility.normalise(schema.name)
        named: dict[str, Any] = {spec.name: given for spec, given in zip(schema.arguments, args, strict=False)}
        named.update(kwargs)
        arguments = {name: self._values_in(given) for name, given in named.items()}
        written = [
            named[spec.name]
            for spec in schema.arguments
            if spec.alias_info is not None and spec.alias_info.is_write and spec.name in named
        ]
        self._refuse_writes_to_parameters(written)
        known, answer = self._answer(func, target, named, arguments)
        if known:
            return answer
        constants = self._compute(func, target, arguments, args, kwargs, bool(written))
        result = self._exact(func, target, named, arguments, constants)
        if result is None:
            result = self._call(func, target, named, args, kwargs)
        if target not in _NOT_RECORDED:
            self._record(func, target, arguments, result, written, constants)
        return result

    def _refuse_writes_to_parameters(self, written: Iterable[Any]) -> None:
        if self.protected:
            for tensor in written:
                if isinstance(tensor, torch.Tensor) and compatibility.storage_key(tensor) in self.protected:
                    raise RuntimeError("the model writes into one of its parameters, which this run shares")

    def _answer(self, func: Any, target: str, named: dict[str, Any], arguments: dict[str, Any]) -> tuple[bool, Any]:
        """A Python number asked of a tensor: from its known constant, or guessed."""
        if target not in optimistic.QUESTIONS:
            return False, None
        values = [value.constant for value in _flat(arguments.values())]
        if all(constant is not None for constant in values):
            with compatibility.no_modes():
                return True, func(*values, **{k: v for k, v in named.items() if not isinstance(v, torch.Tensor)})
        if self.guess and all(compatibility.is_fake(item) for item in named.values() if isinstance(item, torch.Tensor)):
            return True, self._guesses.answer(target, named)
        return False, None

    def _exact(self, func: Any, target: str, named: dict[str, Any], arguments: dict[str, Any], constants: Any) -> Any:
        """A result whose size depends on numbers that are known: on a constant mask, say."""
        if self.mode is None or target not in optimistic.SIZED or target in optimistic.VIEWS:
            return None
        if constants is not None:
            fakes = [compatibility.fake_like(self.mode, constant) for constant in constants]
            single = len(func._schema.returns) == 1 and str(func._schema.returns[0].type) == "Tensor"
            return fakes[0] if single else fakes if len(func._schema.returns) == 1 else tuple(fakes)
        masks = [value for value in arguments.get("indices", ()) if value is not None and value.dtype is torch.bool]
        if target != "index" or not masks or any(mask.constant is None for mask in masks):
            return None
        indices: list[torch.Tensor | None] = []
        for given, value in zip(named["indices"], arguments["indices"], strict=True):
            if value in masks:
                with compatibility.no_modes():
                    places = value.constant.nonzero(as_tuple=True)
                indices += [compatibility.fake_like(self.mode, place) for place in places]
            else:
                indices.append(given)
        return func(named["self"], indices)

    def _call(self, func: Any, target: str, named: dict[str, Any], args: Any, kwargs: Any) -> Any:
        quick = quick_result(func, target, named, args, kwargs)
        if quick is not None:
            return quick
        if self.guess and target in optimistic.SIZED:
            return self._guesses.sized(func, target, named, args, kwargs)
        return func(*args, **kwargs)

    def _compute(
        self, func: Any, target: str, arguments: dict[str, Any], args: Any, kwargs: Any, writes: bool
    ) -> list[torch.Tensor] | None:
        """The numbers of an operation on small constants: masks, indices, positions."""
        values = list(_flat(arguments.values()))
        if target in FILLED:
            return None
        if any(value.constant is None for value in values) or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        if not values and target not in ("arange", "zeros", "ones", "full", "scalar_tensor", "eye", "linspace"):
            return None

        def real(given: Any) -> Any:
            if isinstance(given, torch.Tensor):
                constant = self.read(given).constant
                assert constant is not None
                return constant.clone() if writes else constant
            if isinstance(given, list | tuple):
                return [real(item) for item in given]
            return given

        if not values and _count(arguments) > _LARGEST_CONSTANT:
            return None
        with compatibility.no_modes():
            try:
                plain = {k: (torch.device("cpu") if k == "device" else real(v)) for k, v in kwargs.items()}
                result = func(*[real(item) for item in args], **plain)
            except Exception:  # numbers are a help, not a need: the shapes come from the fake run
                return None
        found = (
            [result] if isinstance(result, torch.Tensor) else list(result) if isinstance(result, tuple | list) else []
        )
        return found if all(isinstance(item, torch.Tensor) for item in found) else None

    def _record(
        self,
        func: Any,
        target: str,
        arguments: dict[str, Any],
        result: Any,
        written: list[Any],
        constants: list[torch.Tensor] | None,
    ) -> None:
        # What comes back unchanged (`to` without a change of dtype) is the same value, not a new one.
        tensors = [item for item in tensors_in(result) if id(item) not in self._values]
        for tensor in (item for given in written for item in tensors_in(given)):
            if not any(tensor is item for item in tensors):
                tensors.append(tensor)
        if not tensors:
            return
        outputs = []
        for tensor in tensors:
            value = self.run.new_value(tensor, "op")
            outputs.append(value)
        for value, constant in zip(outputs, constants or (), strict=False):
            value.constant = _small(constant)
        self._emit(target, func, arguments, tuple(outputs))
        changed = {id(item) for given in written for item in tensors_in(given)}
        for tensor, value in zip(tensors, outputs, strict=True):
            if id(tensor) in changed:
                storage = compatibility.storage_key(tensor)
                self._write(tensor, storage, value.constant)
                self._versions[storage] = self._versions.get(storage, 0) + 1
                self._written[storage] = value
            self._bind(tensor, value)
            self.run.made.append(weakref.ref(tensor))

    def _emit(self, target: str, func: Any, arguments: dict[str, Any], outputs: tuple[Value, ...]) -> None:
        inputs = tuple(
            (name, value)
            for name, given in arguments.items()
            if not (target in SHAPE_ONLY and name in SHAPE_ONLY[target])
            for value in _flat((given,))
        )
        if len(self.run.operations) >= _MOST_OPERATIONS:
            raise RuntimeError(f"more than {_MOST_OPERATIONS} operations in one forward")
        path = self.path[-1] if self.path else ""
        operation = Operation(len(self.run.operations), target, func, arguments, inputs, outputs, path)
        self.run.operations.append(operation)
        for value in {id(value): value for _, value in inputs}.values():
            value.users.append(operation)
        for index, value in enumerate(outputs):
            value.producer, value.output_index = operation, index

    def differentiated(self, outputs: Any, inputs: Any) -> tuple[torch.Tensor, ...]:
        """What ``torch.autograd.grad`` would give: of the inputs' shapes, and made of both. The run keeps no gradients.

        Zeros, for a real run has to have some numbers; nothing that is recorded depends on them.
        """
        made = []
        for given in tensors_in([inputs]):
            arguments = {"outputs": self._values_in(list(tensors_in([outputs]))), "inputs": self.read(given)}
            made.append(torch.zeros_like(given))
            self._record(None, "autograd_grad", arguments, made[-1], [made[-1]], None)
        return tuple(made)

    def _higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`cond` runs both branches; `flex_attention` is an attention; others are one opaque operation."""
        name = getattr(func, "__name__", None) or str(func)
        if name == "cond":
            _, true_branch, false_branch, operands = args
            with self:
                result = true_branch(*operands)
                false_branch(*operands)
            return result
        result = func(*args, **kwargs)
        names = ("query", "key", "value") if name == "flex_attention" else tuple(str(i) for i in range(len(args)))
        arguments = {key: self._values_in(given) for key, given in zip(names, args, strict=False)}
        self._record(func, compatibility.normalise(name), arguments, result, [], None)
        return result


def _small(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or tensor.numel() > _LARGEST_CONSTANT or tensor.layout != torch.strided or tensor.is_meta:
        return None
    if compatibility.is_fake(tensor):
        return None
    with compatibility.no_modes():
        return tensor.detach().cpu().clone()


def _count(arguments: dict[str, Any]) -> float:
    """How many elements a factory is about to make, at most."""
    count = 1.0
    for name in ("size", "end", "n", "m", "steps"):
        given = arguments.get(name)
        for number in given if isinstance(given, list | tuple) else (given,):
            if isinstance(number, int | float):
                count *= abs(number) or 1
    return count


def _flat(items: Iterable[Any]) -> Iterator[Value]:
    for item in items:
        if isinstance(item, Value):
            yield item
        elif isinstance(item, list | tuple):
            yield from _flat(item)


def tensors_in(item: Any) -> Iterator[torch.Tensor]:
    """The tensors in whatever a model may return."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, dict):
        for part in item.values():
            yield from tensors_in(part)
    elif isinstance(item, list | tuple | set):
        for part in item:
            yield from tensors_in(part)
    elif hasattr(item, "__dict__") and not isinstance(item, nn.Module | type):
        for part in vars(item).values():
            if isinstance(part, torch.Tensor | list | tuple | dict):
                yield from tensors_in(part)
