"""What every scheme is: a frozen record that validates when built, knows its moments, and goes to JSON and back."""

from __future__ import annotations

import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeGuard, TypeVar

from fanin.errors import SchemeError, compose, nearest
from fanin.fans import Axes, Fans, Shape

MATRIX = Axes()


class Expected(NamedTuple):
    """The mean and the standard deviation over the entries of a filled tensor."""

    mean: float
    std: float


class Scheme(ABC):
    """The rule for one tensor, as data.

    A scheme knows its mean and standard deviation for given fans; it does not sample. Schemes compare equal by value,
    hash, and survive JSON:

    >>> import fanin.schemes as schemes
    >>> schemes.Scheme.from_dict(schemes.Normal(std=0.02).to_dict()) == schemes.Normal(std=0.02)
    True
    """

    elementwise: ClassVar[bool] = True
    """Each element is drawn on its own, so that any slice can be drawn without the rest."""

    def expected(self, fans: Fans, shape: Shape | None = None, axes: Axes = MATRIX) -> Expected:
        """The mean and standard deviation that the entries will have, up to sampling.

        Args:
            fans: of the weight, or of the block that is filled.
            shape: of the weight; matrix-wide schemes need it where the weight is not a plain ``(fan_out, fan_in)``
                matrix. The blocks of a packed weight are pooled, each with its own fans.
            axes: the parts that the shape's axes play.
        """
        if shape is None or not axes.blocks:
            return self._moments(fans, shape, axes)
        each = axes.block_fans(shape)
        total = sum(block.size for block in axes.blocks)
        mean = second = 0.0
        for block in axes.blocks:
            part = self.part(block.name)._moments(each[block.name], *axes.of_block(block, shape))
            mean += part.mean * block.size / total
            second += (part.std**2 + part.mean**2) * block.size / total
        return Expected(mean, math.sqrt(max(second - mean * mean, 0.0)))

    def part(self, block: str) -> Scheme:
        """The scheme of one block of a packed weight."""
        return self

    @abstractmethod
    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        """`expected` for a weight that is not packed."""

    @abstractmethod
    def scaled(self, factor: float) -> Scheme:
        """The scheme whose values are ``factor`` times this one's."""

    def resolve(self, fans: Fans) -> Scheme:
        """The same rule with the fans put in: an element-wise scheme that no longer depends on them."""
        return self

    @property
    @abstractmethod
    def label(self) -> str:
        """A few words for a table: ``he normal``, ``orthogonal × 1.4142``."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The keys of the publications that this scheme comes from (see `fanin.citations`)."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """The scheme as JSON types, with its kind under ``"scheme"``."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"scheme": type(self).__name__, **fields}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Scheme:
        """The inverse of `to_dict`.

        Raises:
            SchemeError: an unknown kind, an unknown or missing field, or a value that the scheme refuses.
        """
        if not isinstance(record, Mapping) or not isinstance(record.get("scheme"), str):
            raise SchemeError(compose(f"{record!r}", 'an object with the scheme\'s name under "scheme"'))
        kind = record["scheme"]
        if kind not in REGISTRY:
            raise SchemeError(compose(f"scheme {kind!r}", "a registered scheme", nearest(kind, REGISTRY)))
        fields = {key: value for key, value in record.items() if key != "scheme"}
        return REGISTRY[kind]._from_fields(fields)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in fields:
            if name not in known:
                raise SchemeError(compose(f"field {name!r} of {cls.__name__}", "a field it has", nearest(name, known)))
        try:
            return cls(**{name: _hashable(value) for name, value in fields.items()})
        except TypeError as error:
            raise SchemeError(compose(f"{cls.__name__} with {sorted(fields)}", str(error))) from None


S = TypeVar("S", bound=type[Scheme])
REGISTRY: dict[str, type[Scheme]] = {}


def register(scheme: S) -> S:
    """Make a scheme known to JSON, to the laws that tests run on every scheme, and to ``fanin schemes``."""
    REGISTRY[scheme.__name__] = scheme
    return scheme


def require_number(scheme: str, field: str, value: object, *, minimum: float = -math.inf) -> None:
    """Refuse, when a scheme is built, what is not a finite number of at least ``minimum``."""
    if not is_number(value) or value < minimum:
        bound = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise SchemeError(compose(f"{scheme}({field}={shown(value)})", f"a finite number{bound}"))


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number within the range of floats.

    >>> is_number(2), is_number(True), is_number(10**400), is_number("2")
    (True, False, False, False)
    """
    # Not math.isfinite, which fails on whole numbers beyond that range.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def shown(value: object) -> str:
    """A value for a message, whole numbers of hundreds of digits in words."""
    large = isinstance(value, int) and abs(value) > sys.float_info.max
    return "a whole number beyond the range of floats" if large else repr(value)


def require_choice(scheme: str, field: str, value: object, options: tuple[object, ...]) -> None:
    """Refuse, when a scheme is built, what is not one of the options."""
    if value not in options:
        words = tuple(map(str, options))
        raise SchemeError(
            compose(f"{scheme}({field}={value!r})", f"one of {', '.join(words)}", nearest(str(value), words))
        )


class Matrix(NamedTuple):
    """The matrix that a matrix-wide scheme fills, once for each group, block and stacked weight."""

    rows: int
    """Output features of one group."""
    columns: int
    """Input features of one group."""
    kernel: int
    """Kernel positions."""
    groups: int
    transposed: bool

    @property
    def flat(self) -> tuple[int, int]:
        """Rows and columns with the kernel flattened into the side that the layer sums over for each position."""
        if self.transposed:
            return self.rows * self.kernel, self.columns
        return self.rows, self.columns * self.kernel

    @property
    def entries(self) -> int:
        """The number of entries of one group."""
        return self.rows * self.columns * self.kernel


def matrix_of(fans: Fans, shape: Shape | None, axes: Axes) -> Matrix:
    """The matrix of a weight; without a shape the weight is taken for a ``(fan_out, fan_in)`` one."""
    if shape is None:
        return Matrix(int(fans.fan_out), int(fans.fan_in), 1, 1, False)
    rows = math.prod(shape[axis] for axis in axes.out_axis)
    columns = math.prod(shape[axis] for axis in axes.in_axis)
    kernel = math.prod(shape[axis] for axis in axes.kernel_axes(len(shape)))
    if axes.transposed:
        return Matrix(rows, columns // axes.groups, kernel, axes.groups, True)
    return Matrix(rows // axes.groups, columns, kernel, axes.groups, False)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Scheme):
        return value.to_dict()
    return value


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_hashable(part) for part in value)
    if isinstance(value, Mapping) and "scheme" in value:
        return Scheme.from_dict(value)
    return value


def require_scheme(value: object) -> Scheme:
    """The value, if it is a scheme.

    Raises:
        SchemeError: it is what makes one, the name of one, or something else.

    >>> from fanin.schemes import Zeros
    >>> require_scheme(Zeros()) == Zeros()
    True
    """
    if isinstance(value, Scheme):
        return value
    if callable(value):
        name = getattr(value, "__name__", "he_normal")
        given, instead = f"{name}, which makes one when it is called", f"fanin.schemes.{name}(…)"
    elif isinstance(value, str):
        given, instead = (
            f"{value!r}, a text",
            "fanin.schemes.he_normal(); `fanin schemes` lists them",
        )
    else:
        given, instead = f"{value!r}", "fanin.schemes.Constant(…), for a number"
    raise SchemeError(compose(given, "a scheme", instead=instead))
