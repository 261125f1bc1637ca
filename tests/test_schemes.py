"""The laws of schemes, written once and run on every one of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import fanin
from fanin.errors import SchemeError
from fanin.fans import Axes, Block, Fans, even_blocks
from fanin.schemes import (
    REGISTRY,
    CentredOrthogonal,
    Constant,
    DeltaOrthogonal,
    Dirac,
    Identity,
    Keep,
    LooksLinear,
    Normal,
    Ones,
    Orthogonal,
    Packed,
    ScaledOrthogonal,
    Scheme,
    Sparse,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
)
from fanin.schemes.normal import truncated_moments

SCHEMES: list[Scheme] = [
    Zeros(),
    Ones(),
    Constant(-0.3),
    Normal(0.02),
    Normal(0.5, mean=2.0),
    Uniform(-0.1, 0.3),
    TruncatedNormal(0.02),
    TruncatedNormal(0.02, corrected=True),
    TruncatedNormal(1.0, low=-1.0, high=3.0),
    TruncatedNormal(0.02, low=-2.0, high=2.0, bounds="absolute"),
    TruncatedNormal(0.5, mean=0.25, low=-0.5, high=1.0, bounds="absolute"),
    *(
        VarianceScaling(2.0, mode, distribution)
        for mode in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
        for distribution in ("normal", "uniform", "truncated_normal")
    ),
    Orthogonal(),
    Orthogonal(math.sqrt(2)),
    ScaledOrthogonal(),
    CentredOrthogonal(-4.0),
    DeltaOrthogonal(1.5),
    LooksLinear(),
    LooksLinear(-1.5, mirrored=False),
    Identity(0.5),
    Sparse(),
    Sparse(3, 0.7),
]
SITES: list[tuple[str, tuple[int, ...], Axes]] = [
    ("square", (300, 300), Axes()),
    ("tall", (600, 150), Axes()),
    ("wide", (150, 600), Axes()),
    ("in-out", (150, 600), Axes((0,), (1,))),
    ("conv", (64, 32, 5, 5), Axes()),
    ("grouped", (96, 8, 3, 3), Axes(groups=4)),
    ("depthwise", (2048, 1, 3, 3), Axes(groups=2048)),
    ("transposed", (32, 64, 5, 5), Axes((0,), (1,), stride=4, transposed=True)),
    ("experts", (5, 100, 120), Axes((1,), (2,), (0,))),
    ("packed", (300, 200), Axes(blocks=even_blocks("qkv", 300))),
    (
        "grouped-query",
        (384, 64),
        Axes(blocks=(Block("q", (range(320),)), Block("kv", (range(320, 384, 2), range(321, 384, 2))))),
    ),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
class TestEveryScheme:
    def test_survives_json(self, scheme: Scheme) -> None:
        again = Scheme.from_dict(json.loads(json.dumps(scheme.to_dict())))
        assert again == scheme
        assert hash(again) == hash(scheme)

    def test_scaling_scales_what_is_expected(self, scheme: Scheme) -> None:
        fans = Fans(30, 50)
        before, after = scheme.expected(fans), scheme.scaled(3.0).expected(fans)
        assert after == pytest.approx((3 * before.mean, 3 * before.std))

    @pytest.mark.parametrize(("shape", "axes"), [site[1:] for site in SITES], ids=[site[0] for site in SITES])
    def test_draws_what_it_expects(self, scheme: Scheme, shape: tuple[int, ...], axes: Axes) -> None:
        values = fanin.fill_(torch.full(shape, math.nan), scheme, seed=7, axes=axes).double()
        expected = scheme.expected(axes.fans(shape), shape, axes)
        count = values.numel()
        # Five standard errors of the mean and, for a normal law, of the std: at ≥ 18,432 elements that is 2.6 %,
        # so a factor √2 stands over 75 standard errors away. A sparse law's kurtosis widens the std's error.
        kurtosis = 3 * shape[-1] * math.prod(shape[2:] or (1,)) / scheme.incoming if isinstance(scheme, Sparse) else 3
        assert values.mean().item() == pytest.approx(expected.mean, abs=5 * expected.std / math.sqrt(count) + 1e-7)
        error = expected.std * math.sqrt(max(kurtosis - 1, 2) / (4 * count))
        assert values.std(correction=0).item() == pytest.approx(expected.std, abs=5 * error + 1e-7)

    def test_is_decided_by_seed_and_name(self, scheme: Scheme) -> None:
        def draw(seed: int, name: str) -> torch.Tensor:
            return fanin.fill_(torch.empty(40, 60), scheme, seed=seed, name=name)

        assert torch.equal(draw(1, "a"), draw(1, "a"))
        if scheme.expected(Fans(60, 40)).std and not isinstance(scheme, Identity):
            assert not torch.equal(draw(1, "a"), draw(2, "a"))
            assert not torch.equal(draw(1, "a"), draw(1, "b"))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_low_precision_is_the_rounded_value(self, scheme: Scheme, dtype: torch.dtype) -> None:
        single = fanin.fill_(torch.empty(48, 64), scheme, seed=3)
        other = fanin.fill_(torch.empty(48, 64, dtype=dtype), scheme, seed=3)
        if dtype == torch.float64:
            assert torch.allclose(other.float(), single, atol=1e-5)
        else:
            assert torch.equal(other, single.to(dtype))

    def test_empty_tensors_are_fine(self, scheme: Scheme) -> None:
        assert fanin.fill_(torch.empty(0, 4), scheme, seed=0).shape == (0, 4)

    def test_strides_do_not_matter(self, scheme: Scheme) -> None:
        plain = fanin.fill_(torch.empty(32, 48), scheme, seed=5)
        turned = torch.empty(48, 32).t()
        spaced = torch.zeros(32, 96)[:, ::2]
        assert torch.equal(fanin.fill_(turned, scheme, seed=5), plain)
        assert torch.equal(fanin.fill_(spaced, scheme, seed=5), plain)


def test_every_registered_scheme_is_under_the_laws() -> None:
    assert set(REGISTRY) - {type(scheme).__name__ for scheme in SCHEMES} == {"Keep", "Packed"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: (nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30)), (7, 24)),
        lambda: (nn.Sequential(nn.Conv1d(8, 16, 3), nn.GELU(), nn.Conv1d(16, 12, 5, stride=2)), (2, 8, 21)),
        lambda: (nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.ConvTranspose2d(8, 6, 4, 2)), (2, 4, 9, 9)),
        lambda: (nn.Sequential(nn.Conv1d(4, 6, 3), nn.Softplus(), nn.Flatten(), nn.Linear(36, 10)), (2, 4, 8)),
    ],
)
def test_layers_that_look_linear_are(build: object) -> None:
    """Additive and odd, for activations whose odd part is linear; the second half of the outputs mirrors the first."""
    with torch.random.fork_rng(devices=[]):
        model, shape = build()  # type: ignore[operator]
    weights = [module for module in model if hasattr(module, "weight")]
    for index, module in enumerate(weights):
        axes = fanin.trace(model, torch.zeros(shape))[f"{list(model).index(module)}.weight"].axes
        fanin.fill_(module.weight, LooksLinear(mirrored=index > 0), seed=index, axes=axes)
        nn.init.zeros_(module.bias)
    model = model.double()
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        together, apart = model(one + other), model(one) + model(other)
    assert torch.allclose(together, apart, atol=1e-5)
    first, second = together.chunk(2, 1)
    assert torch.allclose(first, -second, atol=1e-5)
    assert together.square().mean() > 0.5


def test_looking_linear_keeps_the_second_moment() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(
            nn.Linear(128, 256), *(layer for _ in range(20) for layer in (nn.ReLU(), nn.Linear(256, 256)))
        )
    for index in range(0, 41, 2):
        fanin.fill_(model[index].weight, LooksLinear(mirrored=index > 0), seed=index)
        nn.init.zeros_(model[index].bias)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = x.square().mean(1), model(x).square().mean(1)
    assert torch.allclose(before, after, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(64, 64), nn.Linear(64, 200), nn.Linear(64, 20), nn.Conv1d(8, 6, 3), nn.Conv1d(8, 6, 3, groups=2)],
    ids=repr,
)
def test_a_centred_layer_does_not_see_the_mean(layer: nn.Module) -> None:
    """What has mean zero keeps its mean square in a linear layer, and a shift of all units changes nothing."""
    fanin.fill_(layer.weight, CentredOrthogonal(4.0), axes=Axes(groups=getattr(layer, "groups", 1)), seed=3)
    nn.init.zeros_(layer.bias)
    layer = layer.double()
    x = torch.randn(300, *((64,) if layer.weight.dim() == 2 else (8, 3)), generator=torch.Generator().manual_seed(0))
    x = x.double()
    with torch.no_grad():
        signal, shifted = layer(x), layer(x + 0.5)
    assert torch.allclose(signal, shifted, atol=1e-5)
    if layer.weight.dim() == 2:
        assert signal.square().mean().sqrt().item() == pytest.approx(4.0, rel=0.05)
    if tuple(layer.weight.shape) == (64, 64):
        lengths = signal.norm(dim=1) / (x - x.mean(1, keepdim=True)).norm(dim=1)
        assert torch.allclose(lengths, torch.full_like(lengths, 4 * math.sqrt(64 / 63)), atol=1e-4)


def test_one_column_cannot_be_centred() -> None:
    with pytest.raises(fanin.errors.SchemeError, match="ScaledOrthogonal"):
        fanin.fill_(torch.empty(5, 1), CentredOrthogonal())


@pytest.mark.parametrize(
    ("scheme", "std"),
    [
        (fanin.schemes.lecun_normal(), 0.0625),
        (fanin.schemes.xavier_normal(), 0.0510310363),
        (fanin.schemes.xavier_uniform(), 0.0510310363),
        (fanin.schemes.he_normal(), 0.0883883476),
        (fanin.schemes.he_normal(0.2), 0.0866719060),
        (fanin.schemes.he_normal(mode="fan_out"), 0.0625),
        (VarianceScaling(1.0, "fan_geo_avg"), 0.0525560260),
        (VarianceScaling(1 / 3, "fan_in", "uniform"), 0.0360843918),
        (Orthogonal(), 0.0441941738),
        (ScaledOrthogonal(), 0.0625),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_published_constants(scheme: Scheme, std: float) -> None:
    """A weight of shape (512, 256): fan_in 256, fan_out 512."""
    assert scheme.expected(Fans(256, 512)).std == pytest.approx(std, rel=1e-7)


def test_truncation_conventions() -> None:
    assert truncated_moments(-2, 2).std == pytest.approx(0.8796256610342398, rel=1e-12)
    assert truncated_moments(-3, 3).std == pytest.approx(0.9865783926, rel=1e-9)
    fans = Fans(1, 1)
    assert TruncatedNormal(0.02).expected(fans).std == pytest.approx(0.0175925, abs=1e-7)
    assert TruncatedNormal(0.02, low=-3, high=3).expected(fans).std == pytest.approx(0.0197316, abs=1e-7)
    assert TruncatedNormal(0.02, bounds="absolute").expected(fans).std == pytest.approx(0.02)
    assert TruncatedNormal(0.0625, corrected=True).parent_std == pytest.approx(0.0710529521)


@pytest.mark.parametrize(
    "scheme", [TruncatedNormal(0.02), TruncatedNormal(0.5, mean=0.25, low=-0.5, high=1, bounds="absolute")]
)
def test_nothing_lies_beyond_the_cut(scheme: TruncatedNormal) -> None:
    values = fanin.fill_(torch.empty(1_000_000), scheme, seed=1)
    low, high = scheme.limits
    assert low <= values.min().item() < low + 0.01 * (high - low)
    assert high >= values.max().item() > high - 0.01 * (high - low)


@pytest.mark.parametrize("gain", [1.0, 1.7])
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_orthogonal_singular_values(shape: tuple[int, int], gain: float) -> None:
    weight = fanin.fill_(torch.empty(shape, dtype=torch.float64), Orthogonal(gain), seed=2)
    assert torch.allclose(torch.linalg.svdvals(weight), torch.full((min(shape),), gain, dtype=torch.float64), atol=1e-5)
    if shape[0] == shape[1]:
        assert torch.allclose(
            torch.linalg.eigvals(weight).abs(), torch.full((64,), gain, dtype=torch.float64), atol=1e-5
        )


def test_orthogonal_blocks_groups_and_experts_are_orthogonal_each() -> None:
    packed = fanin.fill_(torch.empty(96, 32), Orthogonal(), axes=Axes(blocks=even_blocks("qkv", 96)))
    for block in packed.split(32):
        assert torch.allclose(block @ block.T, torch.eye(32), atol=1e-5)
    assert not torch.allclose(packed[:32], packed[32:64], atol=0.1)
    experts = fanin.fill_(torch.empty(3, 16, 40), Orthogonal(), axes=Axes((1,), (2,), (0,)))
    for matrix in experts:
        assert torch.allclose(matrix @ matrix.T, torch.eye(16), atol=1e-5)
    grouped = fanin.fill_(torch.empty(8, 4, 3, 3), Orthogonal(), axes=Axes(groups=2))
    for group in grouped.flatten(1).split(4):
        assert torch.allclose(group @ group.T, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (16, 8)])
def test_delta_orthogonal_is_an_isometry(shape: tuple[int, int], generator: torch.Generator) -> None:
    layer = nn.Conv2d(shape[1], shape[0], 3, padding=1, padding_mode="circular", bias=False).double()
    fanin.fill_(layer.weight, DeltaOrthogonal(), seed=4)
    images = torch.randn(5, shape[1], 6, 6, generator=generator, dtype=torch.float64)
    assert torch.allclose(layer(images).flatten(1).norm(dim=1), images.flatten(1).norm(dim=1), rtol=1e-5)


def test_scaled_orthogonal_keeps_the_second_moment(generator: torch.Generator) -> None:
    for features in ((256, 512), (512, 256)):
        layer = nn.Linear(*features, bias=False)
        fanin.fill_(layer.weight, ScaledOrthogonal(), seed=4)
        inputs = torch.randn(2000, features[0], generator=generator)
        assert layer(inputs).square().mean().item() == pytest.approx(1.0, rel=0.02)


def test_dirac_passes_the_input_through_every_group(generator: torch.Generator) -> None:
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
    fanin.fill_(layer.weight, Dirac(), axes=Axes(groups=2))
    images = torch.randn(2, 6, 5, 5, generator=generator)
    assert torch.equal(layer(images), images)


def test_sparse_units_have_exactly_their_weights() -> None:
    weight = fanin.fill_(torch.empty(50, 400), Sparse(15), seed=6)
    assert (weight != 0).sum(1).tolist() == [15] * 50
    dense = fanin.fill_(torch.empty(50, 10), Sparse(15), seed=6)
    assert (dense != 0).all()


def test_packed_parts_fill_their_own_rows() -> None:
    axes = Axes((), (0,), blocks=even_blocks("ifgo", 12))
    bias = fanin.fill_(torch.full((12,), math.nan), Packed.of(i=Zeros(), f=Ones(), g=Zeros(), o=Zeros()), axes=axes)
    assert bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6


def test_blocks_share_the_stream_of_the_whole() -> None:
    """A block's scale does not change which random numbers its rows take."""
    axes = Axes(blocks=even_blocks("ab", 6))
    plain = fanin.fill_(torch.empty(6, 5), Normal(1.0), seed=1, axes=axes)
    mixed = fanin.fill_(torch.empty(6, 5), Packed.of(a=Normal(1.0), b=Normal(2.0)), seed=1, axes=axes)
    assert torch.equal(mixed, plain * torch.tensor([1.0] * 3 + [2.0] * 3)[:, None])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Normal(-1), "of at least 0"),
        (lambda: Normal(math.nan), "a finite number"),
        (lambda: Uniform(2, 1), "of at least 2"),
        (lambda: TruncatedNormal(low=1, high=0), "low below high"),
        (lambda: TruncatedNormal(bounds="absolute", corrected=True), "bounds in σ"),
        (lambda: VarianceScaling(mode="fan_inn"), "did you mean 'fan_in'"),
        (lambda: VarianceScaling(distribution="gauss"), "normal, uniform, truncated_normal"),
        (lambda: Sparse(0), "of at least 1"),
        (lambda: Packed(()), "distinct block names"),
        (lambda: Keep().scaled(2), "what the constructor wrote is not known"),
        (lambda: Scheme.from_dict({"scheme": "Normall"}), "did you mean 'Normal'"),
        (lambda: Scheme.from_dict({"scheme": "Normal", "stdd": 1}), "did you mean 'std'"),
        (lambda: Scheme.from_dict({"scheme": "Constant"}), "value"),
        (lambda: fanin.fill_(torch.empty(5), Orthogonal()), "no matrix from inputs to outputs"),
        (lambda: fanin.fill_(torch.empty(4, 4, 2, 2), DeltaOrthogonal()), "odd kernel sizes"),
    ],
)
def test_errors_name_the_fix(build: object, words: str) -> None:
    with pytest.raises(SchemeError, match=words):
        build()  # type: ignore[operator]


