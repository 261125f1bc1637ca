"""The guide's six functions, and each claim that such guides make about them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fanin import guide
from fanin.errors import RecipeError, SchemeError

pytestmark = pytest.mark.usefixtures("untouched_random_state")

WIDTH = 512


def plain_net(depth: int, activation: Callable[[], nn.Module] | None, width: int = WIDTH) -> nn.Sequential:
    """Layers of one width, each followed by the activation."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(depth):
            layers.append(nn.Linear(width, width))
            if activation is not None:
                layers.append(activation())
    return nn.Sequential(*layers)


def second_moments(net: nn.Sequential, inputs: torch.Tensor) -> list[float]:
    """E h² after every linear layer."""
    found = []
    with torch.no_grad():
        for layer in net:
            inputs = layer(inputs)
            if isinstance(layer, nn.Linear):
                found.append(inputs.square().mean().item())
    return found


def classifier() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, draw: torch.Generator) -> None:
    optimizer.zero_grad()
    inputs = torch.randn(32, 20, generator=draw)
    functional.cross_entropy(net(inputs), torch.randint(3, (32,), generator=draw)).backward()
    optimizer.step()


def assert_units_are_twins(layer: nn.Linear) -> None:
    assert layer.weight.grad is not None
    for values in (layer.weight, layer.weight.grad):
        assert torch.equal(values, values[:1].expand_as(values)), "units of a layer differ"


def test_zero_start_keeps_units_equal_through_training(generator: torch.Generator) -> None:
    net = guide.zero_initialization(classifier())
    assert all(not parameter.any() for parameter in net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(10):
        train_step(net, optimizer, generator)
        assert_units_are_twins(net[0])
        assert_units_are_twins(net[2])
        hidden = net[:2](torch.randn(8, 20, generator=generator))
        assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))


def test_small_normal_breaks_the_symmetry_and_vanishes_with_depth(generator: torch.Generator) -> None:
    net = guide.random_normal_initialization(classifier(), std=0.01)
    train_step(net, torch.optim.SGD(net.parameters(), lr=0.5), generator)
    grad = net[0].weight.grad
    assert not torch.allclose(grad[0], grad[1], rtol=0.1)
    deep = guide.random_normal_initialization(plain_net(20, nn.ReLU), std=0.01)
    moments = second_moments(deep, torch.randn(64, WIDTH, generator=generator))
    # Each layer multiplies the second moment by 0.01² · 512 / 2 = 0.0256: down by over 10²⁰ in 20 layers
    # if biases were zero; theirs, 10⁻⁴ each, are what is left.
    assert moments[0] == pytest.approx(0.01**2 * WIDTH, rel=0.1)
    assert moments[-1] < 2e-4


@pytest.mark.parametrize("activation", [None, nn.Tanh])
def test_xavier_keeps_variance_both_ways_in_linear_and_tanh_nets(
    activation: Callable[[], nn.Module] | None, generator: torch.Generator
) -> None:
    net = guide.xavier_initialization(plain_net(10, activation))
    # A small input keeps tanh near its linear regime, where Glorot's argument holds.
    inputs = 0.1 * torch.randn(256, WIDTH, generator=generator)
    inputs.requires_grad_(True)
    outputs = net(inputs)
    weights = torch.randn(outputs.shape, generator=generator)
    outputs.backward(weights)
    assert inputs.grad is not None
    forward = outputs.square().mean().item() / inputs.square().mean().item()
    backward = inputs.grad.square().mean().item() / weights.square().mean().item()
    # Ten layers of width 512: the log of each ratio has standard error √(10 · 2/512) ≈ 0.2 at most.
    # A gain of √2 would be 2¹⁰ = e^6.9: over 30 standard errors.
    assert abs(math.log(forward)) < 0.6
    assert abs(math.log(backward)) < 0.6


def test_he_keeps_the_second_moment_where_xavier_halves_it(generator: torch.Generator) -> None:
    inputs = torch.randn(256, WIDTH, generator=generator)
    he = second_moments(guide.he_initialization(plain_net(50, nn.ReLU), seed=1), inputs)
    xavier = second_moments(guide.xavier_initialization(plain_net(50, nn.ReLU), seed=1), inputs)
    # log of the moment after L ReLU layers fluctuates by √(5L/width) = 0.7 at L = 50.
    assert abs(math.log(he[-1] / he[0])) < 2.8
    assert he[0] == pytest.approx(2.0, rel=0.05)
    halvings = math.log2(xavier[0] / xavier[-1])
    assert halvings == pytest.approx(49, abs=4)


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
def test_orthogonal_matrices_have_modulus_gain(gain: float) -> None:
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 96), nn.Linear(96, 24))
    guide.orthogonal_initialization(net, gain=gain)
    for layer in net:
        singular = torch.linalg.svdvals(layer.weight.detach().double())
        assert torch.allclose(singular, torch.full_like(singular, gain), atol=1e-5)
    moduli = torch.linalg.eigvals(net[0].weight.detach().double()).abs()
    assert torch.allclose(moduli, torch.full_like(moduli, gain), atol=1e-5)


def test_two_layers_never_share_a_seed() -> None:
    net = guide.he_initialization(plain_net(2, nn.ReLU, width=64))
    assert not torch.equal(net[0].weight, net[2].weight)
    again = guide.he_initialization(plain_net(2, nn.ReLU, width=64))
    assert torch.equal(net[0].weight, again[0].weight)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(8, 16, 3),
        lambda: nn.ConvTranspose1d(8, 16, 4, stride=2),
        lambda: nn.LSTM(8, 16),
        lambda: nn.MultiheadAttention(16, 2),
        lambda: nn.Bilinear(4, 5, 6),
        lambda: nn.GRUCell(5, 7),
    ],
)
def test_every_layer_with_weights_is_written(layer: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        module = layer()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    guide.he_initialization(module)
    for name, value in module.named_parameters():
        assert not torch.equal(value, before[name]) or not before[name].any(), name
        if "bias" in name:
            assert not value.any()


@pytest.mark.parametrize(
    ("activation", "initialization", "std", "bound"),
    [
        ("relu", "he", math.sqrt(2 / 256), None),
        ("gelu", "he", 1.533530 / 16, None),
        ("tanh", "kaiming", 1.592537 / 16, None),
        ("tanh", "xavier", math.sqrt(2 / 768), None),
        ("sigmoid", "glorot", math.sqrt(2 / 768), None),
        ("relu", "xavier", math.sqrt(2 / 768), math.sqrt(6 / 768)),
        ("relu", "orthogonal", 1 / math.sqrt(512), None),
    ],
)
def test_initialize_model(activation: str, initialization: str, std: float, bound: float | None) -> None:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(256, 512)
    guide.initialize_model(layer, activation=activation, initialization=initialization)
    # 131,072 weights: the standard error is 0.2 %; a lost √2 is over 200 of them away.
    assert layer.weight.std().item() == pytest.approx(std, rel=0.01)
    assert not layer.bias.any()
    largest = layer.weight.abs().max().item()
    if bound is not None:
        assert 0.99 * bound < largest <= bound
    else:
        assert largest > 3.5 * std


def test_unknown_names_are_errors_that_list_the_known() -> None:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(2, 2)
    with pytest.raises(RecipeError, match="he, xavier, orthogonal"):
        guide.initialize_model(layer, initialization="hee")
    with pytest.raises(SchemeError, match="relu"):
        guide.initialize_model(layer, activation="rellu")
