"""From whatever a caller means by an activation to an `Activation`.

Nothing here imports torch. A torch callable can only reach this module when torch is already loaded, so it is looked
up among the loaded modules.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fanin.errors import SchemeError, compose
from fanin.gains.activations import Activation, Parameter, canonical_name, mixes_elements, named, parameter_names
from fanin.gains.quadrature import Array, ArrayFunction, find_kinks

ActivationLike = str | Activation | Callable[[Any], Any]
"""A name, an `Activation`, an element-wise callable of a numpy array or torch tensor, or an activation module."""

_PROBE: Array = np.linspace(-math.e, math.sqrt(3), 37)
_SINGLE_PRECISION_TOLERANCE = 3e-4


def resolve_activation(activation: ActivationLike, **parameters: Any) -> Activation:
    """The `Activation` behind a name, a callable or a module.

    Modules of torch.nn are recognised by class and attributes, and have closed forms where their names have; every
    other callable is evaluated. A module's own weights are read, never changed; its mode is left as it is.

    Raises:
        SchemeError: an unknown name, parameters for something that is not a name, or a callable that is not a
            deterministic function of each element alone.

    >>> str(resolve_activation("LeakyReLU", negative_slope=0.1))
    'leaky_relu(negative_slope=0.1)'
    """
    if isinstance(activation, str):
        return named(activation, parameters)
    if parameters:
        given = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
        why = "parameters are those of a named activation; a callable has its own inside"
        raise SchemeError(compose(f"{_label(activation)} with {given}", "no parameters beside a callable", why))
    if isinstance(activation, Activation):
        return activation
    known = _known_to_torch(activation)
    return known if known else from_callable(activation)


def from_callable(
    function: Callable[[Any], Any], name: str | None = None, kinks: Sequence[float] | None = None
) -> Activation:
    """An `Activation` from an element-wise function of a numpy array, a torch tensor, or a module.

    The function is tried on a float64 array and, should it not take one, on a torch tensor of doubles.

    Args:
        function: deterministic, element by element, finite on [−12, 12].
        name: for display; its own name if None.
        kinks: where it is not smooth; searched for on [−12, 12] if None.

    Raises:
        SchemeError: it fails on arrays, changes their shape, mixes elements, or is random.

    >>> ramp = from_callable(lambda x: np.clip(x, 0.0, 1.0), name="ramp")
    >>> ramp.kinks
    (0.0, 1.0)

    It stops being true for features narrower than about 0.02, which no node may hit.
    """
    label = name or _label(function)
    evaluate, values = _array_function(function, label)
    _check_element_wise(evaluate, values, label)
    single = bool(np.array_equal(values, values.astype(np.float32)))
    tolerance = _SINGLE_PRECISION_TOLERANCE if single else 1e-11
    found, continuous = find_kinks(evaluate, tolerance)
    return Activation(
        name=label,
        function=evaluate,
        kinks=found if kinks is None else tuple(kinks),
        continuous=continuous,
        homogeneous=_is_homogeneous(evaluate, values, tolerance),
        tolerance=tolerance,
    )


def _label(function: object) -> str:
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _known_to_torch(function: object) -> Activation | None:
    """A module or function of torch itself, by its name; None for everybody else's."""
    owner = function if hasattr(function, "__name__") else type(function)
    home = str(getattr(owner, "__module__", "") or "")
    label = _label(function)
    canonical = canonical_name(label)
    if home.split(".")[0] != "torch" or (canonical is None and not mixes_elements(label)):
        return None
    if canonical is None:
        return named(label)
    parameters: dict[str, Parameter] = {}
    for key in parameter_names(canonical):
        if hasattr(function, key):
            parameters[key] = _as_parameter(function, key)
    return named(label, parameters)


def _as_parameter(module: object, key: str) -> Parameter:
    value: Any = getattr(module, key)
    if not hasattr(value, "detach"):
        return value if isinstance(value, str) else float(value)
    if value.device.type == "meta":
        return float(getattr(module, "init", 0.25))
    slopes = np.asarray(value.detach().double().cpu().numpy()).ravel()
    # One slope a channel: their root mean square has the second moments, and so the gains, of the whole layer.
    return float(slopes[0]) if slopes.size == 1 else math.sqrt(float(np.mean(slopes**2)))


def _array_function(function: Callable[[Any], Any], label: str) -> tuple[ArrayFunction, Array]:
    """The function on float64 arrays, and its values on the probe."""
    torch = sys.modules.get("torch")
    candidates: list[ArrayFunction] = []
    if torch is None or not isinstance(function, torch.nn.Module):
        candidates.append(lambda x: np.asarray(function(x.copy()), dtype=np.float64))
    if torch is not None:
        candidates.append(_through_torch(function, torch))
    cause: Exception | None = None
    for candidate in candidates:
        try:
            values = candidate(_PROBE)
        except Exception as error:  # whatever a stranger's function raises on an array
            cause = error
            continue
        if values.shape == _PROBE.shape:
            return candidate, values
        cause = ValueError(f"it returned shape {values.shape} for an input of shape {_PROBE.shape}")
    raise SchemeError(
        compose(
            f"the activation {label}",
            "an element-wise function of a numpy array or a torch tensor",
            why=f"{type(cause).__name__}: {cause}",
            instead="np.vectorize(f) for a function of one number; the name for a gated product, e.g. 'swiglu'",
        )
    ) from cause


def _through_torch(function: Callable[[Any], Any], torch: ModuleType) -> ArrayFunction:
    call = function
    if isinstance(function, torch.nn.Module):
        # A copy, so that double precision and whatever forward keeps stay out of the caller's module.
        call = copy.deepcopy(function).double().cpu().forward

    def evaluate(x: Array) -> Array:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            values: Array = call(torch.from_numpy(x.copy())).detach().double().numpy()
        return values

    return evaluate


def _is_homogeneous(function: ArrayFunction, values: Array, tolerance: float) -> bool:
    """Whether ``f(λx) = λf(x)`` from an eighth to eight times the probe, to within rounding."""
    return all(
        np.allclose(function(factor * _PROBE), factor * values, rtol=tolerance, atol=0.0)
        for factor in (0.125, 0.7, 8.0)
    )


def _check_element_wise(function: ArrayFunction, values: Array, label: str) -> None:
    backwards, first = function(_PROBE[::-1].copy())[::-1], function(_PROBE[:1])
    same = np.allclose(values, backwards, rtol=1e-5, equal_nan=True)
    if not (same and np.allclose(values[:1], first, rtol=1e-5, equal_nan=True)):
        why = "it gave an element another value in other company: it mixes elements, or is random"
        raise SchemeError(compose(f"the activation {label}", "a deterministic function of each element alone", why))
