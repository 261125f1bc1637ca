"""The activations that have a name: torch's, the gated ones, and those of the literature.

Each is a function that builds an `Activation` from parameters with torch's names and defaults.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np

from fanin.gains.activations import Activation, ClosedForm, Parameter, gated
from fanin.gains.quadrature import Array

Builder = Callable[..., Activation]

BUILDERS: dict[str, Builder] = {}
"""Canonical name → builder."""

ALIASES: dict[str, str] = {}
"""Every accepted spelling, normalised → canonical name."""

_erf = np.frompyfunc(math.erf, 1, 1)


def normalise(name: str) -> str:
    """One spelling for ``LeakyReLU``, ``leaky_relu`` and ``leaky-relu``.

    >>> normalise("LeakyReLU")
    'leakyrelu'
    """
    return "".join(character for character in name.lower() if character.isalnum())


def build(canonical: str, parameters: dict[str, Parameter]) -> Activation:
    """Build a named activation; its record keeps the parameters that it was given or that have defaults."""
    builder = BUILDERS[canonical]
    bound = inspect.signature(builder).bind(**parameters)
    bound.apply_defaults()
    activation = builder(**bound.arguments)
    return _with_parameters(activation, canonical, tuple(bound.arguments.items()))


def erf(x: Array) -> Array:
    """The error function, element by element (numpy has none)."""
    values: Array = np.asarray(_erf(x), dtype=np.float64)
    return values


def sigmoid(x: Array) -> Array:
    """``1/(1 + e^−x)``, without overflow."""
    values: Array = 0.5 * (1.0 + np.tanh(0.5 * x))
    return values


def _with_parameters(activation: Activation, name: str, parameters: tuple[tuple[str, Parameter], ...]) -> Activation:
    from dataclasses import replace

    return replace(activation, name=name, parameters=parameters)
