"""Mean-field maps against closed forms, published numbers, and deep torch networks."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fanin import gains, meanfield
from fanin.errors import SchemeError
from fanin.gains.pairs import pair_expectation
from fanin.meanfield.maps import correlation_step
from fanin.meanfield.roots import find_root

WIDTH, DEPTH, INPUTS = 1000, 20, 64

# q*, σ_w², σ_b² on the critical line, to the digits given.
CRITICAL = [
    ("tanh", 0.01, 1.019711, 1.258e-6),
    ("tanh", 0.025874, 1.049912, 2.0e-5),
    ("tanh", 0.1, 1.177569, 0.000832),
    ("tanh", 0.25, 1.393962, 0.008125),
    ("tanh", 0.5, 1.687975, 0.038041),
    ("tanh", 1.0, 2.153303, 0.150965),
    ("erf", 0.5, 1.360350, 0.046550),
    ("erf", 1.0, 1.756204, 0.184140),
    ("hardtanh", 0.5, 1.186661, 0.059635),
]

# σ_w², χ₁, ξ_c of tanh at σ_b² = 0.05.
TANH_LINE = [(1.0, 0.75903, 3.63), (1.3, 0.88016, 7.83), (1.7, 0.98674, 74.9), (1.76, 0.99980, 4912)]


@pytest.fixture(autouse=True)
def _untouched_random_state() -> Any:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "length", "weight_variance", "bias_variance"), CRITICAL)
def test_critical_pairs(name: str, length: float, weight_variance: float, bias_variance: float) -> None:
    point = meanfield.critical_point(name, length)
    assert point.weight_variance == pytest.approx(weight_variance, abs=1e-6)
    assert point.bias_variance == pytest.approx(bias_variance, abs=5e-7, rel=1e-4)
    assert point.stable
    back = meanfield.fixed_point(name, point.weight_variance, point.bias_variance)
    assert (back.length, back.chi) == pytest.approx((length, 1.0), rel=1e-9)
    assert back.phase == "critical"
    again = meanfield.critical_point_at_bias(name, point.bias_variance)
    assert again.length == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize(("weight_variance", "chi", "depth"), TANH_LINE)
def test_tanh_in_the_ordered_phase(weight_variance: float, chi: float, depth: float) -> None:
    point = meanfield.fixed_point("tanh", weight_variance, 0.05)
    assert point.chi == pytest.approx(chi, abs=5e-6)
    assert point.correlation_depth == pytest.approx(depth, rel=1e-3)
    assert point.gradient_depth == pytest.approx(point.correlation_depth, rel=1e-9)
    assert (point.phase, point.correlation, point.outcome) == ("ordered", 1.0, "fixed_point")


@pytest.mark.parametrize(("weight_variance", "chi"), [(2.0, 1.04767), (2.5, 1.13352)])
def test_tanh_in_the_chaotic_phase(weight_variance: float, chi: float) -> None:
    point = meanfield.fixed_point("tanh", weight_variance, 0.05)
    assert point.chi == pytest.approx(chi, abs=5e-6)
    assert point.phase == "chaotic"
    assert point.gradient_growth(50) == pytest.approx(point.chi**50)
    assert 0.0 < point.correlation < 1.0
    fixed = meanfield.correlation_map("tanh", point.correlation, point.length, weight_variance, 0.05)
    assert fixed == pytest.approx(point.correlation, abs=1e-11)
    up, down = (
        meanfield.correlation_map("tanh", point.correlation + step, point.length, weight_variance, 0.05)
        for step in (1e-5, -1e-5)
    )
    assert point.correlation_slope == pytest.approx((up - down) / 2e-5, rel=1e-6)


@pytest.mark.parametrize(
    ("gain", "length", "chi"), [(5 / 3, 1.17848, 1.20983), (gains.gain("tanh"), 1.0, 1.177807), (1.0, 0.0, 1.0)]
)
def test_tanh_without_bias(gain: float, length: float, chi: float) -> None:
    point = meanfield.fixed_point("tanh", gain**2)
    assert (point.length, point.chi) == pytest.approx((length, chi), abs=5e-6)


def test_critical_lines_without_bias() -> None:
    found = {name: meanfield.critical_point_at_bias(name) for name in ("tanh", "erf", "hardtanh", "softsign")}
    variances = {name: point.weight_variance for name, point in found.items()}
    assert variances == pytest.approx({"tanh": 1.0, "erf": math.pi / 4, "hardtanh": 1.0, "softsign": 1.0}, rel=1e-9)
    assert {point.length for point in found.values()} == {0.0}
    sigmoid = meanfield.critical_point_at_bias("sigmoid")
    assert (sigmoid.weight_variance, sigmoid.length) == pytest.approx((103.007554, 45.624278), abs=1e-6)
    leaky = meanfield.critical_point_at_bias("leaky_relu", negative_slope=0.2)
    assert (leaky.weight_variance, leaky.gain) == pytest.approx((2 / 1.04, math.sqrt(2 / 1.04)))
    for name in ("gelu", "silu", "mish", "swiglu", "softplus"):
        with pytest.raises(SchemeError, match="stable critical point"):
            meanfield.critical_point_at_bias(name)


def test_gelu_is_critical_with_bias_but_not_for_long() -> None:
    point = meanfield.critical_point("gelu", 1.0)
    assert point.bias_variance > 0
    assert not point.stable
    with pytest.raises(SchemeError, match="stable critical point"):
        meanfield.critical_point_at_bias("gelu", point.bias_variance)
    nudged = meanfield.fixed_point("gelu", point.weight_variance, point.bias_variance, start=1.01)
    assert nudged.outcome == "exploding"


@pytest.mark.parametrize(
    ("name", "weight_variance", "bias_variance", "outcome", "length"),
    [
        ("relu", 2.0, 0.0, "every_length", 1.0),
        ("relu", 2.0, 0.1, "exploding", math.inf),
        ("relu", 2.001, 0.0, "exploding", math.inf),
        ("relu", 1.999, 0.0, "vanishing", 0.0),
        ("relu", 1.0, 0.1, "fixed_point", 0.2),
        ("abs", 1.0, 0.0, "every_length", 1.0),
        ("tanh", 0.9, 0.0, "vanishing", 0.0),
        ("gelu", 3.0, 0.0, "exploding", math.inf),
        ("relu_squared", 0.6, 0.0, "vanishing", 0.0),
        ("relu_squared", 0.7, 0.0, "exploding", math.inf),
        ("selu", 1.0, 0.0, "fixed_point", 1.0),
        ("cos", 4.0, 0.0, "fixed_point", 2.034209),
    ],
)
def test_outcomes(name: str, weight_variance: float, bias_variance: float, outcome: str, length: float) -> None:
    point = meanfield.fixed_point(name, weight_variance, bias_variance)
    assert point.outcome == outcome
    assert point.length == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(gains.names()) - {"threshold"}))
@pytest.mark.parametrize("length", [0.1, 1.0, 30.0])
def test_no_length_map_falls_steeply_enough_to_oscillate(name: str, length: float) -> None:
    up, down = (math.log(meanfield.length_map(name, length * math.exp(step), 1.0)) for step in (1e-4, -1e-4))
    assert (up - down) / 2e-4 > -0.5
    assert gains.moments(name, math.sqrt(length)).length_slope == pytest.approx((up - down) / 2e-4, abs=1e-5)


@pytest.mark.parametrize("correlation", [-1.0, -0.99, -0.3, 0.0, 1e-7, 0.5, 0.99, 1 - 1e-8, 1.0])
def test_arc_cosine_and_arc_sine_kernels(correlation: float) -> None:
    """Cho & Saul 2009 for ReLU, Williams 1998 for erf."""
    angle = math.acos(correlation)
    relu = pair_expectation(lambda x: np.maximum(x, 0.0), correlation, [0.0])
    sine = math.sqrt(1 - correlation**2)
    assert relu.value == pytest.approx((sine + correlation * (math.pi - angle)) / (2 * math.pi), abs=1e-13)
    assert relu.slope == pytest.approx((math.pi - angle) / (2 * math.pi), abs=1e-11)
    phi, std = gains.resolve_activation("erf"), 2.5
    erf = pair_expectation(lambda z: phi(std * z), correlation)
    reach = 2 * std**2 / (1 + 2 * std**2)
    assert erf.value == pytest.approx(2 / math.pi * math.asin(reach * correlation), abs=1e-13)
    assert erf.slope == pytest.approx(2 / math.pi * reach / math.sqrt(1 - (reach * correlation) ** 2), rel=1e-9)


@pytest.mark.parametrize("name", ["hardtanh", "selu", "relu6", "hardshrink", "gelu", "swiglu", "reglu"])
def test_pairs_against_sampling(name: str) -> None:
    """2²⁰ pairs with correlation 0.6 at length 1.7, five standard errors."""
    generator = torch.Generator().manual_seed(11)
    phi = gains.resolve_activation(name)
    shared, first, second = torch.randn(3, 2, 2**20, dtype=torch.float64, generator=generator)
    u, v = (math.sqrt(1.7) * (math.sqrt(0.6) * shared + math.sqrt(0.4) * own).numpy() for own in (first, second))
    product = phi(u[0]) * phi(v[0]) * (u[1] * v[1] if phi.gated else 1.0)
    second_moment = meanfield.length_map(name, 1.7, 1.0)
    sampled = product.mean() / second_moment
    tolerance = 5 * product.std() / 2**10 / second_moment
    assert meanfield.correlation_map(name, 0.6, 1.7, 1.0) == pytest.approx(sampled, abs=tolerance)
    assert tolerance < 0.05


@pytest.mark.parametrize("name", ["tanh", "selu", "swiglu", "reglu"])
@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.7])
def test_slope_of_the_correlation_map(name: str, correlation: float) -> None:
    up, down = (meanfield.correlation_map(name, correlation + step, 2.0, 1.5, 0.3) for step in (1e-5, -1e-5))
    slope = correlation_step(gains.resolve_activation(name), correlation, 2.0, 1.5, 0.3).slope
    assert slope == pytest.approx((up - down) / 2e-5, rel=1e-6)


@given(
    name=st.sampled_from(["relu", "tanh", "gelu", "hardtanh", "sigmoid", "hardshrink"]),
    correlations=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    length=st.floats(0.01, 20),
    bias_variance=st.floats(0, 1),
)
@settings(deadline=None, max_examples=40)
def test_correlation_map_is_increasing_and_bounded(
    name: str, correlations: tuple[float, float], length: float, bias_variance: float
) -> None:
    low, high = (
        meanfield.correlation_map(name, correlation, length, 1.5, bias_variance) for correlation in sorted(correlations)
    )
    assert low >= -1e-12
    assert low <= high + 1e-9
    assert high <= 1.0
    assert meanfield.correlation_map(name, 1.0, length, 1.5, bias_variance) == pytest.approx(1.0)


@given(name=st.sampled_from(["relu", "tanh", "gelu", "hardtanh"]), correlation=st.floats(-1, 1))
@settings(deadline=None, max_examples=30)
def test_correlation_map_stays_in_range(name: str, correlation: float) -> None:
    assert -1.0 <= meanfield.correlation_map(name, correlation, 1.0, 1.0) <= 1.0


@given(slope=st.floats(-2, 2), length=st.floats(1e-6, 1e6), factor=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=50)
def test_length_scales_for_homogeneous_activations(slope: float, length: float, factor: float) -> None:
    once = meanfield.length_map("leaky_relu", length, 2.0, negative_slope=slope)
    scaled = meanfield.length_map("leaky_relu", factor * length, 2.0, negative_slope=slope)
    assert scaled == pytest.approx(factor * once, rel=1e-12)
    assert once == pytest.approx((1 + slope**2) * length, rel=1e-12)


class Measured(NamedTuple):
    """Per layer, over inputs: log second moment, log gradient second moment, and the correlation of two inputs."""

    lengths: torch.Tensor
    gradients: torch.Tensor
    correlations: torch.Tensor


def measure(
    activation: nn.Module,
    weight_variance: float,
    bias_variance: float = 0.0,
    correlation: float = 0.0,
    depth: int = DEPTH,
    scale: float = 1.0,
) -> Measured:
    """A deep torch network, one forward and one backward."""
    generator = torch.Generator().manual_seed(5)
    first, second = scale * torch.randn(2, INPUTS, WIDTH, generator=generator)
    x = torch.cat([first, correlation * first + math.sqrt(1 - correlation**2) * second])
    outputs = []
    for _ in range(depth):
        layer = torch.nn.utils.skip_init(nn.Linear, WIDTH, WIDTH)
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(weight_variance / WIDTH), generator=generator)
            layer.bias.normal_(0.0, math.sqrt(bias_variance), generator=generator)
        z = layer(x.requires_grad_())
        z.retain_grad()
        outputs.append(z)
        x = activation(z)
    outputs[-1].backward(torch.randn(outputs[-1].shape, generator=generator))
    lengths = torch.stack([z.detach().square().mean() for z in outputs])
    gradients = torch.stack([z.grad.square().mean() for z in outputs])
    pairs = [z.detach().chunk(2) for z in outputs]
    correlations = [(a * b).mean() / (a.square().mean() * b.square().mean()).sqrt() for a, b in pairs]
    return Measured(lengths, gradients, torch.stack(correlations))


@pytest.mark.parametrize(
    ("activation", "weight_variance", "bias_variance"),
    [
        (nn.ReLU(), 2.0, 0.0),
        (nn.Tanh(), 1.760955, 0.05),
        (nn.Tanh(), 2.5, 0.05),
        (nn.GELU(), gains.gain("gelu") ** 2, 0.0),
        (nn.SELU(), 1.0, 0.0),
        (nn.Hardtanh(), 1.3, 0.02),
        (nn.LeakyReLU(0.3), 1.5, 0.1),
        (nn.Sigmoid(), 4.0, 0.1),
    ],
    ids=str,
)
def test_profile_of_a_deep_torch_network(activation: nn.Module, weight_variance: float, bias_variance: float) -> None:
    """Width 1000, depth 20: log q and log gradient within five standard deviations of the theory.

    A layer of width n scatters q by √((E φ⁴/(E φ²)² − 1)/n) relative, and depth adds the variances up. The gain wrong
    by √2 moves log q or the log gradient of some layer by more than twenty of these deviations, as is asserted.
    """
    predicted = meanfield.profile(activation, DEPTH, weight_variance, bias_variance, input_correlation=0.3)
    wrong = meanfield.profile(activation, DEPTH, 2 * weight_variance, bias_variance)
    measured = measure(activation, weight_variance, bias_variance, correlation=0.3)
    sigma = scatter(activation, predicted.lengths[-1])
    lengths, gradients = (np.log(values.numpy()) for values in (measured.lengths, measured.gradients))
    gradients = gradients - gradients[-1]
    assert np.abs(lengths - np.log(predicted.lengths)).max() < 5 * sigma
    assert np.abs(gradients - np.log(predicted.gradients)).max() < 5 * sigma
    assert np.abs(measured.correlations.numpy() - predicted.correlations).max() < 0.1
    power = max(
        np.abs(np.log(wrong.lengths) - np.log(predicted.lengths)).max(),
        np.abs(np.log(wrong.gradients) - np.log(predicted.gradients)).max(),
    )
    assert power > 20 * sigma


def test_gradient_grows_by_the_derivative_of_its_own_layer() -> None:
    """Layer 1 is saturated (χ = 0.07), layer 2 is not (0.61): a χ from the wrong layer is off by a factor 9."""
    predicted = meanfield.profile("tanh", 3, 1.5, input_second_moment=100.0)
    gradients = measure(nn.Tanh(), 1.5, depth=3, scale=10.0).gradients
    ratios = [float(before / after) for before, after in itertools.pairwise(gradients)]
    assert ratios == pytest.approx(predicted.chis[:2], rel=0.15)
    assert predicted.chis[1] > 3 * predicted.chis[0]
    assert predicted.gradients == pytest.approx((predicted.chis[0] * predicted.chis[1], predicted.chis[1], 1.0))


def scatter(activation: nn.Module, length: float) -> float:
    """The standard deviation of log q after DEPTH layers for one input; of a mean over inputs it is smaller."""
    phi = gains.resolve_activation(activation)
    square = gains.from_callable(lambda x: phi(x) ** 2, kinks=phi.kinks)
    kurtosis = gains.moments(square, math.sqrt(length)).second_moment
    second = gains.moments(phi, math.sqrt(length)).second_moment
    return math.sqrt(DEPTH * (kurtosis / second**2 - 1) / WIDTH)


def test_profile_extremes() -> None:
    up = meanfield.profile("square", 20, 2.0, input_correlation=0.5)
    assert math.isinf(up.lengths[-1])
    assert math.isnan(up.chis[-1])
    down = meanfield.profile("relu_squared", 20, 0.1, input_correlation=0.5)
    assert down.lengths[-1] == 0.0
    assert math.isnan(down.correlations[-1])
    assert meanfield.profile("tanh", 1, 1.0).gradients == (1.0,)


def test_callables_give_what_names_give() -> None:
    named = meanfield.fixed_point("hardtanh", 2.0, 0.05)
    called = meanfield.fixed_point(lambda x: np.clip(x, -1.0, 1.0), 2.0, 0.05)
    for attribute in ("length", "correlation", "chi", "length_slope", "correlation_slope"):
        assert getattr(called, attribute) == pytest.approx(getattr(named, attribute), rel=1e-8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: meanfield.length_map("tanh", -1.0, 1.0),
        lambda: meanfield.length_map("tanh", 1.0, math.nan),
        lambda: meanfield.correlation_map("tanh", 1.1, 1.0, 1.0),
        lambda: meanfield.correlation_map("tanh", math.nan, 1.0, 1.0),
        lambda: meanfield.correlation_map("tanh", 0.5, 1.0, 0.0),
        lambda: meanfield.fixed_point("tanh", 0.0),
        lambda: meanfield.fixed_point("tanh", 1.0, start=0.0),
        lambda: meanfield.critical_point("sigmoid", 1.0),
        lambda: meanfield.critical_point("threshold", 1.0, threshold=50.0, value=1.0),
        lambda: meanfield.profile("tanh", 0, 1.0),
        lambda: meanfield.profile("tanh", 3, 1.0, input_correlation=2.0),
        lambda: meanfield.critical_point_at_bias("relu", 0.1),
    ],
)
def test_refusals(call: Any) -> None:
    with pytest.raises(SchemeError, match="needed: "):
        call()


def test_depth_scale() -> None:
    assert meanfield.depth_scale(math.exp(-0.25)) == pytest.approx(4.0)
    assert meanfield.depth_scale(math.exp(0.25)) == pytest.approx(4.0)
    assert meanfield.depth_scale(1.0) == math.inf
    assert meanfield.depth_scale(0.0) == 0.0


def test_roots_are_found_quickly() -> None:
    """A stale end would make the false position linear, and slow, on a function as bent as this."""
    calls = []

    def bent(x: float) -> float:
        calls.append(x)
        return x**9 - 1e-3

    assert find_root(bent, 0.0, 2.0) == pytest.approx(1e-3 ** (1 / 9), rel=1e-12)
    assert len(calls) < 60
