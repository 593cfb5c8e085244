"""The teacher's variance, which squared errors are divided by, from codes and from values."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.losses.masked_mse import masked_variances

Shape = tuple[int, int, int, int]
Exact = Callable[[EncodedMaps], Tensor]


def some_cells(shape: Shape) -> Tensor:
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=torch.Generator().manual_seed(1)) < 0.6
    mask.view(-1)[:1] = True
    return mask


def formula(values: Tensor, mask: Tensor) -> float:
    channels = [values.double()[:, channel][mask[:, 0]] for channel in range(values.shape[1])]
    return sum(channel.var(correction=0).item() for channel in channels) / len(channels)


@pytest.mark.parametrize('offset', [0.0, 20.0])
def test_against_the_formula(offset: float) -> None:
    shape = (2, 8, 25, 34)
    teacher, mask = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + offset, some_cells(shape)
    teacher += torch.arange(8.0)[:, None, None]  # means of channels are no variance
    variance = masked_variances([(EncodedMaps(teacher.requires_grad_()), mask)])[0]
    assert variance.item() == pytest.approx(formula(teacher.detach(), mask), rel=1e-5)
    assert not variance.requires_grad


def test_of_codes(
    coded: Callable[[Shape], EncodedMaps], exact: Exact, with_garbage: Callable[[EncodedMaps, Tensor], EncodedMaps]
) -> None:
    shape = (3, 6, 12, 9)
    teacher, mask = coded(shape), some_cells(shape)
    variance = masked_variances([(teacher, mask)])[0]
    assert variance.dtype == torch.float32
    assert variance.item() == pytest.approx(formula(exact(teacher), mask), rel=1e-5)
    assert torch.equal(masked_variances([(with_garbage(teacher, mask), mask)])[0], variance)


def test_codes_far_from_zero(exact: Exact) -> None:
    """Nearly all of a channel's codes may lie at the end of their range: nothing may cancel."""
    codes = torch.full((2, 3, 40, 50), -127, dtype=torch.int8)
    codes[:, :, ::7, ::9] = -125
    teacher = EncodedMaps(codes, torch.tensor([[[0.5] * 3, [63.5] * 3]]).expand(2, 2, 3))
    mask = some_cells((2, 3, 40, 50))
    assert masked_variances([(teacher, mask)])[0].item() == pytest.approx(formula(exact(teacher), mask), rel=2e-3)


def test_of_maps_without_any() -> None:
    mask = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    constant = EncodedMaps(torch.full((1, 2, 3, 4), 7.3))
    assert masked_variances([(constant, mask)])[0].item() == pytest.approx(7.3**2 / 1000, rel=1e-6)
    assert masked_variances([(EncodedMaps(torch.zeros(1, 2, 3, 4)), mask)])[0].item() == 1
    assert masked_variances([(constant, ~mask)])[0].item() == 1
    # In another basis the mean square of the means is the same.
    angle = math.pi / 5
    basis = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = EncodedMaps(constant.codes, None, basis)
    assert masked_variances([(turned, mask)])[0].item() == pytest.approx(7.3**2 / 1000, rel=1e-6)
