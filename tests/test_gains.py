"""Gains against the published table, closed forms, adaptive quadrature, and real torch layers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fanin import gains
from fanin.errors import SchemeError
from fanin.gains.quadrature import find_kinks, integrate

# Adaptive quadrature over |z| ≤ 12, independent of this package, to six digits:
# activation, parameters, E φ, E φ², gain, centred gain, E φ'², backward gain, χ.
TABLE: list[tuple[str, dict[str, Any], tuple[float, ...]]] = [
    ("identity", {}, (0, 1, 1, 1, 1, 1, 1)),
    ("relu", {}, (0.398942, 0.5, 1.414214, 1.712859, 0.5, 1.414214, 1)),
    ("leaky_relu", {}, (0.394953, 0.500050, 1.414143, 1.704832, 0.500050, 1.414143, 1)),
    ("leaky_relu", {"negative_slope": 0.2}, (0.319154, 0.52, 1.386750, 1.546460, 0.52, 1.386750, 1)),
    ("prelu", {}, (0.299207, 0.53125, 1.371989, 1.504610, 0.53125, 1.371989, 1)),
    ("abs", {}, (0.797885, 1, 1, 1.658897, 1, 1, 1)),
    ("elu", {}, (0.160521, 0.644945, 1.245198, 1.270843, 0.668102, 1.223429, 1.035905)),
    ("celu", {}, (0.160521, 0.644945, 1.245198, 1.270843, 0.668102, 1.223429, 1.035905)),
    ("celu", {"alpha": 0.5}, (0.232993, 0.564552, 1.330908, 1.399915, 0.594411, 1.297050, 1.052890)),
    ("selu", {}, (0, 1, 1, 1, 1.071575, 0.966026, 1.071575)),
    ("gelu", {}, (0.282095, 0.425221, 1.533530, 1.700926, 0.455851, 1.481114, 1.072032)),
    ("gelu_tanh", {}, (0.282039, 0.425194, 1.533581, 1.700917, 0.455818, 1.481168, 1.072024)),
    ("quick_gelu", {}, (0.282331, 0.421953, 1.539459, 1.709359, 0.449549, 1.491459, 1.065402)),
    ("silu", {}, (0.206621, 0.355776, 1.676532, 1.787187, 0.379482, 1.623320, 1.066634)),
    ("mish", {}, (0.240404, 0.452342, 1.486848, 1.592025, 0.479084, 1.444755, 1.059118)),
    ("softplus", {}, (0.806059, 0.921246, 1.041867, 1.919126, 0.293379, 1.846229, 0.318459)),
    ("tanh", {}, (0, 0.394294, 1.592537, 1.592537, 0.464403, 1.467414, 1.177807)),
    ("erf", {}, (0, 0.464559, 1.467167, 1.467167, 0.569410, 1.325218, 1.225700)),
    ("sigmoid", {}, (0.5, 0.293379, 1.846229, 4.801313, 0.044836, 4.722646, 0.152827)),
    ("hardsigmoid", {}, (0.5, 0.277639, 1.897840, 6.015034, 0.027703, 6.008116, 0.099780)),
    ("hardswish", {}, (0.166217, 0.331567, 1.736657, 1.813871, 0.358532, 1.670076, 1.081323)),
    ("hardtanh", {}, (0, 0.516059, 1.392036, 1.392036, 0.682689, 1.210287, 1.322892)),
    ("relu6", {}, (0.398942, 0.5, 1.414214, 1.712859, 0.5, 1.414214, 1)),
    ("softsign", {}, (0, 0.183014, 2.337533, 2.337533, 0.227671, 2.095781, 1.244010)),
    ("arctan", {}, (0, 0.449701, 1.491208, 1.491208, 0.5, 1.414214, 1.111850)),
    ("relu_squared", {}, (0.5, 1.5, 0.816497, 0.894427, 2, 0.707107, 1.333333)),
    ("sin", {}, (0, 0.432332, 1.520867, 1.520867, 0.567668, 1.327251, 1.313035)),
    ("cos", {}, (0.606531, 0.567668, 1.327251, 2.237253, 0.432332, 1.520867, 0.761594)),
    ("gaussian", {}, (0.577350, 0.447214, 1.495349, 2.963301, 0.357771, 1.671851, 0.8)),
    ("logsigmoid", {}, (-0.806059, 0.921246, 1.041867, 1.919126, 0.293379, 1.846229, 0.318459)),
    ("tanhshrink", {}, (0, 0.182883, 2.338368, 2.338368, 0.252992, 1.988139, 1.383350)),
]

# Gated products: gain, χ with both paths of the gradient.
GATED = [
    ("glu", 1.846229, 1.152827),
    ("swiglu", 1.676532, 2.066634),
    ("geglu", 1.533530, 2.072032),
    ("reglu", 1.414214, 2.0),
    ("bilinear", 1.0, 2.0),
    ("tanhglu", 1.592537, 2.177807),
]

MODULES = [
    nn.Identity(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.PReLU(),
    nn.RReLU().eval(),
    nn.ELU(0.7),
    nn.CELU(0.5),
    nn.SELU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(2.0, 10.0),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(-0.5, 2.0),
    nn.ReLU6(),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.Tanhshrink(),
    nn.Softshrink(0.3),
    nn.Hardshrink(0.3),
    nn.Threshold(0.1, 0.1),
]


@pytest.fixture(autouse=True)
def _untouched_random_state() -> Any:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "parameters", "expected"), TABLE)
def test_table(name: str, parameters: dict[str, Any], expected: tuple[float, ...]) -> None:
    found = gains.moments(name, **parameters)
    row = (
        found.mean,
        found.second_moment,
        found.gain,
        found.gain_centred,
        found.derivative_second_moment,
        found.gain_backward,
        found.chi,
    )
    assert row == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "gain", "chi"), GATED)
def test_gated_products(name: str, gain: float, chi: float) -> None:
    found = gains.moments(name)
    assert (found.mean, found.gain, found.chi) == pytest.approx((0.0, gain, chi), abs=1e-6)
    assert not found.homogeneous
    assert "not Gaussian" in found.holds


@pytest.mark.parametrize("std", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", gains.names())
def test_closed_form_equals_quadrature_equals_scipy(name: str, std: float) -> None:
    parameters = {"threshold": 0.4, "value": 0.1} if name == "threshold" else {}
    phi = gains.resolve_activation(name, **parameters)
    bare = integrate(lambda z: phi(std * z), [kink / std for kink in phi.kinks])
    if phi.closed_form is not None:
        closed = phi.closed_form(std)
        quadrature = (bare.mean, bare.second, bare.derivative_second / std**2)
        for exact, number in zip(closed, quadrature, strict=True):
            assert exact is None or exact == pytest.approx(number, rel=1e-9, abs=1e-12)

    def integrand(z: float) -> float:
        return float(phi(np.array([std * z]))[0]) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    points = [kink / std for kink in phi.kinks if abs(kink) < 10 * std] or [0.0]
    second, _ = scipy.integrate.quad(integrand, -10, 10, points=points, limit=200, epsabs=1e-12, epsrel=1e-11)
    assert bare.second == pytest.approx(second, rel=1e-8)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_agree_with_autograd_and_monte_carlo(module: nn.Module) -> None:
    """Through torch's own layer: 2²⁰ draws, tolerance five standard errors of each moment.

    A gain that is √2 off would be off by a factor 2 in E φ²; the relative standard error is below 0.4 %.
    """
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(2**20, dtype=torch.float64, generator=generator).requires_grad_()
    values = module.double()(z * 1.0)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    values = values.detach()
    found = gains.moments(module)
    for sample, exact in [
        (values, found.mean),
        (values**2, found.second_moment),
        (slopes**2, found.derivative_second_moment),
    ]:
        error = 5 * float(sample.std()) / 2**10
        assert float(sample.mean()) == pytest.approx(exact, abs=error + 1e-9)
        assert error < 0.02 * max(1.0, abs(exact))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_recognised_modules_equal_evaluated_modules(module: nn.Module) -> None:
    """The closed form of a recognised class is that of the function which the module computes."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    known, evaluated = gains.moments(module), gains.moments(Wrapped())
    for attribute in ("mean", "second_moment", "derivative_second_moment", "length_slope"):
        assert getattr(evaluated, attribute) == pytest.approx(getattr(known, attribute), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", ["glu", "reglu", "tanhglu"])
def test_gated_products_through_torch(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    value, gate = torch.randn(2, 2**20, dtype=torch.float64, generator=generator).requires_grad_()
    gates = {"glu": torch.sigmoid, "reglu": torch.relu, "tanhglu": torch.tanh}
    output = value * gates[name](gate)
    back = torch.autograd.grad(output.sum(), [value, gate])
    found = gains.moments(name)
    slopes = back[0] ** 2 + back[1] ** 2
    for sample, exact in [(output.detach() ** 2, found.second_moment), (slopes, found.derivative_second_moment)]:
        assert float(sample.mean()) == pytest.approx(exact, abs=5 * float(sample.std()) / 2**10)
    assert gains.moments(nn.GLU()) == gains.moments("glu")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: np.maximum(x, 0.0), "relu"),
        (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))), "elu"),
        (lambda x: np.clip(x, -1.0, 1.0), "hardtanh"),
        (lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0), "hardswish"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x.clamp(min=0).square(), "relu_squared"),
        (F.gelu, "gelu"),
        (torch.tanh, "tanh"),
        (F.mish, "mish"),
        (np.tanh, "tanh"),
    ],
)
def test_callables_of_arrays_and_tensors(function: Any, name: str) -> None:
    found, known = gains.moments(function), gains.moments(name)
    assert found.second_moment == pytest.approx(known.second_moment, rel=1e-9)
    assert found.derivative_second_moment == pytest.approx(known.derivative_second_moment, rel=1e-8)


