"""Different schemes for the blocks of one packed parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fanin.errors import SchemeError, compose, nearest
from fanin.fans import Axes, Fans, Shape
from fanin.schemes.base import Expected, Scheme, register


@register
@dataclass(frozen=True, slots=True)
class Packed(Scheme):
    """A scheme for each named block: the forget gate's bias 1 and the others' 0, or a query of its own scale.

    >>> from fanin.schemes import Ones, Zeros
    >>> Packed.of(i=Zeros(), f=Ones(), g=Zeros(), o=Zeros()).label
    'zeros, f: ones'
    """

    parts: tuple[tuple[str, Scheme], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.parts]
        if not names or len(set(names)) != len(names):
            raise SchemeError(compose(f"Packed with blocks {names}", "distinct block names, at least one"))
        if any(isinstance(scheme, Packed) for _, scheme in self.parts):
            raise SchemeError(compose("Packed within Packed", "one scheme a block"))

    @classmethod
    def of(cls, parts: Mapping[str, Scheme] | None = None, /, **more: Scheme) -> Packed:
        """Build from a mapping of block names, or from keywords."""
        return cls(tuple({**(parts or {}), **more}.items()))

    @property
    def elementwise_parts(self) -> bool:
        """Whether every block's scheme draws each element on its own."""
        return all(scheme.elementwise for _, scheme in self.parts)

    def part(self, block: str) -> Scheme:
        """The scheme of one block.

        Raises:
            SchemeError: there is no scheme for that block.
        """
        for name, scheme in self.parts:
            if name == block:
                return scheme
        raise SchemeError(f"no scheme for block {block!r}; {nearest(block, [name for name, _ in self.parts])}")

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        raise SchemeError(compose("a packed scheme without blocks", "axes with blocks and the weight's shape"))

    def scaled(self, factor: float) -> Packed:
        return Packed(tuple((name, scheme.scaled(factor)) for name, scheme in self.parts))

    @property
    def label(self) -> str:
        labels = [scheme.label for _, scheme in self.parts]
        common = max(labels, key=labels.count)
        if len(labels) > 1 and labels.count(common) == 1:
            return ", ".join(f"{name}: {scheme.label}" for name, scheme in self.parts)
        others = [f"{name}: {scheme.label}" for name, scheme in self.parts if scheme.label != common]
        return ", ".join([common, *others])

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for _, scheme in self.parts for key in scheme.sources))
