"""What the kernels need and numba lacks: integers that stay narrow, typed constants, bit patterns, polynomials.

Each function here becomes a few LLVM instructions where a kernel calls it. Words are uint32 in single precision and
uint64 in double precision, with the type of the floating-point values to match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.core import types
from numba.extending import intrinsic, overload

from fanin.sampling.caching import kept
from fanin.sampling.polynomials import DOUBLE, SINGLE, Precision

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function when it is first called, to machine code that releases the GIL, and keep it in a cache."""
    options = {"nogil": True, "fastmath": False, "error_model": "numpy", "boundscheck": False}
    with kept() as cache:
        return cast(Function, numba.njit(function, cache=cache, **options))


def inlined(function: Function) -> Function:
    """Write a function into each kernel that calls it, which costs less than to compile it by itself."""
    return cast(Function, numba.njit(function, inline="always"))


def generic(stub: Callable[..., Any]) -> Callable[[Function], Function]:
    """Give a stub the bodies that a function chooses by the types of its arguments."""
    return cast(Callable[[Function], Function], overload(stub))


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    return cast(Callable[..., Any], intrinsic(prefer_literal=True)(function))


def _is_single(kind: Any) -> bool:
    return bool(kind.bitwidth == 32)


def _precision(kind: Any) -> Precision:
    return SINGLE if _is_single(kind) else DOUBLE


def _floating(kind: Any) -> Any:
    return types.float32 if _is_single(kind) else types.float64


@instruction
def like(context: Any, model: Any, value: Any) -> Any:
    """Narrow (or widen) an integer to the integer type of `model`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[1], signature.args[1], signature.return_type)

    value = getattr(value, "literal_type", value)
    return model(model, value), emit


@instruction
def floating(context: Any, value: Any) -> Any:
    """Round an integer to the floating-point type of its own width."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = context.get_value_type(signature.return_type)
        convert = builder.sitofp if signature.args[0].signed else builder.uitofp
        return convert(arguments[0], target)

    return _floating(value)(value), emit


@instruction
def signed(context: Any, value: Any) -> Any:
    """Read an unsigned integer as a signed one."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return (types.int32 if _is_single(value) else types.int64)(value), emit


@instruction
def pattern_of(context: Any, value: Any) -> Any:
    """Read the bits of a floating-point number as a signed integer."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return (types.int32 if _is_single(value) else types.int64)(value), emit


@instruction
def number_from(context: Any, pattern: Any) -> Any:
    """Read the bits of an integer as a floating-point number."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return _floating(pattern)(pattern), emit


@instruction
def constant(context: Any, model: Any, name: Any) -> Any:
    """Return a number, or an attribute of the precision of `model`'s width, as a value of `model`'s type."""
    text = name.literal_value
    fact = getattr(_precision(model), text, None)
    value = float(text) if fact is None else fact

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exact = value if isinstance(model, types.Float) else int(value)
        return context.get_constant(signature.return_type, exact)

    return model(model, name), emit


@instruction
def polynomial(context: Any, x: Any, name: Any) -> Any:
    """Evaluate a polynomial of the precision of `x` by Horner's rule: a product, a sum, a product, a sum."""
    coefficients = getattr(_precision(x), name.literal_value)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total = context.get_constant(x, coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = builder.fadd(builder.fmul(total, arguments[0]), context.get_constant(x, coefficient))
        return total

    return x(x, name), emit
