"""Functions that hold a model's modules, as a forward that was set on an instance does, made to hold others."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

Memo = dict[int, Any]
"""By the identity of an object, what stands in for it: as ``copy.deepcopy`` keeps it."""


def holds_modules(value: Any, memo: Memo) -> bool:
    """Whether it is a function, perhaps bound to a module or to some arguments, that reaches what has a stand-in."""
    if isinstance(value, types.MethodType):
        return isinstance(value.__self__, nn.Module) and holds_modules(value.__func__, memo)
    if isinstance(value, functools.partial):
        return holds_modules(value.func, memo)
    return isinstance(value, types.FunctionType) and _reaches(value, memo, set())


def rebound(function: Any, memo: Memo) -> Any:
    """A function that reaches the stand-ins where it would reach a model's modules and parameters.

    It reaches what it closes over, what its arguments default to, and what the names of its file lead to; and all that
    by way of functions, methods and partial functions.

    >>> layer, copied = nn.Identity(), nn.Identity()
    >>> rebound(lambda: layer, {id(layer): copied})() is copied
    True
    """
    return _stand_in(function, memo, {})


def _reaches(value: Any, memo: Memo, seen: set[int]) -> bool:
    if isinstance(value, nn.Module | torch.Tensor):
        return id(value) in memo
    if id(value) in seen:
        return False
    seen.add(id(value))
    return any(_reaches(part, memo, seen) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    """What a function, or something that holds functions and modules, leads to."""
    if isinstance(value, types.FunctionType):
        yield from _contents(value)
        yield from (value.__defaults__ or (), value.__kwdefaults__ or {}, _named(value))
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif type(value) in (list, tuple):
        yield from value
    elif type(value) is dict:
        yield from value.values()


def _contents(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing was put in yet
            continue


def _named(function: types.FunctionType) -> dict[str, Any]:
    """What may lead to a module among the global names that a function, or one that is written within it, uses."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    outside = function.__globals__
    return {name: outside[name] for name in names if name in outside and _may_lead(outside[name], outside)}


def _may_lead(value: Any, outside: dict[str, Any]) -> bool:
    """Whether a global is a module, is bound to one, or is a function of the same file: others know no model."""
    if isinstance(value, types.FunctionType):
        return value.__globals__ is outside
    return isinstance(value.__self__ if isinstance(value, types.MethodType) else value, nn.Module)


def _stand_in(value: Any, memo: Memo, made: dict[int, Any]) -> Any:
    """The same with the stand-ins in it; what reaches no module stays what it is."""
    if isinstance(value, nn.Module | torch.Tensor):
        return memo.get(id(value), value)
    if id(value) in made:
        return made[id(value)]
    if not _reaches(value, memo, set()):
        return value
    if isinstance(value, types.FunctionType):
        return _function(value, memo, made)
    if isinstance(value, types.MethodType):
        return types.MethodType(_stand_in(value.__func__, memo, made), _stand_in(value.__self__, memo, made))
    if isinstance(value, functools.partial):
        args, keywords = _stand_in(value.args, memo, made), _stand_in(value.keywords, memo, made)
        return functools.partial(_stand_in(value.func, memo, made), *args, **keywords)
    if isinstance(value, dict):
        return {key: _stand_in(item, memo, made) for key, item in value.items()}
    return type(value)(_stand_in(item, memo, made) for item in value)


def _function(function: types.FunctionType, memo: Memo, made: dict[int, Any]) -> types.FunctionType:
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    named = _named(function)
    outside = dict(function.__globals__) if _reaches(named, memo, set()) else function.__globals__
    copied = types.FunctionType(function.__code__, outside, function.__name__, function.__defaults__, cells or None)
    made[id(function)] = copied  # before it is filled: it may reach itself
    if outside is not function.__globals__:
        outside.update(_stand_in(named, memo, made))
    for cell, original in zip(cells, function.__closure__ or (), strict=True):
        try:
            cell.cell_contents = _stand_in(original.cell_contents, memo, made)
        except ValueError:  # nothing was put in yet
            continue
    copied.__defaults__ = _stand_in(function.__defaults__, memo, made)
    copied.__kwdefaults__ = _stand_in(function.__kwdefaults__, memo, made)
    copied.__dict__.update(function.__dict__)
    return copied
