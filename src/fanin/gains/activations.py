"""The record of an activation, and the register of those that have a name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from fanin.errors import SchemeError, compose, nearest
from fanin.gains.quadrature import Array, ArrayFunction

Parameter = float | str
"""The value of an activation's parameter: a number, or a word such as ``approximate="tanh"``."""

Builder = Callable[..., "Activation"]


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
        closed_form: the exact moments of φ(z), z ~ N(0, σ²), as a function of σ; of the gate, when gated.
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
        pairs = (f"{key}={value if isinstance(value, str) else format(value, 'g')}" for key, value in self.parameters)
        shown = ", ".join(pairs)
        return f"{self.name}({shown})" if shown else self.name

    @property
    def holds(self) -> str:
        """Where its gain stops being true, in a sentence."""
        if self.gated:
            where = (
                "at standard deviation 1 of two independent pre-activations: the product's scale is about quadratic "
                "in theirs, and it is not Gaussian"
            )
        elif self.homogeneous:
            where = "at any scale: positively homogeneous"
        else:
            where = "at the given standard deviation only: not homogeneous"
        return where if self.continuous else f"{where}; φ jumps, so φ' is taken almost everywhere"


def gated(gate: Activation, name: str) -> Activation:
    """The gated product ``gate(u)·v`` of two independent pre-activations.

    >>> import numpy as np
    >>> gated(Activation("tanh", np.tanh), "tanhglu").gated
    True

    Source: Dauphin et al. 2017 (GLU, arXiv:1612.08083); Shazeer 2020 (its variants, arXiv:2002.05202).
    """
    return replace(gate, name=name, gated=True, homogeneous=False)


_MIXING = frozenset(
    ("softmax", "softmin", "softmax2d", "logsoftmax", "gumbelsoftmax", "multiheadattention", "maxout", "layernorm")
)

_builders: dict[str, Builder] = {}
_spellings: dict[str, str] = {}


def register(name: str, *aliases: str) -> Callable[[Builder], Builder]:
    """Give a builder its canonical name and its other spellings."""

    def keep(builder: Builder) -> Builder:
        _builders[name] = builder
        for spelling in (name, *aliases):
            _spellings[_normalise(spelling)] = name
        return builder

    return keep


def names() -> tuple[str, ...]:
    """The canonical names of all activations known by name, sorted."""
    return tuple(sorted(_builders))


def canonical_name(spelling: str) -> str | None:
    """The canonical name behind any spelling, or None.

    >>> canonical_name("LeakyReLU")
    'leaky_relu'
    """
    return _spellings.get(_normalise(spelling))


def mixes_elements(spelling: str) -> bool:
    """Whether this is the name of something that is no function of one element, such as a softmax.

    >>> mixes_elements("LogSoftmax")
    True
    """
    return _normalise(spelling) in _MIXING


def parameter_names(canonical: str) -> tuple[str, ...]:
    """The parameters that a named activation takes; they are torch's attribute names."""
    return tuple(inspect.signature(_builders[canonical]).parameters)


def needs_parameters(canonical: str) -> bool:
    """Whether a named activation has parameters without a default, as torch's threshold has."""
    parameters = inspect.signature(_builders[canonical]).parameters.values()
    return any(parameter.default is inspect.Parameter.empty for parameter in parameters)


def named(spelling: str, parameters: Mapping[str, Parameter] | None = None) -> Activation:
    """The activation of that name, with those parameters.

    Raises:
        SchemeError: an unknown name, an unknown or missing parameter, or a value that is not finite.

    >>> str(named("lrelu", {"negative_slope": 0.2}))
    'leaky_relu(negative_slope=0.2)'
    """
    canonical = canonical_name(spelling)
    if mixes_elements(spelling):
        why = "it mixes the elements of a vector, so no moment of one Gaussian describes it and it has no gain"
        raise SchemeError(compose(f"the activation {spelling!r}", "an element-wise activation", why, "gain 1"))
    if canonical is None:
        why = "fanin computes gains for these names, any callable of an array, and any element-wise module"
        raise SchemeError(compose(f"the activation {spelling!r}", "a known name", why, nearest(spelling, names())))
    try:
        bound = inspect.signature(_builders[canonical]).bind(**(parameters or {}))
    except TypeError as error:
        takes = inspect.signature(_builders[canonical]).replace(return_annotation=inspect.Signature.empty)
        given = ", ".join(f"{key}={value!r}" for key, value in (parameters or {}).items()) or "no parameters"
        raise SchemeError(compose(f"{canonical} with {given}", f"{canonical}{takes}", why=f"{error}")) from None
    bound.apply_defaults()
    for key, value in bound.arguments.items():
        if not isinstance(value, str) and not math.isfinite(value):
            raise SchemeError(compose(f"{canonical} with {key}={value!r}", f"a finite {key}"))
    return replace(_builders[canonical](**bound.arguments), name=canonical, parameters=tuple(bound.arguments.items()))


def _normalise(spelling: str) -> str:
    """One spelling for ``LeakyReLU``, ``leaky_relu`` and ``leaky-relu``."""
    return "".join(character for character in spelling.lower() if character.isalnum())
