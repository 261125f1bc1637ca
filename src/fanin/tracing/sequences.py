"""What follows a layer in a Sequential, the one place where a module tree tells it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def following(model: nn.Module) -> dict[int, str]:
    """For each weighted module in a Sequential, the non-linearity that follows it there.

    Norms, dropout, pooling, reshaping and identities are looked through. ``none`` means another weight comes first, or
    the end of a model that is a Sequential itself. Where a Sequential ends inside a larger model, nothing is said.
    """
    result: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            waiting: list[int] = []
            for leaf in _leaves(module):
                name = activation_name(leaf)
                if name is None and _transparent(leaf):
                    continue
                for key in waiting:
                    result.setdefault(key, name or "none")
                waiting = [id(leaf)] if name is None else []
            if module is model:
                for key in waiting:
                    result.setdefault(key, "none")
    return result


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _leaves(child)
        else:
            yield child


def activation_name(module: nn.Module) -> str | None:
    """The functional name of a module that is a non-linearity; None for any other module.

    >>> activation_name(nn.LeakyReLU(0.2)), activation_name(nn.Linear(2, 2))
    ('leaky_relu', None)
    """
    return _ACTIVATIONS.get(type(module))


_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.GLU: "glu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Hardtanh: "hardtanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.LogSigmoid: "logsigmoid",
    nn.Tanhshrink: "tanhshrink",
    nn.Hardshrink: "hardshrink",
    nn.Softshrink: "softshrink",
    nn.Threshold: "threshold",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
}


def _transparent(module: nn.Module) -> bool:
    kind = type(module).__name__
    passive = ("Dropout", "Pool", "Flatten", "Identity", "Pad", "Upsample", "PixelShuffle", "Norm")
    return any(word in kind for word in passive) or isinstance(module, NORMS)
