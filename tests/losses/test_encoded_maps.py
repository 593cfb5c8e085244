"""Codes of a teacher and the values that they stand for."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.errors import InputError

SHAPE = (2, 5, 4, 7)
Shape = tuple[int, int, int, int]
Coded = Callable[[Shape], EncodedMaps]
Exact = Callable[[EncodedMaps], Tensor]


@pytest.mark.parametrize('shape', [SHAPE, (1, 1, 1, 1), (0, 3, 2, 2), (2, 3, 0, 4)])
def test_values_are_those_of_the_format(coded: Coded, exact: Exact, shape: Shape) -> None:
    teacher = coded(shape)
    values = teacher.values()
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact(teacher).float(), rtol=1e-6, atol=2e-6)


def test_beyond_an_images_own_map_values_are_zero(coded: Coded, exact: Exact) -> None:
    whole = coded(SHAPE)
    codes = whole.codes.clone()
    codes[1, :, 3:], codes[1, :, :, 2:] = 99, 99
    found = EncodedMaps(codes, whole.scale, whole.basis, sizes=[(4, 7), (3, 2)]).values()
    wanted = exact(whole)
    wanted[1, :, 3:], wanted[1, :, :, 2:] = 0, 0
    torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=2e-6)
    assert codes[1, 0, 3, 3] == 99  # the codes stay as they were


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_codes_of_the_dtype_of_values_stay_as_they_are(dtype: torch.dtype) -> None:
    codes = torch.randn(SHAPE, dtype=dtype)
    before = codes.clone()
    scaled = EncodedMaps(codes, torch.full((2, 2, 5), 3.0)).values()
    assert torch.equal(scaled, before * 3 + 3)
    cut = EncodedMaps(codes, sizes=[(1, 1), (4, 7)]).values()
    assert not cut[0, :, 1:].any()
    assert torch.equal(codes, before)


def test_values_of_values_take_no_memory() -> None:
    values = torch.randn(SHAPE)
    assert EncodedMaps(values).values().data_ptr() == values.data_ptr()
    values = values.half()
    values[0, 0, 0, 0] = math.nan
    assert EncodedMaps(values).values().isnan().sum() == 1


def test_autocast_rounds_no_values(coded: Coded) -> None:
    teacher = coded(SHAPE)
    with torch.autocast('cpu', torch.bfloat16):
        inside = teacher.values()
    assert torch.equal(inside, teacher.values())


def test_what_does_not_fit_is_refused() -> None:
    codes = torch.zeros(SHAPE, dtype=torch.int8)
    for scale, basis in ((torch.ones(2, 5), None), (torch.ones(1, 2, 5), None), (None, torch.ones(5, 4))):
        with pytest.raises(InputError, match='do not fit'):
            EncodedMaps(codes, scale, basis)
    with pytest.raises(InputError, match='do not fit'):
        EncodedMaps(codes[0])
