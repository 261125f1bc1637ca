"""Six functions, one for each way to start a network, for those who want to see the difference in a line.

They work on every layer that has weights: convolutions, attention and recurrent layers as well as linear ones. Each
returns the model that it was given, and takes a seed.
"""

from __future__ import annotations

from torch import nn

from fanin import gains, recipes
from fanin.applying import apply
from fanin.errors import RecipeError, compose, nearest
from fanin.graph import Graph, ParameterNode
from fanin.plans import Plan
from fanin.recipes.classic import everywhere
from fanin.schemes import Normal, Orthogonal, Scheme, VarianceScaling, Zeros, xavier_normal, xavier_uniform
from fanin.tracing.modules import graph_of

INITIALIZATIONS = ("he", "xavier", "orthogonal")


def zero_initialization(model: nn.Module) -> nn.Module:
    """Write 0 into every parameter, to see what symmetry does.

    All units of a layer then compute the same output and receive the same gradient, now and after any number of steps.

    >>> model = zero_initialization(nn.Linear(3, 2))
    >>> model.weight.abs().sum().item()
    0.0
    """
    return _write(model, Plan.of(graph_of(model), "zero", lambda _: (Zeros(), "zero for every parameter")), seed=0)


def random_normal_initialization(model: nn.Module, mean: float = 0.0, std: float = 0.01, *, seed: int = 0) -> nn.Module:
    """Write N(mean, std²) into every parameter.

    The symmetry is broken, but with a small std the signal shrinks at every layer of a deep network.
    """
    scheme = Normal(std, mean)
    return _write(model, Plan.of(graph_of(model), "normal", lambda _: (scheme, "the same normal everywhere")), seed)


def xavier_initialization(model: nn.Module, gain: float = 1.0, *, seed: int = 0) -> nn.Module:
    """Write N(0, 2·gain²/(fan_in + fan_out)) into weights and 0 into biases (Glorot & Bengio 2010).

    For linear, tanh and sigmoid layers: the variance is kept forward and backward.
    """
    return _weights(model, "xavier", xavier_normal(gain), seed)


def he_initialization(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Write N(0, 2/fan_in) into weights and 0 into biases (He et al. 2015).

    For ReLU layers, each of which halves the second moment: the factor 2 restores it.

    >>> model = he_initialization(nn.Sequential(nn.Linear(1000, 1000), nn.ReLU()))
    >>> round(model[0].weight.std().item(), 3)
    0.045
    """
    return _weights(model, "he", VarianceScaling(2.0), seed)


def orthogonal_initialization(model: nn.Module, gain: float = 1.0, *, seed: int = 0) -> nn.Module:
    """Write ``gain`` times an orthogonal matrix into weights and 0 into biases (Saxe et al. 2014).

    All singular values are ``gain``, so that lengths are kept through any depth and over any time.
    """
    return _weights(model, "orthogonal", Orthogonal(gain), seed)


def initialize_model(
    model: nn.Module, activation: str = "relu", initialization: str = "he", *, seed: int = 0
) -> nn.Module:
    """Write the start that suits an activation; biases are 0.

    Args:
        model: any module.
        activation: a name that `fanin.gains` knows.
        initialization: ``he``: normal, variance gain²/fan_in with the activation's gain; ``xavier``: normal for tanh
            and sigmoid, uniform otherwise; ``orthogonal``. ``kaiming`` and ``glorot`` are other names of the first two.
        seed: any integer.

    Raises:
        RecipeError: the initialization is not one of these.
        SchemeError: the activation is unknown; the message names the nearest.
    """
    kind = recipes.ALIASES.get(initialization, initialization)
    scale = 1 / gains.moments(activation).second_moment
    if kind == "he":
        scheme: Scheme = VarianceScaling(scale)
    elif kind == "xavier":
        scheme = xavier_normal() if activation in ("tanh", "sigmoid") else xavier_uniform()
    elif kind == "orthogonal":
        scheme = Orthogonal()
    else:
        known = (*INITIALIZATIONS, "kaiming", "glorot")
        raise RecipeError(
            compose(
                f"initialization={initialization!r}",
                f"one of {', '.join(known)}",
                nearest(initialization, known),
                'initialize_model(model, activation="relu", initialization="he")',
            )
        )
    return _weights(model, kind, scheme, seed)


def _weights(model: nn.Module, name: str, scheme: Scheme, seed: int) -> nn.Module:
    def rule(_: ParameterNode, __: str | None) -> tuple[Scheme, str]:
        return scheme, f"{scheme.label} for every weight"

    graph: Graph = graph_of(model)
    return _write(model, everywhere(graph, name, rule), seed)


def _write(model: nn.Module, plan: Plan, seed: int) -> nn.Module:
    apply(plan, model, seed=seed)
    return model
