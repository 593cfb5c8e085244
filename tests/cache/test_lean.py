"""The lean codec: its promise about the error, its economy, and the rotation of the channels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtpd.cache.format.codecs import Covariance, encode
from mtpd.cache.format.tensor_files import load_basis, plan_of_basis, save_basis
from mtpd.errors import CacheDamagedError
from mtpd.geometry import Level


def correlated(shape: tuple[int, int, int, int], *, seed: int) -> Tensor:
    """Maps whose channels are mixtures of a few signals, with means of their own."""
    generator = np.random.default_rng(seed)
    signals = generator.laplace(size=(shape[0], max(1, shape[1] // 3), *shape[2:]))
    mixture = generator.normal(size=(shape[1], signals.shape[1]))
    noise = 0.1 * generator.normal(size=shape)
    maps = np.einsum('ck,bkhw->bchw', mixture, signals) + noise + generator.normal(size=(1, shape[1], 1, 1))
    return torch.from_numpy(maps).float()


def relative_error(found: Tensor, maps: Tensor) -> np.ndarray:
    """||found - maps||^2 / ||maps||^2 of each image, in float64."""
    difference, exact = found.double().numpy() - maps.double().numpy(), maps.double().numpy()
    return np.asarray((difference**2).sum((1, 2, 3)) / (exact**2).sum((1, 2, 3)))


def entropy_bits(codes: np.ndarray) -> float:
    """Bits per code when each channel is coded by itself."""
    total = 0.0
    for channel in codes:
        counts = np.unique(channel, return_counts=True)[1]
        total -= (counts * np.log2(counts / channel.size)).sum()
    return total / codes.size


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 7)),
    target=st.floats(2e-3, 0.5),
    magnitude=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_every_image_keeps_the_error(
    shape: tuple[int, int, int, int], target: float, magnitude: float, seed: int
) -> None:
    maps = correlated(shape, seed=seed) * magnitude
    encoded = encode(maps, 'lean', target=target)
    assert encoded.codes.dtype == torch.int8
    assert (relative_error(encoded.values(), maps) <= target * 1.001).all()


@pytest.mark.parametrize('target', [0.01, 0.03, 0.1])
def test_no_more_is_spent_than_needed(target: float) -> None:
    maps = correlated((4, 8, 24, 20), seed=1)
    errors = relative_error(encode(maps, 'lean', target=target).values(), maps)
    assert (errors >= 0.97 * target).all()


def test_one_step_for_all_channels_spends_less_than_one_for_each() -> None:
    """Reverse water-filling: with steps in proportion to the channels' deviations the same error takes more bits."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.logspace(-1.5, 1, 16)[None, :, None, None]
    maps = torch.randn(1, 16, 40, 40, generator=generator) * deviations
    lean = encode(maps, 'lean', target=0.03)
    error = relative_error(lean.values(), maps)[0]
    steps = np.geomspace(0.01, 10, 400)
    own = [(maps / deviations / step).round() for step in steps]
    errors = [relative_error(codes * deviations * step, maps)[0] for codes, step in zip(own, steps, strict=True)]
    chosen = own[int(np.searchsorted(errors, error))]
    assert entropy_bits(lean.codes[0].numpy()) < 0.75 * entropy_bits(chosen[0].numpy())


def test_a_heavy_tail_gets_a_step_of_its_own_and_the_others_make_up_for_it() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 8, 32, 32, generator=generator)
    maps[0, 3, 5, 5] = 60.0
    encoded = encode(maps, 'lean', target=0.002)
    assert encoded.scale is not None
    steps = encoded.scale[0, 0].float()
    assert steps[3] > 2 * steps[[0, 1, 2, 4, 5, 6, 7]].max()
    assert relative_error(encoded.values(), maps)[0] <= 0.002
    assert (encoded.values()[0, 3, 5, 5] - 60).abs() < 0.5 * steps[3]


