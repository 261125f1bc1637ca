"""Which of torch's functions are measured, and as what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fanin.observations import Kind

_NAMES: dict[Kind, str] = {
    Kind.WEIGHT: (
        "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul bmm mm addmm "
        "baddbmm einsum __matmul__ __rmatmul__ _grouped_mm"
    ),
    Kind.EMBEDDING: "embedding embedding_bag",
    Kind.RECURRENT: "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    Kind.ACTIVATION: (
        "relu relu_ relu6 gelu silu silu_ elu elu_ selu selu_ celu celu_ leaky_relu leaky_relu_ prelu rrelu tanh tanh_ "
        "sigmoid sigmoid_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ softplus softsign mish "
        "mish_ logsigmoid threshold hardshrink softshrink tanhshrink glu erf sin cos"
    ),
    Kind.NORM: (
        "layer_norm batch_norm group_norm instance_norm rms_norm local_response_norm normalize sync_batch_norm"
    ),
    Kind.ATTENTION: "scaled_dot_product_attention softmax _softmax",
    Kind.SUM: "add add_ __add__ __iadd__ __radd__ sub sub_ __sub__ __isub__",
    Kind.PRODUCT: "mul mul_ __mul__ __imul__ __rmul__ multiply div div_ __div__ __truediv__ __itruediv__ true_divide",
    Kind.POOLING: (
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d boolean_dispatch mean"
    ),
    Kind.OTHER: "cat concat interpolate log_softmax pixel_shuffle index_add index_add_",
}

KINDS: dict[str, Kind] = {name: kind for kind, names in _NAMES.items() for name in names.split()}
"""The name of a torch function → what it does."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPOUTS = _words(
    "dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout alpha_dropout_ feature_alpha_dropout "
    "feature_alpha_dropout_ feature_dropout feature_dropout_"
)
"""Left out of a measured run: they would hide what the parameters do behind their own noise."""

CHANNELS_FIRST = _words(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm group_norm instance_norm "
    "local_response_norm sync_batch_norm"
)
"""Their units lie along axis 1."""

FEATURES_LAST = _words("linear bilinear layer_norm rms_norm embedding embedding_bag lstm gru addmm")
"""Their units lie along the last axis."""


def name_of(function: Callable[..., Any]) -> str:
    """A torch function's own name; the same for its spellings in torch, torch.Tensor and torch.nn.functional."""
    return getattr(function, "__name__", "")


_SPELLINGS = {
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "imul": "mul",
    "rmul": "mul",
    "multiply": "mul",
    "rmatmul": "matmul",
    "truediv": "div",
    "itruediv": "div",
    "true_divide": "div",
}


def plain(name: str) -> str:
    """Without the marks of operators and of writing in place.

    >>> plain("__iadd__"), plain("relu_")
    ('add', 'relu')
    """
    bare = name.strip("_")
    return _SPELLINGS.get(bare, bare)