HEADS = Block("gate", (range(32), range(48, 80))), Block("up", (range(32, 48), range(80, 96)))
"""Of six groups of sixteen rows, as in EfficientViT: four of them are one block, two the other."""
UNEVEN = Block("gate", (range(17),)), Block("up", (range(17, 96),))


def test_blocks_of_a_grouped_convolution_lie_in_some_of_the_groups() -> None:
    axes, shape = Axes(groups=6, blocks=HEADS), (96, 16, 1, 1)
    for name, groups in (("gate", range(4)), ("up", range(2))):
        fans, (rows, own) = axes.block_fans(shape)[name], axes.of_block(HEADS[name == "up"], shape)
        assert (own.groups, own.fans(rows)) == (len(groups), fans) == (len(groups), Fans(16, 16))
    drawn = fanin.fill_(torch.empty(shape), Orthogonal(), axes=axes)[:, :, 0, 0]
    for group in drawn.split(16):
        assert torch.allclose(group @ group.T, torch.eye(16), atol=1e-5)


@pytest.mark.parametrize("scheme", [VarianceScaling(2.0), VarianceScaling(1.0, "fan_out"), Orthogonal()], ids=str)
def test_blocks_that_share_a_group_unevenly_are_drawn(scheme: Scheme) -> None:
    """Each block keeps its own fans; the output has the power that they promise, through the layer."""
    axes, shape = Axes(groups=6, blocks=UNEVEN), (96, 16, 3, 3)
    layer = nn.Conv2d(96, 96, 3, groups=6, bias=False)
    powers = []
    for seed in range(12):
        fanin.fill_(layer.weight, scheme, axes=axes, seed=seed)
        with torch.no_grad():
            images = torch.randn(4, 96, 8, 8, generator=torch.Generator().manual_seed(seed))
            powers.append(layer(images).square().mean((0, 2, 3)))
    rows = torch.stack(powers).mean(0)
    for block, part in zip(UNEVEN, (rows[:17], rows[17:]), strict=True):
        shape_of_block, own = axes.of_block(block, shape)
        std = scheme.expected(axes.block_fans(shape)[block.name], shape_of_block, own).std
        assert part.mean().item() == pytest.approx(std**2 * 144, rel=0.1)
