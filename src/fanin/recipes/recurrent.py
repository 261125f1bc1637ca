"""Recurrent networks as Keras and as torch start them."""

from __future__ import annotations

import math

from fanin.graph import Graph, ParameterNode, Role
from fanin.recipes.rules import (
    NORM_SCALES,
    NORM_SHIFTS,
    ZERO_BIASES,
    Decision,
    PublishedRecipe,
    Rule,
    enter,
    give,
    is_named,
    published,
    role,
    torch_default,
    without_stride,
)
from fanin.schemes import Ones, Orthogonal, Packed, Uniform, VarianceScaling, Zeros, xavier_uniform


def lstm_keras() -> PublishedRecipe:
    """LSTM, GRU and RNN as Keras starts them: Xavier uniform inputs, orthogonal recurrence, forget gate bias 1.

    - input weights U(±√(6/(fan_in + G·H))), G gates of H units: Keras takes the packed matrix for one;
    - recurrent weights with orthonormal columns as a packed (G·H, H) matrix: here G orthogonal matrices ÷ √G;
    - the forget gate's bias 1 (on one of torch's two biases), all other biases 0;
    - dense layers and convolutions Xavier uniform, embeddings U(±0.05).

    Raises:
        RecipeError: from the recipe, for a model without recurrent weights.

    Source: Keras (Chollet 2015); the bias after Jozefowicz, Zaremba & Sutskever 2015.

    Differs from Keras in how the packed recurrent matrix is drawn: its columns are orthonormal as there, but each gate
    is also 1/√G times an isometry, where a gate cut from a larger orthogonal matrix is not. Entries have the same std.
    """

    def rules(graph: Graph) -> list[Rule]:
        tables = Uniform(-0.05, 0.05), "embedding: U(±0.05)"
        return [
            Rule("recurrent weights", lambda n: n.role == Role.RECURRENT and n.feedback, _feedback, required=True),
            Rule("input weights of recurrent layers", role(Role.RECURRENT), _packed_xavier),
            Rule("forget gate biases", _has_forget_gate, give(*_FORGET)),
            Rule("dense weights", role(Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE), _dense),
            Rule("embeddings", role(Role.EMBEDDING), give(*tables)),
            ZERO_BIASES,
            NORM_SCALES,
            NORM_SHIFTS,
        ]

    return published("lstm-keras", rules, "chollet2015", "glorot2010", "jozefowicz2015")


_FORGET = (
    Packed.of(i=Zeros(), f=Ones(), g=Zeros(), o=Zeros()),
    "the forget gate's bias starts at one, on one of torch's two biases; the others at zero",
)


def _has_forget_gate(node: ParameterNode) -> bool:
    gates = tuple(block.name for block in node.axes.blocks)
    return node.role == Role.BIAS and gates == ("i", "f", "g", "o") and not is_named(node, "*bias_hh*")


def _feedback(node: ParameterNode) -> Decision:
    gates = max(len(node.axes.blocks), 1)
    shared = f", ÷ √{gates} since its {gates} gates are columns of one orthonormal matrix" if gates > 1 else ""
    return Orthogonal(1 / math.sqrt(gates)), f"recurrent: orthogonal{shared}"


def _packed_xavier(node: ParameterNode) -> Decision:
    fan_in, rows = node.fans.fan_in, node.shape[0]
    bound = math.sqrt(6 / (fan_in + rows))
    return Uniform(-bound, bound), f"Xavier uniform of the packed matrix, as Keras takes it: fans {fan_in:g} and {rows}"


def _dense(node: ParameterNode) -> Decision:
    return without_stride(node, xavier_uniform()), "Xavier uniform, Keras' default for dense layers and convolutions"


def lstm_torch() -> PublishedRecipe:
    """LSTM, GRU and RNN as torch starts them: everything U(±1/√H), both biases included.

    The forget gate then starts near σ(0) = ½, which halves what a cell remembers at every step.

    Raises:
        RecipeError: from the recipe, for a model without recurrent weights.

    Source: torch, ``RNNBase.reset_parameters``.
    """

    def recurrent(node: ParameterNode) -> Decision:
        if node.default is not None:
            return node.default, f"U(±1/√H) as {node.module_type}'s constructor draws"
        return VarianceScaling(1 / 3, "fan_out", "uniform"), "U(±1/√H)"

    def rules(graph: Graph) -> list[Rule]:
        kinds = (Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE, Role.BIAS, Role.EMBEDDING)
        return [
            Rule("recurrent weights", role(Role.RECURRENT), recurrent, required=True),
            Rule("other layers", role(*kinds), torch_default),
            NORM_SCALES,
            NORM_SHIFTS,
        ]

    return published("lstm-torch", rules, "pytorch")


enter(
    "lstm-keras",
    lstm_keras(),
    "LSTM, GRU and RNN as Keras starts them",
    "inputs Xavier uniform; recurrence orthogonal ÷ √gates; forget bias 1; dense Xavier uniform; embeddings U(±0.05)",
)
enter("lstm-torch", lstm_torch(), "LSTM, GRU and RNN as torch starts them", "weights and biases U(±1/√H)")