def test_an_image_that_misses_the_target_says_so() -> None:
    """One value so large that 127 steps to it leave nothing of the rest of its channel."""
    maps = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    maps[1, 0, 0, 0] = 40.0
    encoded = encode(maps, 'lean', target=1e-4)
    assert encoded.error is not None
    assert encoded.error[0] <= 1e-4 < encoded.error[1]
    np.testing.assert_allclose(encoded.error.numpy(), relative_error(encoded.values(), maps), rtol=1e-3)


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    maps = correlated((3, 6, 9, 11), seed=3) * torch.tensor([1.0, 50.0, 0.02])[:, None, None, None]
    together = encode(maps, 'lean')
    for number in range(3):
        alone = encode(maps[number : number + 1], 'lean')
        assert torch.equal(alone.codes[0], together.codes[number])


def test_the_rotation_of_correlated_channels_saves_bits_and_keeps_the_error() -> None:
    maps = correlated((4, 12, 30, 30), seed=4)
    covariance = Covariance(12)
    covariance.add(maps)
    basis = covariance.basis()
    rotated, plain = encode(maps, 'lean', basis=basis), encode(maps, 'lean')
    assert (relative_error(rotated.values(), maps) <= 0.03 * 1.001).all()
    bits = [np.mean([entropy_bits(one) for one in encoded.codes.numpy()]) for encoded in (rotated, plain)]
    assert bits[0] < 0.6 * bits[1]


def test_the_basis_is_that_of_the_covariance() -> None:
    maps = correlated((5, 7, 6, 8), seed=5)
    covariance = Covariance(7)
    for start in (0, 2):
        covariance.add(maps[start : start + 2 + start // 2])
    basis = covariance.basis().double().numpy()
    expected = np.zeros((7, 7))
    for image in maps.double().numpy().reshape(5, 7, -1):
        centred = image - image.mean(1, keepdims=True)
        expected += centred @ centred.T / (centred**2).mean()
    diagonal = basis.T @ expected @ basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-6)
    np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-4 * diagonal.max())
    assert (np.diff(np.diag(diagonal)) <= 0).all()
    assert (np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0) > 0).all()


def test_decoding_is_a_rotation_of_the_dequantised_values() -> None:
    maps = correlated((2, 6, 5, 4), seed=6)
    covariance = Covariance(6)
    covariance.add(maps)
    encoded = encode(maps, 'lean', basis=covariance.basis())
    values = replace(encoded, basis=None).values()
    # The rotation leaves squared errors alone, so a loss may be taken in either space.
    other = torch.einsum('ck,bchw->bkhw', covariance.basis(), maps)
    assert (values - other).square().sum().item() == pytest.approx(
        (encoded.values() - maps).square().sum().item(), 1e-4
    )


def test_a_basis_file_that_was_changed_is_refused() -> None:
    levels = (Level('p3', 8, 3), Level('p4', 16, 2))
    content = save_basis({'p3': torch.eye(3), 'p4': torch.eye(2)}, plan='a')
    assert torch.equal(load_basis(content, levels, name='b')['p3'], torch.eye(3))
    assert plan_of_basis(content) == 'a'
    assert plan_of_basis(content[:9]) is None
    for changed in (content[:-1] + b'\x01', content[:40], b'', save_basis({'p3': torch.eye(3)}, plan='a')):
        with pytest.raises(CacheDamagedError, match='extract the cache again'):
            load_basis(changed, levels, name='b')
    with pytest.raises(CacheDamagedError):
        load_basis(content, levels[::-1][:1], name='b')


@pytest.mark.parametrize('factor', [1.01, math.nan])
def test_a_basis_that_is_no_rotation_is_refused(factor: float) -> None:
    covariance = Covariance(3)
    covariance.add(correlated((2, 3, 5, 4), seed=7))
    levels, basis = (Level('p3', 8, 3),), covariance.basis()
    assert torch.equal(load_basis(save_basis({'p3': basis}, plan='a'), levels, name='b')['p3'], basis)
    with pytest.raises(CacheDamagedError, match='b: the basis of p3 is not orthonormal'):
        load_basis(save_basis({'p3': factor * basis}, plan='a'), levels, name='b')
