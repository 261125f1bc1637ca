"""Constants, and the scheme that leaves a parameter alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanin.errors import SchemeError, compose
from fanin.fans import Axes, Fans, Shape
from fanin.schemes.base import Expected, Scheme, register, require_number


@register
@dataclass(frozen=True, slots=True)
class Constant(Scheme):
    """Every element is ``value``.

    Right for biases (0) and the scales of norms (1). For the weights of two consecutive layers it is fatal: all units
    of a layer compute the same and receive the same gradient, and never part.

    >>> Constant(0.5).expected(Fans(4, 4))
    Expected(mean=0.5, std=0.0)
    """

    value: float

    def __post_init__(self) -> None:
        require_number("Constant", "value", self.value)

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        return Expected(self.value, 0.0)

    def scaled(self, factor: float) -> Constant:
        return Constant(self.value * factor)

    @property
    def label(self) -> str:
        return {0.0: "zeros", 1.0: "ones"}.get(self.value, f"constant {self.value:.4g}")


def Zeros() -> Constant:
    """Every element is 0, the start of nearly every bias.

    >>> Zeros().label
    'zeros'
    """
    return Constant(0.0)


def Ones() -> Constant:
    """Every element is 1, the start of a norm's scale."""
    return Constant(1.0)


@register
@dataclass(frozen=True, slots=True)
class Keep(Scheme):
    """The parameter stays as its constructor made it.

    What a recipe does not understand (a state-space ``A_log``, a logit scale, a table of frequencies) it keeps, and
    says so in the plan. On the meta device there is nothing to keep, which is an error when the plan is applied.
    """

    def _moments(self, fans: Fans, shape: Shape | None, axes: Axes) -> Expected:
        return Expected(math.nan, math.nan)

    def scaled(self, factor: float) -> Keep:
        raise SchemeError(
            compose(
                f"a kept parameter, to be scaled by {factor:g}",
                "a scheme that draws values",
                "what the constructor wrote is not known to the plan",
                "plan.replace(name, fanin.schemes.Normal(std=…))",
            )
        )

    @property
    def label(self) -> str:
        return "kept"
