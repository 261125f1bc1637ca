"""Fans, tested through the layer.

With unit-variance weights and unit-variance inputs, an output has variance fan_in; with unit-variance output
gradients, an input has gradient variance fan_out. Only the interior of feature maps is looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fanin
from fanin.errors import SchemeError, TraceError
from fanin.fans import IN_OUT, Axes, Block, Fans, even_blocks

Draw = torch.Generator


def convolution(kind: type[nn.Module], dims: int, **options: object) -> tuple[nn.Module, tuple[int, ...]]:
    layer = kind(8, 16, 3, bias=False, **options)
    return layer, (8, *[{1: 32, 2: 20, 3: 12}[dims]] * dims)


def interior(values: torch.Tensor, dims: int) -> torch.Tensor:
    """Feature maps without their border: an even length, so that both phases of a stride of 2 weigh the same."""
    for axis in range(values.ndim - dims, values.ndim):
        values = values.narrow(axis, 4, (values.shape[axis] - 8) // 2 * 2)
    return values


def measured_fans(layer: nn.Module, shape: tuple[int, ...], dims: int, draw: Draw, repeats: int = 60) -> Fans:
    """Second moments of outputs and input gradients over repeated draws of weights, inputs and output gradients."""
    forward, backward = [], []
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    for _ in range(repeats):
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=draw))
        inputs = torch.randn(8, *shape, generator=draw, requires_grad=True)
        outputs = layer(inputs)
        # The gradient of all outputs together, so that an input's gradient sums over every output it reaches.
        outputs.backward(torch.randn(outputs.shape, generator=draw))
        assert inputs.grad is not None
        # Without padding only the wider side has a border that fewer connections reach.
        transposed = outputs.shape[-1] > inputs.shape[-1]
        forward.append((interior(outputs, dims) if transposed else outputs).square().mean().item())
        backward.append((inputs.grad if transposed else interior(inputs.grad, dims)).square().mean().item())
    return Fans(sum(forward) / repeats, sum(backward) / repeats)


CONVOLUTIONS = [
    (nn.Conv1d, 1, {}),
    (nn.Conv1d, 1, {"stride": 2}),
    (nn.Conv2d, 2, {}),
    (nn.Conv2d, 2, {"groups": 4}),
    (nn.Conv2d, 2, {"groups": 8}),
    (nn.Conv2d, 2, {"stride": 2}),
    (nn.Conv2d, 2, {"dilation": 2}),
    (nn.Conv3d, 3, {}),
    (nn.ConvTranspose1d, 1, {"stride": 2}),
    (nn.ConvTranspose2d, 2, {}),
    (nn.ConvTranspose2d, 2, {"stride": 2}),
    (nn.ConvTranspose2d, 2, {"groups": 4, "stride": 2}),
]


@pytest.mark.parametrize(
    ("kind", "dims", "options"), CONVOLUTIONS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_convolutions_through_the_layer(
    kind: type[nn.Module], dims: int, options: dict[str, int], generator: Draw
) -> None:
    layer, shape = convolution(kind, dims, **options)
    measured = measured_fans(layer, shape, dims, generator)
    expected = fanin.fans_of(layer)
    # 60 draws of ≥ 128 weights, each mean over thousands of positions: the standard error is under 2 %.
    # A swapped fan (8 ↔ 16), a lost group or stride is off by 2 or more: over 25 standard errors.
    assert measured.fan_in == pytest.approx(expected.fan_in, rel=0.08)
    assert measured.fan_out == pytest.approx(expected.fan_out, rel=0.08)


@pytest.mark.parametrize("features", [(20, 50), (50, 20)])
def test_linear_through_the_layer(features: tuple[int, int], generator: Draw) -> None:
    layer = nn.Linear(*features, bias=False)
    measured = measured_fans(layer, features[:1], 0, generator, repeats=200)
    assert fanin.fans_of(layer) == features
    assert measured == pytest.approx(features, rel=0.08)


def test_embedding_through_the_layer(generator: Draw) -> None:
    table = nn.Embedding(1000, 16)
    with torch.no_grad():
        table.weight.copy_(torch.randn(1000, 16, generator=generator))
    assert fanin.fans_of(table) == (1, 16)
    assert table(torch.arange(1000)).square().mean().item() == pytest.approx(1.0, rel=0.05)


def test_bilinear_through_the_layer(generator: Draw) -> None:
    layer = nn.Bilinear(6, 10, 8, bias=False)
    forward, backward = [], []
    for _ in range(200):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(8, 6, 10, generator=generator))
        first = torch.randn(16, 6, generator=generator, requires_grad=True)
        second = torch.randn(16, 10, generator=generator, requires_grad=True)
        outputs = layer(first, second)
        outputs.backward(torch.randn(outputs.shape, generator=generator))
        assert first.grad is not None
        assert second.grad is not None
        forward.append(outputs.square().mean().item())
        backward.append(torch.cat([first.grad, second.grad], 1).square().mean().item())
    expected = fanin.fans_of(layer)
    assert expected == (60, 60)  # 2 · 8 · 6 · 10 / (6 + 10) on the way back
    assert (sum(forward) / 200, sum(backward) / 200) == pytest.approx(expected, rel=0.08)


def test_packed_attention_has_the_fans_of_its_blocks() -> None:
    attention = nn.MultiheadAttention(512, 8)
    assert fanin.fans_of(attention, "in_proj_weight") == (512, 512)
    wide = nn.MultiheadAttention(64, 4, kdim=32, vdim=16)
    assert fanin.fans_of(wide, "k_proj_weight") == (32, 64)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNN, nn.RNNCell])
def test_recurrent_gates_are_blocks(kind: Callable[..., nn.Module]) -> None:
    layer = kind(20, 12)
    suffix = "_l0" if isinstance(layer, nn.RNNBase) else ""
    assert fanin.fans_of(layer, f"weight_ih{suffix}") == (20, 12)
    assert fanin.fans_of(layer, f"weight_hh{suffix}") == (12, 12)


def test_stride_can_be_ignored_as_the_papers_do() -> None:
    layer = nn.Conv2d(8, 16, 3, stride=2)
    assert fanin.fans_of(layer) == (72, 36)
    assert fanin.fans_of(layer, stride=False) == (72, 144)


def test_the_shapes_of_other_libraries() -> None:
    from transformers.pytorch_utils import Conv1D

    assert fanin.fans_of(Conv1D(48, 16)) == (16, 48)
    assert IN_OUT.fans((16, 48)) == (16, 48)
    experts = Axes(in_axis=(1,), out_axis=(2,), batch_axis=(0,))
    assert experts.fans((8, 64, 256)) == (64, 256)


def test_grouped_query_blocks() -> None:
    blocks = (Block("q", (range(64),)), Block("k", (range(64, 80),)), Block("v", (range(80, 96),)))
    axes = Axes(blocks=blocks)
    assert axes.block_fans((96, 64)) == {"q": (64, 64), "k": (64, 16), "v": (64, 16)}
    assert axes.fans((96, 64)) == (64, (64 * 64 + 16 * 16 * 2) / 96)


def test_packed_depthwise_convolution() -> None:
    axes = Axes(groups=12, blocks=even_blocks("qkv", 12))
    assert axes.block_fans((12, 1, 3, 3))["k"] == (9, 9)


@given(
    out=st.integers(1, 12),
    into=st.integers(1, 12),
    groups=st.integers(1, 4),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_connection_is_counted_from_both_sides(
    out: int, into: int, groups: int, kernel: int, stride: int
) -> None:
    """outputs × fan_in = inputs × fan_out, for a strided convolution whose outputs are 1/stride of its inputs."""
    plain = Axes(groups=groups, stride=stride).fans((out * groups, into, kernel))
    assert out * groups / stride * plain.fan_in == pytest.approx(into * groups * plain.fan_out)
    transposed = Axes((0,), (1,), groups=groups, stride=stride, transposed=True).fans((into * groups, out, kernel))
    assert out * groups * stride * transposed.fan_in == pytest.approx(into * groups * transposed.fan_out)


def test_errors_say_what_to_write() -> None:
    with pytest.raises(SchemeError, match="distinct axes"):
        Axes(in_axis=(0,), out_axis=(0,))
    with pytest.raises(SchemeError, match="at least 2 axes"):
        Axes().fans((5,))
    with pytest.raises(SchemeError, match="groups that divide"):
        Axes(groups=3).fans((4, 2))
    layer = nn.Module()
    layer.table = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(TraceError, match="bare parameter can be contracted"):
        fanin.fans_of(layer, "table")
    with pytest.raises(TraceError, match="one of its parameters: weight, bias"):
        fanin.fans_of(nn.Linear(2, 2), "weigth")


def test_axes_survive_json() -> None:
    axes = Axes((0,), (2,), (1,), groups=2, stride=4, transposed=True, blocks=even_blocks("ab", 4, ["relu", None]))
    assert Axes.from_dict(axes.to_dict()) == axes
