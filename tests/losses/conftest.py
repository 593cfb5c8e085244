"""Maps of a teacher in every form that a cache gives, for tests."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps, encode

FORMS = ('fp16', 'int8', 'int8 per channel', 'int8 per level', 'lean', 'lean without scale')


Shape = tuple[int, int, int, int]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def coded(form: str) -> Callable[[Shape], EncodedMaps]:
    """`coded(shape)` is a teacher's map in one of the forms."""
    return lambda shape: make(form, shape)


def make(form: str, shape: Shape) -> EncodedMaps:
    """A random map whose channels have means and spreads of their own, as deep levels have."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    spread, mean = (torch.rand(channels, generator=generator)[:, None, None] for _ in range(2))
    maps = torch.randn(shape, generator=generator) * (0.1 + spread) + 3 * mean - 1
    basis = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0]
    if form == 'fp16':
        return EncodedMaps(encode(maps, 'fp16').codes)
    if form == 'lean without scale':
        return EncodedMaps(maps.half(), None, basis)
    encoded = encode(maps, 'lean' if form == 'lean' else 'int8', basis=basis)
    assert encoded.scale is not None
    scale = encoded.scale
    if form == 'int8 per channel':
        scale = scale[:1].expand_as(scale)
    if form == 'int8 per level':
        scale = scale[:1, :, :1].expand_as(scale)
    return EncodedMaps(encoded.codes, scale, encoded.basis)


@pytest.fixture
def exact() -> Callable[[EncodedMaps], Tensor]:
    """`exact(teacher)` are the values in float64, as the format defines them, without the code that is tested."""

    def values_of(teacher: EncodedMaps) -> Tensor:
        values = teacher.codes.double()
        if teacher.scale is not None:
            values = values * teacher.scale[:, 0, :, None, None].double() + teacher.scale[:, 1, :, None, None].double()
        if teacher.basis is not None:
            values = torch.einsum('ck,bkhw->bchw', teacher.basis.double(), values)
        return values

    return values_of


@pytest.fixture
def with_garbage() -> Callable[[EncodedMaps, Tensor], EncodedMaps]:
    """`with_garbage(teacher, mask)` has NaN, or the least code, in the cells that do not count."""

    def spoiled(teacher: EncodedMaps, mask: Tensor) -> EncodedMaps:
        poison = torch.nan if teacher.codes.is_floating_point() else -128
        return replace(teacher, codes=torch.where(mask, teacher.codes, poison))

    return spoiled