@pytest.mark.parametrize(
    ("function", "homogeneous"),
    [
        (lambda x: np.where(x > 0, x, 0.1 * x), True),
        (lambda x: F.relu(x.float()), True),
        (lambda x: 0.0 * x, True),
        (np.tanh, False),
        (np.square, False),
        (lambda x: np.maximum(x, 0.0) + 0.1, False),
        (lambda x: np.clip(x, 0.0, 6.0), False),
    ],
)
def test_homogeneous_callables_are_recognised(function: Any, homogeneous: bool) -> None:
    assert gains.moments(function).homogeneous is homogeneous


def test_single_precision_callables() -> None:
    found, known = gains.moments(lambda x: F.silu(x.float())), gains.moments("silu")
    assert found.second_moment == pytest.approx(known.second_moment, rel=1e-6)
    assert found.derivative_second_moment == pytest.approx(known.derivative_second_moment, rel=1e-4)


def test_kinks_are_found_and_jumps_are_named() -> None:
    assert find_kinks(lambda x: np.maximum(x - 0.3, 0.0)) == ((0.3,), True)
    assert find_kinks(lambda x: np.where(np.abs(x) > 0.5, x, 0.0)) == ((-0.5, 0.5), False)
    assert find_kinks(np.tanh) == ((), True)
    assert "jumps" in gains.moments(lambda x: np.sign(x)).holds
    assert "jumps" not in gains.moments("relu").holds


