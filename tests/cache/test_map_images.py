"""Colours stand for features, and the expected error is the one that coding makes."""

import numpy as np
import pytest
import torch

from mtpd.cache.format.codecs import CodecName, encode
from mtpd.cache.map_images import error_colours, principal_colours, spread_error


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_equal_features_have_equal_colours_in_both_views() -> None:
    maps = noise(16, 10, 12)
    plain, flip = principal_colours([maps, maps.flip(-1)], fitted_to=[maps, maps.flip(-1)])
    assert plain.shape == (10, 12, 3)
    assert np.array_equal(plain, flip[:, ::-1])
    assert plain.std() > 30


def test_an_object_stands_out() -> None:
    maps = noise(16, 10, 12) * 0.1
    maps[5, 2:5, 3:7] += 10
    (picture,) = principal_colours([maps], fitted_to=[maps])
    red = picture[..., 0].astype(float)
    inside = np.zeros((10, 12), dtype=bool)
    inside[2:5, 3:7] = True
    assert red[inside].min() > red[~inside].max() + 100


def test_padding_does_not_take_the_contrast() -> None:
    maps = noise(16, 10, 12)
    maps[:, 8:] = 1000
    inside = maps[:, :8]
    (picture,) = principal_colours([maps], fitted_to=[inside])
    assert np.array_equal(picture[:8], principal_colours([inside], fitted_to=[inside])[0])


@pytest.mark.parametrize('channels', [1, 2])
def test_few_channels(channels: int) -> None:
    maps = noise(channels, 4, 5)
    (picture,) = principal_colours([maps], fitted_to=[maps])
    assert picture.shape == (4, 5, 3)


def test_a_constant_map() -> None:
    maps = torch.ones(4, 4, 5)
    (picture,) = principal_colours([maps], fitted_to=[maps])
    assert picture.min() == picture.max()


@pytest.mark.parametrize(('codec', 'contrast'), [('fp16', 50), ('int8', 50), ('lean', 1)])
def test_spread_error(codec: CodecName, contrast: float) -> None:
    maps = noise(64, 40, 40)
    maps[:, :, :20] *= contrast
    encoded = encode(maps[None], codec)
    assert encoded.error is not None
    found, spread = (encoded.values()[0] - maps).square().sum(0), spread_error(encoded).square()
    # The energy is that of the decoded map.
    assert float(spread.sum()) == pytest.approx(float(found.sum()), rel=2 * float(encoded.error) + 1e-3)
    # Where the values are small, the steps of half precision are.
    for half in (slice(0, 20), slice(20, 40)):
        assert float(spread[:, half].sum()) == pytest.approx(float(found[:, half].sum()), rel=0.1)


def test_error_colours_grow_brighter() -> None:
    picture = error_colours(torch.tensor([[0.0, 1e-3, 1e-2, 1e-1, 1.0, 9.0]]))
    brightness = picture[0].astype(int).sum(-1)
    assert brightness[0] == brightness[1]
    assert brightness[4] == brightness[5]
    assert (np.diff(brightness[1:5]) > 50).all()
