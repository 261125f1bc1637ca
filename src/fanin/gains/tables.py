"""The gains of all named activations, and who says otherwise, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fanin.errors import SchemeError
from fanin.gains.activations import Parameter, names, needs_parameters
from fanin.gains.statistics import Kind, Moments, gain, moments


@dataclass(frozen=True, slots=True)
class GainRow:
    """One activation's numbers at unit standard deviation, for display.

    Gains are None where the moment that they restore is zero.
    """

    activation: str
    mean: float
    second_moment: float
    derivative_second_moment: float
    gain: float | None
    gain_centred: float | None
    gain_backward: float | None
    chi: float | None
    length_slope: float
    holds: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A gain that somebody else uses, beside the exact one of the same kind.

    Args:
        activation: the name here.
        source: who uses it, and where.
        value: their number.
        kind: which gain it stands for.
        remark: how they came to it, or what follows.
        parameters: of the activation, where they are not the defaults.
    """

    activation: str
    source: str
    value: float
    kind: Kind
    remark: str = ""
    parameters: tuple[tuple[str, Parameter], ...] = ()

    @property
    def exact(self) -> float:
        """The exact gain of that kind."""
        parameters: dict[str, Any] = dict(self.parameters)
        return gain(self.activation, self.kind, **parameters)

    @property
    def relative_error(self) -> float:
        """``value/exact − 1``."""
        return self.value / self.exact - 1.0


_TORCH = "torch.nn.init.calculate_gain"
_NFNET = "NFNet (Brock et al. 2021) and timm.models.nfnet"

_NFNET_GAMMAS = (
    ("celu", 1.270926833152771),
    ("elu", 1.2716004848480225),
    ("gelu", 1.7015043497085571),
    ("leaky_relu", 1.70590341091156),
    ("logsigmoid", 1.9193484783172607),
    ("relu", 1.7139588594436646),
    ("relu6", 1.7131484746932983),
    ("selu", 1.0008515119552612),
    ("sigmoid", 4.803835391998291),
    ("silu", 1.7881293296813965),
    ("softsign", 2.338853120803833),
    ("softplus", 1.9203323125839233),
    ("tanh", 1.5939117670059204),
)

_CLAIMS = (
    Claim("tanh", _TORCH, 5 / 3, "second_moment", "folklore: the variance settles at 1.178, not 1"),
    Claim("tanh", "Glorot & Bengio 2010", 1.0, "second_moment", "the slope at 0; the variance decays with depth"),
    Claim("sigmoid", _TORCH, 1.0, "second_moment"),
    Claim("relu", _TORCH, 2**0.5, "second_moment", "He et al. 2015"),
    Claim("leaky_relu", _TORCH, (2 / 1.0001) ** 0.5, "second_moment", "slope 0.01 here, 0 in kaiming_normal_"),
    Claim("leaky_relu", "StyleGAN", 2**0.5, "second_moment", "ReLU's", (("negative_slope", 0.2),)),
    Claim("selu", _TORCH, 0.75, "second_moment", "empirical; selu is built to have gain 1"),
    Claim("selu", "Klambauer et al. 2017", 1.0, "second_moment", "the fixed point by construction"),
    Claim("gelu", "common practice", 2**0.5, "second_moment", "ReLU's: the variance shrinks by 0.85 a layer"),
    Claim("gelu", "u-μP's unit-scaling", 1.766783, "centred"),
    Claim("silu", "u-μP's unit-scaling", 1.766783, "centred"),
    Claim("silu", "EDM2 (Karras et al. 2024)", 1 / 0.596, "second_moment", "rounded to three digits"),
    Claim("silu", "GemNet's ScaledSiLU", 1 / 0.6, "second_moment", "rounded to one digit"),
    Claim("elu", "SIREN's reference code", 1.5505188080679277**0.5, "second_moment"),
)


def table() -> tuple[GainRow, ...]:
    """The moments and gains of every named activation that has defaults, at unit standard deviation, by name.

    >>> {row.activation: round(row.gain, 6) for row in table() if row.activation in ("relu", "mish")}
    {'mish': 1.486848, 'relu': 1.414214}
    """
    return tuple(_row(moments(name)) for name in names() if not needs_parameters(name))


def disagreements() -> tuple[Claim, ...]:
    """Gains that others use, for comparison with the exact ones; agreeing ones included.

    NFNet's are Monte-Carlo estimates, some 0.06 % off.

    >>> claim = disagreements()[0]
    >>> claim.activation, round(claim.value, 4), round(claim.exact, 4)
    ('tanh', 1.6667, 1.5925)
    """
    estimates = tuple(Claim(name, _NFNET, value, "centred", "Monte Carlo") for name, value in _NFNET_GAMMAS)
    return _CLAIMS + estimates


def _row(found: Moments) -> GainRow:
    def optional(name: str) -> float | None:
        try:
            return float(getattr(found, name))
        except SchemeError:
            return None

    return GainRow(
        activation=found.activation,
        mean=found.mean,
        second_moment=found.second_moment,
        derivative_second_moment=found.derivative_second_moment,
        gain=optional("gain"),
        gain_centred=optional("gain_centred"),
        gain_backward=optional("gain_backward"),
        chi=optional("chi"),
        length_slope=found.length_slope,
        holds=found.holds,
    )