def test_an_undeclared_jump_adds_nothing_to_the_derivative() -> None:
    def shrink(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.where(np.abs(z) > 0.4321, z, 0.0)

    assert integrate(shrink).derivative_second == pytest.approx(math.erfc(0.4321 / math.sqrt(2)), rel=1e-9)


@pytest.mark.parametrize("frequency", [5.0, 30.0])
def test_fast_oscillations_are_resolved(frequency: float) -> None:
    found = gains.moments(lambda x: np.sin(frequency * x))
    assert found.second_moment == pytest.approx(0.5, rel=1e-10)
    assert found.derivative_second_moment == pytest.approx(frequency**2 / 2, rel=1e-10)


@given(slope=st.floats(-3, 3), std=st.floats(0.01, 100))
@settings(deadline=None, max_examples=50)
def test_homogeneous_gains_hold_at_every_scale(slope: float, std: float) -> None:
    found = gains.moments("leaky_relu", std, negative_slope=slope)
    assert found.gain == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-12)
    assert found.homogeneous
    assert found.length_slope == 1.0


@pytest.mark.parametrize("name", ["tanh", "gelu", "swiglu", "relu_squared", "sin"])
def test_length_slope_is_the_slope_of_the_length_map(name: str) -> None:
    """d ln E φ(√q z)² / d ln q at q = 1, by a central difference."""
    up, down = (gains.moments(name, math.exp(step)) for step in (1e-4, -1e-4))
    slope = math.log(up.second_moment / down.second_moment) / 4e-4
    assert gains.moments(name).length_slope == pytest.approx(slope, rel=1e-6)


