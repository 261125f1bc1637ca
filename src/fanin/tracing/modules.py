"""The graph from module types alone: what a parameter is when nothing has been run.

Every rule looks at one module and describes the parameters that it owns. A traced graph starts from these answers and
overrides them by what the model really does; where tracing fails they stand alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fanin.errors import TraceError, compose
from fanin.fans import ELEMENTWISE, EMBEDDING, IN_OUT, Axes, Block, Fans, even_blocks
from fanin.graph import Graph, ParameterNode, Role
from fanin.schemes import Constant, Normal, Ones, Scheme, Uniform, Zeros
from fanin.tracing.names import NamedParameter, named_parameters, unwrap
from fanin.tracing.reparametrization import plain, shape_of
from fanin.tracing.sequences import NORMS, following

LSTM_GATES = (("i", "sigmoid"), ("f", "sigmoid"), ("g", "tanh"), ("o", "sigmoid"))
GRU_GATES = (("r", "sigmoid"), ("z", "sigmoid"), ("n", "tanh"))
ATTENTION = (("q", "softmax_q"), ("k", "softmax_k"), ("v", "attention_value"))

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Description = dict[str, object]
"""The fields of a `ParameterNode` that a rule sets for one parameter of a module."""


def fans_of(module: nn.Module, name: str = "weight", *, stride: bool = True) -> Fans:
    """The true fans of a layer's parameter.

    ``fan_in`` is the mean number of weights that reach one output element, ``fan_out`` the mean number of output
    elements that one input element reaches, away from the borders.

    Args:
        module: any torch layer (or transformers' ``Conv1D``).
        name: the parameter's name in it.
        stride: False gives the papers' count, which ignores stride.

    Raises:
        TraceError: the module has no such parameter, or its type says nothing about the parameter's axes.

    >>> fans_of(nn.Conv2d(96, 96, 3, groups=96))
    Fans(fan_in=9, fan_out=9)
    >>> fans_of(nn.ConvTranspose2d(64, 32, 4, stride=2))
    Fans(fan_in=256, fan_out=512)
    >>> fans_of(nn.MultiheadAttention(512, 8), "in_proj_weight")
    Fans(fan_in=512, fan_out=512)

    Differs from torch's fans, which come from the shape: see `fanin.Axes`.
    """
    described = _describe(module, name)
    parameter = _parameter(module, name)
    axes = described.get("axes")
    if not isinstance(axes, Axes):
        raise TraceError(
            compose(
                f"{type(module).__name__}.{name} of shape {tuple(parameter.shape)}",
                "a layer whose type tells what its axes are",
                "a bare parameter can be contracted along any axis",
                "fanin.Axes(in_axis=…, out_axis=…).fans(shape)",
            )
        )
    return axes.fans(parameter.shape, stride=stride)


def graph_of(model: nn.Module) -> Graph:
    """The graph of a model from the types of its modules, without running it."""
    activations = following(unwrap(model))
    nodes = []
    for entry in named_parameters(model):
        parameter = entry.parameter
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise TraceError(
                compose(
                    f"{entry.name}, a lazy parameter without a shape",
                    "a model whose parameters have shapes",
                    "lazy modules learn their shapes from the first batch",
                    "model(example_batch), once, before fanin",
                )
            )
        layer = entry.owner if entry.weight is None else entry.weight.layer
        fields: Description = {"axes": ELEMENTWISE, "role": Role.OTHER, "aliases": entry.aliases}
        fields.update(_describe_entry(entry))
        activation = activations.get(id(layer))
        if activation and fields.get("activation") is None and fields["role"] in (*_FOLLOWED, Role.BIAS):
            fields["activation"] = activation
        nodes.append(
            ParameterNode(
                name=entry.name,
                shape=tuple(parameter.shape),
                dtype=str(parameter.dtype).removeprefix("torch."),
                module_type=type(layer).__name__.removeprefix("Parametrized"),
                frozen=not parameter.requires_grad,
                **fields,  # type: ignore[arg-type]
            )
        )
    return Graph(tuple(nodes))


_FOLLOWED = (Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE)


def _parameter(module: nn.Module, name: str) -> torch.Tensor:
    parameter = getattr(module, name, None)
    if not isinstance(parameter, torch.Tensor):
        known = ", ".join(key for key, value in module._parameters.items() if value is not None)
        raise TraceError(compose(f"{type(module).__name__} and {name!r}", f"one of its parameters: {known or 'none'}"))
    return parameter


def _describe_entry(entry: NamedParameter) -> Description:
    """What a parameter is; behind a computed weight, the main one is what the weight is and answers to its name."""
    weight = entry.weight
    if weight is None:
        return _describe(plain(entry.owner), entry.attribute)
    if weight.part != "main" or shape_of(weight) != tuple(entry.parameter.shape):
        return {"reparametrized": weight.kinds}
    described = _describe(plain(weight.layer), weight.tensor)
    return {**described, "reparametrized": weight.kinds, "aliases": (*entry.aliases, entry.weight_name)}


def _describe(module: nn.Module, name: str) -> Description:
    for kinds, rule in _RULES:
        if isinstance(module, kinds):
            return rule(module, name)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return _conv1d_of_transformers(module, name)
    return _by_name(module, name)


def _uniform(bound: float) -> Scheme:
    return Uniform(-bound, bound)


def _torch_bound(weight: torch.Tensor) -> float:
    """The bound ``1/√fan_in`` of torch's constructors, with the fan_in that torch reads off the shape."""
    count = math.prod(weight.shape[1:])
    return 1 / math.sqrt(count) if count else 0.0


def _bias(default: Scheme | None, **more: object) -> Description:
    return {"role": Role.BIAS, "axes": ELEMENTWISE, "default": default, **more}


def _linear(module: nn.Module, name: str) -> Description:
    bound = _torch_bound(_parameter(module, "weight"))
    if name == "weight":
        return {"role": Role.LINEAR, "axes": Axes(), "default": _uniform(bound)}
    if name != "bias":
        return _by_name(module, name)
    # The out_proj of a MultiheadAttention is of this type, and the attention zeroes its bias.
    zeroed = isinstance(module, NonDynamicallyQuantizableLinear)
    return _bias(Zeros() if zeroed else _uniform(bound))


def _convolution(module: nn.Module, name: str) -> Description:
    assert isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
    bound = _torch_bound(module.weight)
    if name == "bias":
        return _bias(_uniform(bound))
    if name != "weight":
        return _by_name(module, name)
    transposed = isinstance(module, TRANSPOSED)
    axes = Axes(
        in_axis=(0,) if transposed else (1,),
        out_axis=(1,) if transposed else (0,),
        groups=module.groups,
        stride=math.prod(module.stride),
        transposed=transposed,
    )
    role = Role.CONV_TRANSPOSE if transposed else Role.CONV
    return {"role": role, "axes": axes, "default": _uniform(bound)}


def _bilinear(module: nn.Module, name: str) -> Description:
    assert isinstance(module, nn.Bilinear)
    bound = 1 / math.sqrt(module.in1_features)
    if name == "weight":
        return {"role": Role.LINEAR, "axes": Axes((1, 2), (0,), factors=True), "default": _uniform(bound)}
    return _bias(_uniform(bound))


def _embedding(module: nn.Module, name: str) -> Description:
    padding = getattr(module, "padding_idx", None)
    return {"role": Role.EMBEDDING, "axes": EMBEDDING, "default": Normal(1.0), "padding_row": padding}


def _norm(module: nn.Module, name: str) -> Description:
    if name == "weight":
        return {"role": Role.NORM_SCALE, "axes": ELEMENTWISE, "default": Ones()}
    return {"role": Role.NORM_SHIFT, "axes": ELEMENTWISE, "default": Zeros()}


def _conv1d_of_transformers(module: nn.Module, name: str) -> Description:
    if name == "weight":
        return {"role": Role.LINEAR, "axes": IN_OUT, "default": Normal(0.02)}
    return _bias(Zeros())


def _attention(module: nn.Module, name: str) -> Description:
    assert isinstance(module, nn.MultiheadAttention)
    if name == "in_proj_weight":
        rows, columns = module.in_proj_weight.shape
        bound = math.sqrt(6 / (rows + columns))
        return {"role": Role.LINEAR, "axes": Axes(blocks=_attention_blocks(rows)), "default": _uniform(bound)}
    if name == "in_proj_bias":
        axes = Axes(in_axis=(), out_axis=(0,), blocks=_attention_blocks(3 * module.embed_dim))
        return _bias(Zeros(), axes=axes)
    for letter, activation in ATTENTION:
        if name == f"{letter}_proj_weight":
            rows, columns = _parameter(module, name).shape
            bound = math.sqrt(6 / (rows + columns))
            return {"role": Role.LINEAR, "axes": Axes(), "activation": activation, "default": _uniform(bound)}
    if name in ("bias_k", "bias_v"):
        # One learned position each, appended to the keys and values; torch's xavier_normal_ reads (1, 1, d) as d + d.
        return {"role": Role.TOKEN, "axes": ELEMENTWISE, "default": Normal(1 / math.sqrt(module.embed_dim))}
    return _by_name(module, name)


def _attention_blocks(rows: int) -> tuple[Block, ...]:
    return even_blocks("qkv", rows, [activation for _, activation in ATTENTION])


def _recurrent(module: nn.Module, name: str) -> Description:
    hidden = module.hidden_size
    assert isinstance(hidden, int)
    default = _uniform(1 / math.sqrt(hidden) if hidden else 0.0)
    parameter = _parameter(module, name)
    kind = type(module).__name__
    gates = LSTM_GATES if kind.startswith("LSTM") else GRU_GATES if kind.startswith("GRU") else ()
    if name.startswith("weight_hr"):
        return {"role": Role.RECURRENT, "axes": Axes(), "default": default, "activation": "none"}
    blocks: tuple[Block, ...] = ()
    if gates:
        blocks = even_blocks([gate for gate, _ in gates], parameter.shape[0], [after for _, after in gates])
    activation = None if gates else getattr(module, "nonlinearity", "tanh")
    if name.startswith("bias"):
        return _bias(default, axes=Axes((), (0,), blocks=blocks), activation=activation)
    place: Description = {"feedback": name.startswith("weight_hh"), "feeds_state": name.startswith("weight_ih")}
    if place["feeds_state"] and not name.startswith("weight_ih_l0") and isinstance(module, nn.RNNBase):
        place["state_before"] = kind.lower() if gates else f"rnn_{activation}"
    return {"role": Role.RECURRENT, "axes": Axes(blocks=blocks), "default": default, "activation": activation, **place}


def _prelu(module: nn.Module, name: str) -> Description:
    assert isinstance(module, nn.PReLU)
    return {"role": Role.OTHER, "axes": ELEMENTWISE, "default": Constant(module.init)}


def _by_name(module: nn.Module, name: str) -> Description:
    """For what no type describes: the names of modules and parameters that the field agrees on."""
    parameter = _parameter(module, name)
    kind = type(module).__name__.lower()
    if "norm" in kind and parameter.ndim <= 1 and name in ("weight", "bias", "scale", "gamma", "beta"):
        return _norm(module, "weight" if name in ("weight", "scale", "gamma") else "bias")
    if "layerscale" in kind or name in ("layer_scale", "layerscale", "ls1", "ls2"):
        return {"role": Role.LAYER_SCALE, "axes": ELEMENTWISE}
    if "pos_embed" in name or "position_embedding" in name or name in ("pos_emb", "positional_embedding"):
        return {"role": Role.POSITION, "axes": ELEMENTWISE}
    if name.endswith(("_token", "_tokens", "class_embedding")):
        return {"role": Role.TOKEN, "axes": ELEMENTWISE}
    if name.endswith("bias") and parameter.ndim == 1:
        return _bias(None)
    return {"role": Role.OTHER}


_RULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[nn.Module, str], Description]], ...] = (
    ((nn.Linear,), _linear),
    ((*CONVOLUTIONS, *TRANSPOSED), _convolution),
    ((nn.Bilinear,), _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (NORMS, _norm),
    ((nn.MultiheadAttention,), _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    ((nn.PReLU,), _prelu),
)
