"""Non-linearities, also those written out by hand: found as closed regions, named by what they compute.

A region of element-wise operations with one way in and one way out is replayed on a grid of numbers. Where its values
are those of a function with a name, it has that name; where they are not, its moments are computed from the replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from fanin import gains
from fanin.gains import quadrature
from fanin.graph import Activation
from fanin.tracing import compatibility
from fanin.tracing.dataflow import activations_of, is_activation
from fanin.tracing.norms import HandNorm
from fanin.tracing.records import Operation, Space, Value
from fanin.tracing.vocabulary import ACTIVATIONS, POINTWISE, RULES, SHAPE_ONLY, words

_LONGEST = 24
_GRID = torch.linspace(-6.5, 6.5, 261, dtype=torch.float64)
"""Wide enough to tell relu6 from relu; so narrow that a clamp at 7, a guard against overflow, is no non-linearity."""

_TOLERANCE = 2e-3
_AFFINE = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "to", "float", "clone", "contiguous"})

_NAMES = words(
    "relu silu tanh sigmoid softplus elu selu mish relu6 hardtanh hardsigmoid hardswish softsign logsigmoid tanhshrink "
    "sin cos erf abs softshrink hardshrink relu_squared snake gaussian arctan square leaky_relu"
)
_VARIANTS = ("gelu", "gelu_tanh", "quick_gelu")

PARAMETRIC = frozenset({"leaky_relu", "elu", "celu", "softplus", "hardtanh", "threshold", "softshrink", "hardshrink"})
"""Named non-linearities whose moments depend on a parameter."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A non-linearity: its name, its operations, its result, and its moments where the name does not tell them."""

    name: str
    operations: frozenset[int]
    exit: Value
    captured: Activation | None = None


class ActivationFinder:
    """Finds the non-linearity that a value enters, if it enters one.

    Args:
        norms: operations that belong to hand-written normalizations, which are none.
    """

    def __init__(self, norms: Mapping[int, HandNorm]) -> None:
        self._norms = norms
        self._found: dict[int, Found | None] = {}
        self._named: dict[str, tuple[str, Activation | None]] = {}

    def at(self, value: Value) -> Found | None:
        """The non-linearity that starts at a value."""
        if value.id not in self._found:
            self._found[value.id] = self._search(value)
        return self._found[value.id]

    def _search(self, value: Value) -> Found | None:
        region = list(self._region(value))
        if not region:
            return None
        closed: list[list[Operation]] = []
        open_: list[list[Operation]] = []
        for length in range(1, len(region) + 1):
            prefix = region[:length]
            inside = {operation.index for operation in prefix}
            if not all(_users(op.output) <= inside for op in prefix[:-1]):
                continue
            (closed if _users(value) <= inside else open_).append(prefix)
        # Where the value is used elsewhere too (a skip around the activation), any exit could be the one: the last.
        return self._best(value, closed, first=True) or self._best(value, open_, first=False)

    def _best(self, value: Value, prefixes: list[list[Operation]], first: bool) -> Found | None:
        unnamed: list[Found] = []
        best: Found | None = None
        for prefix in prefixes:
            key = _key(value, prefix)
            if key not in self._named:
                self._named[key] = name_of(value, prefix)
            name, captured = self._named[key]
            if not name:
                continue
            found = Found(name, frozenset(op.index for op in prefix), prefix[-1].output, captured)
            if name.startswith("composite"):
                unnamed.append(found)
            else:
                best = found
        if best is not None or not unnamed:
            return best
        return unnamed[0 if first else -1]

    def _region(self, value: Value) -> Iterator[Operation]:
        """The element-wise operations on this value alone, in execution order."""
        inside = {value.id}
        waiting = sorted({user.index: user for user in value.users}.values(), key=lambda op: op.index)
        seen: set[int] = set()
        while waiting and len(seen) < _LONGEST:
            operation = waiting.pop(0)
            if operation.index in seen or not self._belongs(operation, inside):
                continue
            seen.add(operation.index)
            inside.add(operation.output.id)
            yield operation
            waiting = sorted(
                {op.index: op for op in (*waiting, *operation.output.users)}.values(), key=lambda op: op.index
            )

    def _belongs(self, operation: Operation, inside: set[int]) -> bool:
        if operation.target not in POINTWISE or operation.index in self._norms or operation.function is None:
            return False
        if operation.target == "where" and "self" not in operation.arguments:
            return False
        for _, given in operation.inputs:
            if given.id in inside:
                continue
            if is_activation(given) or given.space == Space.ACTIVATION:
                return False
            if given.constant is None and given.numel > 1 and operation.target not in ("prelu", "_prelu_kernel"):
                return False
            if given.constant is not None and given.numel > 1 and given.space != Space.WEIGHT:
                return False
        return True


def _users(value: Value) -> set[int]:
    return {
        user.index
        for user in value.users
        if user.target not in SHAPE_ONLY or any(name not in SHAPE_ONLY[user.target] for name in user.slots(value))
    }


