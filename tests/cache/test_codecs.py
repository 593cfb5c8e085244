"""Quantisation against float64 arithmetic written from its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtpd.cache.format.codecs import CodecName, encode, require_storable
from mtpd.errors import InputError


def reference_int8(maps: np.ndarray) -> np.ndarray:
    """256 equal steps between the smallest and the largest value of each channel, value by value."""
    result = np.empty_like(maps)
    for index in np.ndindex(maps.shape[:2]):
        channel = maps[index]
        low, high = channel.min(), channel.max()
        step = (high - low) / 255
        result[index] = low if step == 0 else low + np.round((channel - low) / step) * step
    return result


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 7)),
    magnitude=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10),
    seed=st.integers(0, 1000),
)
def test_int8_equals_the_reference(shape: tuple[int, ...], magnitude: float, shift: float, seed: int) -> None:
    maps = np.random.default_rng(seed).normal(shift, 1, shape) * magnitude
    single = torch.from_numpy(maps).float()
    encoded = encode(single, 'int8')
    assert encoded.codes.dtype == torch.int8
    expected = reference_int8(single.double().numpy())
    assert encoded.scale is not None
    step = encoded.scale[:, 0].max().item()
    # float32 rounding may move a value that lies between two codes to the other one.
    assert np.abs(encoded.values().double().numpy() - expected).max() <= 1.001 * step + 1e-5 * magnitude
    assert (encoded.values() - single).abs().max() <= 0.501 * step + 1e-5 * magnitude * (1 + abs(shift))


def test_one_sided_channels_use_all_codes() -> None:
    maps = torch.rand(1, 1, 64, 64) * 7 + 3
    codes = encode(maps, 'int8').codes
    assert (int(codes.min()), int(codes.max())) == (-128, 127)


@pytest.mark.parametrize('codec', ['int8', 'fp16', 'lean'])
def test_the_stored_error_is_that_of_the_codes(codec: CodecName) -> None:
    maps = torch.randn(3, 5, 7, 6) * torch.tensor([1.0, 30.0, 0.01])[:, None, None, None] + 0.3
    encoded = encode(maps, codec)
    difference = encoded.values().double().numpy() - maps.double().numpy()
    expected = (difference**2).sum((1, 2, 3)) / (maps.double().numpy() ** 2).sum((1, 2, 3))
    assert encoded.error is not None
    assert encoded.error.shape == (3,)
    np.testing.assert_allclose(encoded.error.numpy(), expected, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize('codec', ['int8', 'fp16', 'lean'])
def test_constant_and_zero_channels_are_exact(codec: CodecName) -> None:
    maps = torch.zeros(1, 2, 3, 5)
    maps[:, 1] = -2.5
    assert torch.equal(encode(maps, codec).values(), maps)


@pytest.mark.parametrize('codec', ['int8', 'fp16'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_input(codec: CodecName, dtype: torch.dtype) -> None:
    maps = torch.randn(2, 3, 5, 7).to(dtype)
    restored = encode(maps, codec).values()
    assert restored.dtype == torch.float32
    assert (restored - maps.float()).norm() / maps.float().norm() < 0.01


@pytest.mark.parametrize('codec', ['int8', 'fp16', 'lean'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf'), 1e20])
def test_values_that_are_not_finite_are_refused(codec: CodecName, bad: float) -> None:
    maps = torch.randn(3, 2, 4, 4)
    maps[1, 1, 2, 3] = bad
    with pytest.raises(InputError, match=r'level p4, view flip of the images with ids 8: .*normalisation'):
        require_storable(encode(maps, codec), level='p4', view='flip', image_ids=[7, 8, 9])


def test_fp16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(InputError, match='65504'):
        require_storable(encode(torch.full((1, 1, 2, 2), 70000.0), 'fp16'), level='p3', view='plain', image_ids=[1])


@pytest.mark.parametrize('codec', ['int8', 'fp16', 'lean'])
def test_no_images(codec: CodecName) -> None:
    assert encode(torch.empty(0, 3, 4, 5), codec).values().shape == (0, 3, 4, 5)
