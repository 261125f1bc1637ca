"""What torch's operations do to a signal, in tables keyed by operation name with arguments named as in the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fanin.errors import TraceError, compose

Kind = Literal["move", "pool", "elementwise", "activation", "norm", "opaque"]


def words(text: str) -> tuple[str, ...]:
    """The words of a text, for tables that read better without a quote around each."""
    return tuple(text.split())


SHAPE_ONLY: dict[str, frozenset[str]] = {
    name: frozenset({"other"}) for name in ("reshape_as", "view_as", "expand_as", "type_as", "sum_to_size")
} | {
    name: frozenset({"self"})
    for name in words(
        "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones "
        "new_empty new_full new_empty_strided bernoulli"
    )
}
"""Arguments that give a shape, not a signal."""

LOOKUPS = frozenset({"index", "index_select", "gather", "take_along_dim"})
"""Moves that pick places by number."""

FILLED = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
"""What has a shape and no numbers yet."""

SELECTING = frozenset(
    {"chunk", "split", "split_with_sizes", "tensor_split", "unbind", "select", "slice", "narrow", "glu", "index"}
    | {"index_select", "gather", "hsplit", "vsplit", "dsplit", "getitem", "split_copy", "unbind_copy", "take_along_dim"}
)
"""Moves that can separate the parts of a packed weight."""

VIEWS = frozenset(
    {"view", "reshape", "permute", "transpose", "t", "numpy_T", "mT", "mH", "adjoint", "matrix_H", "unsqueeze"}
    | {"squeeze", "flatten", "unflatten", "expand", "contiguous", "clone", "detach", "alias", "to", "type_as"}
    | {"view_as", "reshape_as", "expand_as", "movedim", "float", "half", "bfloat16", "double", "positive", "ravel"}
    | {"lift_fresh", "lift", "real", "view_as_real", "view_as_complex", "swapaxes", "as_strided", "resolve_conj"}
    | {"resolve_neg", "conj", "diagonal", "unfold", "_conj", "broadcast_to", "atleast_1d", "atleast_2d", "atleast_3d"}
    | {"convert_element_type", "_to_dense", "to_dense", "cpu", "sum_to_size", "squeeze_copy", "view_copy"}
)

MOVES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(VIEWS | SELECTING - {"glu"}, ("self",)),
    **dict.fromkeys(("roll", "flip", "rot90", "fliplr", "flipud", "repeat", "tile", "repeat_interleave"), ("self",)),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), ("self",)),
    **dict.fromkeys(("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d"), ("self",)),
    **dict.fromkeys(("replication_pad1d", "replication_pad2d", "replication_pad3d", "reflection_pad3d"), ("self",)),
    **dict.fromkeys(("im2col", "col2im", "unfold_copy", "tril", "triu", "sort", "topk", "masked_select"), ("self",)),
    **dict.fromkeys(("cat", "stack", "hstack", "vstack", "dstack", "column_stack", "block_diag"), ("tensors",)),
    **dict.fromkeys(("index_copy", "index_add", "slice_scatter", "select_scatter"), ("self", "source", "src")),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce", "diagonal_scatter"), ("self", "src")),
    **dict.fromkeys(("index_put", "_index_put_impl"), ("self", "values")),
    **dict.fromkeys(("masked_fill", "index_fill", "fill"), ("self",)),
    "masked_scatter": ("self", "source"),
    "alias_sync": ("self", "source"),
    "copy": ("src",),
    "where": ("self", "other"),
    "meshgrid": ("tensors",),
    "broadcast_tensors": ("tensors",),
    "_pack_padded_sequence": ("input",),
    "_pad_packed_sequence": ("data",),
    "view_as_complex": ("self",),
    "complex": ("real", "imag"),
    "flash_attn_varlen": ("self",),
    "nested_tensor_from_mask": ("self",),
    "moe_permute": ("self",),
}
"""Operations that carry a signal from place to place, and the arguments that they carry it from."""

BY_INDEX: dict[str, tuple[str, ...]] = {
    "index_add": ("source",),
    "scatter_add": ("src",),
    "scatter_reduce": ("src",),
    "index_put": ("values",),
}
"""Moves that can add up what they bring to the same place, and the arguments that they bring it from."""

POOLS = frozenset(
    {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "mean", "sum", "nansum", "amax", "amin"}
    | {"max", "min", "interpolate", "grid_sampler", "max_pool2d_with_indices", "nanmean", "cumsum", "logcumsumexp"}
    | {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for n in (1, 2, 3)}
    | {f"upsample_{kind}" for kind in ("nearest1d", "linear1d", "nearest3d", "trilinear3d", "nearest_exact2d")}
    | {"_upsample_nearest_exact2d", "_upsample_nearest_exact1d", "grid_sampler_2d", "grid_sampler_3d", "median"}
    | {"_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_adaptive_avg_pool1d", "avg_pool", "max_pool3d_with_indices"}
    | {"torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align", "fractional_max_pool2d"}
    | {"segment_reduce"}
)
"""Dropout, pooling and what only averages or picks: the signal arrives first (``self`` or ``input``)."""

AVERAGES = frozenset({"mean", "nanmean"} | {f"{kind}adaptive_avg_pool{n}d" for kind in ("", "_") for n in (1, 2, 3)})
"""Pools that average over positions, mostly over all."""

REDUCTIONS = frozenset({"mean", "sum", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "nanmean"})

ROOTS = frozenset({"rsqrt", "sqrt", "pow", "norm", "linalg_vector_norm", "std", "linalg_norm", "std_mean"})

NORMS: dict[str, str] = {
    "layer_norm": "input",
    "rms_norm": "input",
    "group_norm": "input",
    "batch_norm": "input",
    "instance_norm": "input",
    "local_response_norm": "input",
    "native_group_norm": "input",
    "sync_batch_norm": "input",
    "miopen_batch_norm": "input",
    "normalize": "input",
}
"""Normalizations, and where their signal arrives."""

LINEAR_MAPS = frozenset({"neg", "clamp", "clamp_min", "clamp_max", "nan_to_num", "negative", "fft_rfft2", "fft_irfft2"})
"""Element-wise (or orthogonal) maps that a walk passes: signs, and clamps too wide to be non-linearities."""

SUMS = frozenset({"add", "sub", "rsub"})
PRODUCTS = frozenset({"mul", "div"})

ACTIVATIONS: dict[str, str] = {
    **{
        name: name
        for name in words(
            "relu relu6 elu selu celu gelu silu mish tanh sigmoid softplus hardtanh hardsigmoid hardswish "
            "softshrink hardshrink threshold leaky_relu rrelu prelu softmax log_softmax abs sin cos erf exp "
            "atan softmin log sqrt rsqrt square reciprocal sign floor round ceil log1p expm1 sinh cosh tan "
            "asinh gumbel_softmax sinc logit erfc bernoulli multinomial softsign tanhshrink"
        )
    },
    "log_sigmoid": "logsigmoid",
    "log_sigmoid_forward": "logsigmoid",
    "_prelu_kernel": "prelu",
    "prelu_kernel": "prelu",
    "rrelu_with_noise": "rrelu",
    "maximum": "max",
    "minimum": "min",
    "fmax": "max",
    "fmin": "min",
    "logsumexp": "logsumexp",
    "var": "variance",
    "std": "variance",
    "prod": "product",
}
"""Non-linearities by the name that users know."""

SOFTMAXES = frozenset({"softmax", "log_softmax"})

LINKS = SOFTMAXES | {"sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardtanh", "softplus", "exp"}
"""What gives an output the range of its target."""

POINTWISE = frozenset(
    {
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "pow",
        "neg",
        "clamp",
        "clamp_min",
        "clamp_max",
        "where",
        "gt",
        "lt",
        "ge",
        "le",
    }
    | {"eq", "ne", "maximum", "minimum", "square", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "abs"}
    | {
        "sin",
        "cos",
        "tan",
        "atan",
        "tanh",
        "sigmoid",
        "erf",
        "erfc",
        "softplus",
        "relu",
        "relu6",
        "elu",
        "selu",
        "celu",
    }
    | {"gelu", "silu", "mish", "hardtanh", "hardsigmoid", "hardswish", "softshrink", "hardshrink", "threshold", "sign"}
    | {"leaky_relu", "log_sigmoid", "sinh", "cosh", "asinh", "to", "float", "clone", "contiguous", "alias", "detach"}
    | {"addcmul", "addcdiv", "lerp", "fmax", "fmin", "square", "logical_and", "logical_or", "logical_not", "type_as"}
    | {"masked_fill", "floor", "round", "ceil", "trunc", "remainder", "fmod", "log_sigmoid_forward", "_prelu_kernel"}
    | {"prelu", "heaviside", "sinc", "atan2", "xlogy", "isnan", "nan_to_num"}
)
"""What acts on each element alone: the matter that hand-written activations are made of."""

QUERIES = frozenset({"argmax", "argmin", "argsort", "eq", "ne", "gt", "lt", "ge", "le", "isnan", "isinf", "isfinite"})
"""What only asks about a signal."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """Where a contracting operation takes its signal, its weight and its bias."""

    data: tuple[str, ...]
    weight: str
    bias: str = "bias"
    role: str = "linear"


CONTRACTIONS: dict[str, Contraction] = {
    "linear": Contraction(("input",), "weight"),
    "conv1d": Contraction(("input",), "weight", role="conv"),
    "conv2d": Contraction(("input",), "weight", role="conv"),
    "conv3d": Contraction(("input",), "weight", role="conv"),
    "convolution": Contraction(("input",), "weight", role="conv"),
    "conv_transpose1d": Contraction(("input",), "weight", role="conv_transpose"),
    "conv_transpose2d": Contraction(("input",), "weight", role="conv_transpose"),
    "conv_transpose3d": Contraction(("input",), "weight", role="conv_transpose"),
    "torchvision::deform_conv2d": Contraction(("input",), "weight", role="conv"),
    "conv_tbc": Contraction(("self",), "weight", role="conv"),
    "bilinear": Contraction(("input1", "input2"), "weight"),
}
"""Operations whose weight has an argument of its own."""

PAIRS: dict[str, tuple[str, str, str]] = {
    "mm": ("self", "mat2", ""),
    "bmm": ("self", "mat2", ""),
    "_grouped_mm": ("self", "mat2", "bias"),
    "matmul": ("self", "other", ""),
    "linalg_matmul": ("input", "other", ""),
    "dot": ("self", "tensor", ""),
    "mv": ("self", "vec", ""),
    "inner": ("self", "other", ""),
    "addmm": ("mat1", "mat2", "self"),
    "addmv": ("mat", "vec", "self"),
    "baddbmm": ("batch1", "batch2", "self"),
    "addbmm": ("batch1", "batch2", "self"),
    "tensordot": ("self", "other", ""),
    "einsum": ("tensors", "tensors", ""),
}
"""Operations on two factors either of which can be the weight: first, second, what is added."""

RECURRENCES = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
    | {"mkldnn_rnn_layer", "quantized_lstm"}
)

ATTENTION = "scaled_dot_product_attention"

RULES: dict[str, tuple[Kind, str]] = {}
"""Operations that users registered: what they do, and the name of a non-linearity."""


def register_op(name: str, kind: Kind, activation: str = "") -> None:
    """Tell the tracer what a custom operation does to its first argument.

    Args:
        name: as torch prints it: ``mylib::swiglu``.
        kind: ``move`` (carries the signal), ``pool``, ``elementwise`` (passes the walk), ``activation``, ``norm``, or
            ``opaque``, which is what an unknown operation is anyway.
        activation: the name of the non-linearity, for ``kind="activation"``.

    Raises:
        TraceError: the kind is unknown, or an activation has no name.

    >>> register_op("mylib::fast_gelu", "activation", "gelu")
    """
    if kind not in ("move", "pool", "elementwise", "activation", "norm", "opaque"):
        raise TraceError(compose(f"kind={kind!r}", "one of move, pool, elementwise, activation, norm, opaque"))
    if kind == "activation" and not activation:
        raise TraceError(
            compose("an activation without a name", "its name", instead=f"register_op({name!r}, 'activation', 'gelu')")
        )
    RULES[name] = (kind, activation)
