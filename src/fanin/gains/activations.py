"""The record of an activation: a function of one variable, and what is known about it beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from fanin.gains.quadrature import Array, ArrayFunction

Parameter = float | str
"""The value of an activation's parameter: a number, or a word such as ``approximate="tanh"``."""


class ClosedForm(NamedTuple):
    """Exact moments at one standard deviation; None where no closed form is known."""

    mean: float | None = None
    second_moment: float | None = None
    derivative_second_moment: float | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise non-linearity φ, or the gated product ``φ(u)·v`` of two independent pre-activations.

    Args:
        name: as torch.nn.functional spells it, where torch has it.
        function: φ, of a float64 array, element by element. Of a gated product, the gate alone.
        kinks: where φ is not smooth.
        continuous: False where φ jumps at a kink; φ' is then taken almost everywhere.
        homogeneous: ``φ(λz) = λφ(z)`` for all λ > 0, so a gain holds at every scale of z.
        gated: the product ``φ(u)·v``, as in GLU, SwiGLU, GEGLU.
        closed_form: the exact moments of φ(z), z ~ N(0, σ²), as a function of σ.
        parameters: what φ was built with, for display.
        tolerance: of the quadrature, larger for functions computed in single precision.

    Calling it evaluates φ:

    >>> import numpy as np
    >>> relu = Activation("relu", lambda x: np.maximum(x, 0.0), kinks=(0.0,), homogeneous=True)
    >>> relu(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    name: str
    function: ArrayFunction
    kinks: tuple[float, ...] = ()
    continuous: bool = True
    homogeneous: bool = False
    gated: bool = False
    closed_form: Callable[[float], ClosedForm] | None = None
    parameters: tuple[tuple[str, Parameter], ...] = ()
    tolerance: float = 1e-11

    def __call__(self, x: Array) -> Array:
        """φ(x)."""
        return self.function(x)

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in self.parameters)
        return f"{self.name}({shown})" if shown else self.name

    @property
    def holds(self) -> str:
        """Where its gain stops being true, in a sentence."""
        if self.gated:
            first = (
                "at standard deviation 1 of two independent pre-activations; the product is not Gaussian and "
                "its scale is about quadratic in theirs"
            )
        elif self.homogeneous:
            first = "at any scale: positively homogeneous"
        else:
            first = "at the given standard deviation only: not homogeneous"
        return first if self.continuous else f"{first}; jumps, so the derivative is taken almost everywhere"


def gated(gate: Activation, name: str) -> Activation:
    """The gated product ``gate(u)·v`` of two independent pre-activations.

    >>> import numpy as np
    >>> gated(Activation("tanh", np.tanh), "tanhglu").gated
    True

    Source: Dauphin et al. 2017 (GLU, arXiv:1612.08083); Shazeer 2020 (its variants, arXiv:2002.05202).
    """
    return replace(gate, name=name, gated=True, homogeneous=False)