def _key(value: Value, prefix: list[Operation]) -> str:
    """Two regions with one key compute one function."""
    names = {value.id: "x"}
    parts = []
    for operation in prefix:
        shown = []
        for name, given in operation.arguments.items():
            if isinstance(given, Value):
                shown.append(f"{name}={names.get(given.id) or _scalar(given)}")
            else:
                shown.append(f"{name}={given}")
        names[operation.output.id] = f"v{len(names)}"
        parts.append(f"{operation.target}({','.join(shown)})")
    return ";".join(parts)


def _scalar(value: Value) -> float:
    """The number that stands for a constant; 1 where a learned one is not known."""
    return float(value.constant.double().mean()) if value.constant is not None else 1.0


def replay(value: Value, prefix: list[Operation]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that a region computes."""

    def function(x: torch.Tensor) -> torch.Tensor:
        known: dict[int, torch.Tensor] = {value.id: x}

        def given(item: object) -> object:
            if isinstance(item, Value):
                return known[item.id].clone() if item.id in known else torch.tensor(_scalar(item), dtype=x.dtype)
            return [given(part) for part in item] if isinstance(item, list) else item

        for operation in prefix:
            if operation.target in ("to", "float", "type_as", "clone", "contiguous", "alias", "detach"):
                known[operation.output.id] = known[next(i.id for _, i in operation.inputs)]
                continue
            arguments = {name: given(item) for name, item in operation.arguments.items()}
            known[operation.output.id] = operation.function(**arguments)
        return known[prefix[-1].output.id]

    return function


def name_of(value: Value, prefix: list[Operation]) -> tuple[str, Activation | None]:
    """The name of what a region computes, and its moments where the name does not fix them; '' for a linear map."""
    last = prefix[-1].target
    if len(prefix) == 1 and last in ("prelu", "_prelu_kernel"):
        return "prelu", None
    try:
        with compatibility.no_modes(), torch.no_grad():
            values = replay(value, prefix)(_GRID).double().numpy()
    except (RuntimeError, TypeError, ValueError, KeyError):
        return "", None
    if values.shape != tuple(_GRID.shape) or _is_affine(values):
        return "", None
    simple = len(prefix) == 1 and last in ACTIVATIONS
    name = ACTIVATIONS[last] if simple else _matching(values)
    if name and not (name in PARAMETRIC and simple and _matching(values) != name):
        return name, _leaky_capture(name, values)
    label = name or _only_bend(prefix) or f"composite({', '.join(op.target for op in prefix if op.target != 'to')})"
    return label, _captured(label, replay(value, prefix))


def _only_bend(prefix: list[Operation]) -> str:
    """The name of the one non-linearity among scalings and shifts, as in ``sin(30 x)``; '' where there are more."""
    bends = [op for op in prefix if op.target not in _AFFINE or len(activations_of(op)) > 1]
    return ACTIVATIONS.get(bends[0].target, "") if len(bends) == 1 else ""


def _leaky_capture(name: str, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Activation | None:
    if name != "leaky_relu":
        return None
    slope = float(values[0] / _GRID[0])
    if abs(slope - 0.01) < 1e-6:
        return None
    return Activation(name, (1 + slope**2) / 2, (1 + slope**2) / 2)


def _is_affine(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    if not np.isfinite(values).all():
        return False
    second = np.diff(values, 2)
    return bool(np.abs(second).max() <= 1e-6 * max(1.0, float(np.abs(values).max())))


def _matching(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    if not np.isfinite(values).all():
        return ""
    for name, table in _tables().items():
        if np.abs(values - table).max() < _TOLERANCE:
            return "gelu" if name in _VARIANTS else name
    x = _GRID.numpy()
    slope = float(values[0] / x[0])
    if 0 < slope < 1 and np.abs(values - np.where(x > 0, x, slope * x)).max() < 1e-9:
        return "leaky_relu"
    return ""


@cache
def _tables() -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    x = _GRID.numpy()
    return {name: np.asarray(gains.resolve_activation(name)(x)) for name in (*_VARIANTS, *_NAMES)}


def _captured(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Activation | None:
    def array(x: quadrature.Array) -> quadrature.Array:
        with compatibility.no_modes(), torch.no_grad():
            return np.asarray(function(torch.from_numpy(np.ascontiguousarray(x))).double().numpy())

    try:
        found = quadrature.integrate(array)
    except (ValueError, RuntimeError):
        return None
    if not (math.isfinite(found.second) and math.isfinite(found.derivative_second)):
        return None
    return Activation(name, found.second, found.derivative_second)


def registered_activation(operation: Operation) -> str:
    """The name of a non-linearity that stands as one operation, pointwise or not; '' for anything else."""
    if operation.target in ACTIVATIONS:
        return ACTIVATIONS[operation.target]
    kind, name = RULES.get(operation.target, ("", ""))
    return name if kind == "activation" else ""