def test_gain_keeps_the_second_moment_through_torch_layers() -> None:
    """Width 1024, eight SiLU layers.

    Over seeds the second moment scatters by some 10 %; a gain that is √2 too large makes it 256.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1024, generator=generator)
    for _ in range(8):
        weight = torch.randn(1024, 1024, generator=generator) * gains.gain("silu") / 32.0
        x = F.silu(x) @ weight.T
    assert float(x.square().mean()) == pytest.approx(1.0, abs=0.4)


def test_kinds() -> None:
    found = gains.moments("gelu", 0.5)
    for kind, value in [
        ("second_moment", found.gain),
        ("centred", found.gain_centred),
        ("backward", found.gain_backward),
    ]:
        assert gains.gain("gelu", kind, std=0.5) == value
    assert found.variance == pytest.approx(found.second_moment - found.mean**2)


def test_spellings_and_parameters() -> None:
    assert gains.gain("Swish") == gains.gain("silu") == gains.gain(nn.SiLU())
    assert gains.gain("LeakyReLU") == gains.gain("leaky_relu") == gains.gain("leaky-relu")
    assert gains.gain("gelu", approximate="tanh") == gains.gain("gelu_tanh")
    assert gains.moments("rrelu").second_moment == (1 + (11 / 48) ** 2) / 2
    assert gains.moments(nn.LeakyReLU(0.3)).activation == "leaky_relu(negative_slope=0.3)"


def test_slopes_of_many_channels_give_the_gain_of_the_layer() -> None:
    module = nn.PReLU(2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.1, 0.7]))
    second = (gains.moments("prelu", weight=0.1).second_moment + gains.moments("prelu", weight=0.7).second_moment) / 2
    assert gains.moments(module).second_moment == pytest.approx(second, rel=1e-6)
    with torch.device("meta"):
        assert gains.gain(nn.PReLU()) == gains.gain("prelu")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gains.gain("gelo"), "did you mean 'gelu'"),
        (lambda: gains.gain("softmax"), "mixes the elements"),
        (lambda: gains.gain(nn.Softmax(dim=-1)), "mixes the elements"),
        (lambda: gains.gain(F.softmax), "mixes the elements"),
        (lambda: gains.gain(nn.MultiheadAttention(4, 2, device="meta")), "mixes the elements"),
        (lambda: gains.gain(lambda x: x - x.mean()), "mixes elements, or is random"),
        (lambda: gains.gain(nn.Dropout(0.5)), "mixes elements, or is random"),
        (lambda: gains.gain(lambda x: x[:2]), "element-wise function"),
        (lambda: gains.gain(lambda x: 1 / 0), "ZeroDivisionError"),
        (lambda: gains.gain(lambda x: np.exp(x**4)), "finite"),
        (lambda: gains.gain(lambda x: np.floor(5000 * x)), "kinks"),
        (lambda: gains.gain("leaky_relu", alpha=0.1), "negative_slope"),
        (lambda: gains.gain("leaky_relu", negative_slope=math.nan), "finite negative_slope"),
        (lambda: gains.gain(np.tanh, negative_slope=0.1), "no parameters"),
        (lambda: gains.gain("threshold"), "threshold"),
        (lambda: gains.gain("tanh", "he"), "known: backward, centred, second_moment"),
        (lambda: gains.gain(lambda x: 0.0 * x), "second moment is zero"),
        (lambda: gains.gain("threshold", "backward", threshold=100.0, value=1.0), "derivative is zero"),
        (lambda: gains.moments("tanh", 0.0), "above 0"),
        (lambda: gains.gain("gelu", approximate="erf"), "'none' or 'tanh'"),
        (lambda: gains.gain("hardtanh", min_val=1.0), "min_val < max_val"),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(SchemeError) as caught:
        call()
    assert words in str(caught.value)


def test_callers_modules_stay_as_they_are() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.tanh(self.scale * x)

    module = Scaled()
    found = gains.moments(module)
    assert found.second_moment == pytest.approx(gains.moments("tanh", 2.0).second_moment, rel=1e-9)
    assert module.scale.dtype is torch.float32
    assert module.calls == 0
    assert module.training


def test_table_has_every_activation_of_torch() -> None:
    rows = {row.activation.split("(")[0]: row for row in gains.table()}
    assert set(rows) == set(gains.names()) - {"threshold"}
    mixing = {"MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    for name in set(nn.modules.activation.__all__) - mixing:
        assert gains.resolve_activation(name, **({"threshold": 0.0, "value": 0.0} if name == "Threshold" else {}))
    assert rows["relu"].gain == math.sqrt(2)


def test_claims_are_what_their_owners_say() -> None:
    timm_nfnet = pytest.importorskip("timm.models.nfnet")
    theirs = {name.replace("_", ""): value for name, value in timm_nfnet._nonlin_gamma.items()}
    for claim in gains.disagreements():
        if claim.source.startswith("NFNet"):
            assert claim.value == theirs[claim.activation.replace("_", "")]
            assert abs(claim.relative_error) < 1.1e-3
        if claim.source.startswith("torch"):
            assert claim.value == pytest.approx(nn.init.calculate_gain(claim.activation), rel=1e-12)


def test_gains_do_not_import_torch() -> None:
    """The package's contract imports torch, so an empty package with its path stands in for it."""
    code = """
import sys, types
sys.modules["fanin"] = package = types.ModuleType("fanin")
package.__path__ = [sys.argv[1]]
from fanin import gains
gains.gain("gelu"), gains.gain(lambda x: x * 2.0), gains.table()
assert "torch" not in sys.modules and "scipy" not in sys.modules
"""
    package = Path(gains.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(package)], check=True)
