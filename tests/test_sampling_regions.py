"""A region is a slice of the whole, whatever its shape, layout and dtype."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.errors import SchemeError
from fanin.sampling import Constant, Normal, TruncatedNormal, Uniform, fill_, orthogonal_rows
from fanin.sampling.regions import region

LAWS = [Uniform(-0.3, 0.7), Normal(0.1, 0.02), TruncatedNormal(0.0, 0.02, -0.04, 0.04), TruncatedNormal(0, 1, -5, 9)]
KEY = 0x0123456789ABCDEF


def whole(law, shape, dtype=torch.float32):
    return fill_(torch.empty(shape, dtype=dtype), law, KEY)


@st.composite
def regions(draw):
    shape = draw(st.lists(st.integers(1, 40), min_size=0, max_size=4).filter(lambda sizes: math.prod(sizes) <= 20000))
    begin = [draw(st.integers(0, size)) for size in shape]
    return shape, begin, [draw(st.integers(0, size - at)) for size, at in zip(shape, begin, strict=True)]


@settings(max_examples=60, deadline=None)
@given(regions(), st.sampled_from(LAWS), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_region_is_a_slice_of_the_whole(where, law, dtype):
    shape, begin, size = where
    drawn = fill_(torch.empty(size, dtype=dtype), law, KEY, global_shape=shape, offset=begin)
    expected = whole(law, shape, dtype)[tuple(slice(at, at + n) for at, n in zip(begin, size, strict=True))]
    assert torch.equal(drawn, expected)


@settings(max_examples=60, deadline=None)
@given(regions(), st.integers(1, 500))
def test_pieces_cover_the_region_once_and_in_order(where, most):
    shape, begin, size = where
    flat = torch.arange(math.prod(shape)).view(shape)
    expected = flat[tuple(slice(at, at + n) for at, n in zip(begin, size, strict=True))].flatten().tolist()
    listed, at = [], 0
    for piece in region(size, shape, begin).pieces(most) if expected else ():
        assert piece.at == at
        at += piece.size
        listed += itertools.chain.from_iterable(range(start, start + piece.length) for start in piece.starts.tolist())
    assert listed == expected


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_layout_does_not_matter(law):
    expected = whole(law, (6, 5, 4, 3))
    images = torch.empty(6, 5, 4, 3).to(memory_format=torch.channels_last)
    strided = torch.empty(12, 5, 4, 6)[::2, :, :, 1::2]
    turned = torch.empty(3, 4, 5, 6).permute(3, 2, 1, 0)
    for tensor in (images, strided, turned):
        strides = tensor.stride()
        assert torch.equal(fill_(tensor, law, KEY), expected)
        assert tensor.stride() == strides


def test_large_strided_tensors_are_staged_in_blocks():
    expected = whole(LAWS[1], (3, 5, 210_000))
    assert torch.equal(fill_(torch.empty(210_000, 5, 3).permute(2, 1, 0), LAWS[1], KEY), expected)


@pytest.mark.parametrize("law", [*LAWS, Constant(0.1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_narrow_dtypes_are_rounded_once(law, dtype):
    drawn = whole(law, (70, 30), dtype)
    assert torch.equal(drawn.float(), whole(law, (70, 30)).to(dtype).float())


@pytest.mark.parametrize("law", [*LAWS, Constant(0.1)], ids=str)
@pytest.mark.parametrize(("dtype", "part"), [(torch.complex64, torch.float32), (torch.complex128, torch.float64)])
def test_complex_has_two_streams(law, dtype, part):
    drawn, (real, imaginary) = whole(law, (50, 3), dtype), law.parts()
    assert torch.equal(drawn.real, fill_(torch.empty(50, 3, dtype=part), real, KEY))
    assert torch.equal(drawn.imag, fill_(torch.empty(50, 3, dtype=part), imaginary, KEY, lane=1))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_double_agrees_with_single(law):
    difference = (whole(law, 10_000, torch.float64) - whole(law, 10_000)).abs().max()
    assert 0 < difference < 2e-5 * (law.high - law.low if isinstance(law, Uniform) else law.std)


def test_double_bounds_are_single_words_extended():
    law = Uniform(0.0, 1.0)
    double, single = whole(law, 1000, torch.float64), whole(law, 1000)
    assert torch.equal((double * 2**24).floor().float(), single * 2**24)
    assert torch.unique(double * 2**24 % 1).numel() == 1000


@pytest.mark.parametrize(
    ("shape", "whole_shape", "offset"),
    [((2, 2), (2,), None), ((2, 2), (2, 3), (0, 2)), ((2,), (4,), (-1,)), ((2,), None, (1,)), ((2,), (4,), (0, 0))],
)
def test_regions_outside_the_tensor_are_refused(shape, whole_shape, offset):
    with pytest.raises(SchemeError, match="a region inside the tensor"):
        fill_(torch.empty(shape), LAWS[0], KEY, global_shape=whole_shape, offset=offset)


@pytest.mark.parametrize("tensor", [torch.empty(2, device="meta"), torch.zeros(2, dtype=torch.int64)], ids=str)
def test_tensors_without_real_values_are_refused(tensor):
    with pytest.raises(SchemeError, match="a floating-point or complex tensor that has memory"):
        fill_(tensor, LAWS[0], KEY)


def test_leaves_gradients_and_global_generators_alone():
    parameter = torch.nn.Parameter(torch.empty(10))
    state = torch.get_rng_state()
    assert fill_(parameter, LAWS[1], KEY) is parameter
    assert parameter.requires_grad
    assert parameter.grad_fn is None
    assert torch.equal(torch.get_rng_state(), state)


def test_default_dtype_and_device_do_not_matter():
    expected = [whole(law, 100) for law in LAWS] + [orthogonal_rows(5, 5, KEY)]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            drawn = [fill_(torch.empty(100, dtype=torch.float32, device="cpu"), law, KEY) for law in LAWS]
            drawn.append(orthogonal_rows(5, 5, KEY))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, drawn, expected))
