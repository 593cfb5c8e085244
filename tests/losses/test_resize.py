"""Maps brought to other grids: torch's interpolation inside of the image, and nothing from its padding."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mtpd.losses.maps import resize_map, valid_cells


def random_map(grid: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, *grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def cells(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


@pytest.mark.parametrize(('stride', 'target'), [(8, 4), (16, 4), (4, 8), (4, 16), (8, 8), (12, 8)])
def test_torchs_interpolation_where_nothing_is_padding(stride: int, target: int) -> None:
    size = (48, 96)
    values, mask = random_map(cells(size, stride)), torch.ones(2, 1, *cells(size, stride), dtype=torch.bool)
    got, valid = resize_map(values, mask, strides=(stride, target), grid=cells(size, target))
    want = interpolate(values, size=cells(size, target), mode='bilinear', align_corners=False)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert valid.all()


def reference(values: Tensor, mask: Tensor, stride: int, target: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation at each target cell's centre, between the centres of valid cells, one cell at a time."""
    batch, channels, height, width = values.shape
    out, covered = (
        torch.zeros(batch, channels, *grid, dtype=values.dtype),
        torch.zeros(batch, 1, *grid, dtype=torch.bool),
    )
    for index in range(batch):
        for row in range(grid[0]):
            for column in range(grid[1]):
                y, x = (max((one + 0.5) * target / stride - 0.5, 0.0) for one in (row, column))
                total, weights = torch.zeros(channels, dtype=values.dtype), 0.0
                for near_y in {math.floor(y), math.floor(y) + 1}:
                    for near_x in {math.floor(x), math.floor(x) + 1}:
                        weight = (1 - abs(y - near_y)) * (1 - abs(x - near_x))
                        if near_y < height and near_x < width and mask[index, 0, near_y, near_x] and weight > 0:
                            total += weight * values[index, :, near_y, near_x]
                            weights += weight
                if weights > 0:
                    out[index, :, row, column] = total / weights
                    covered[index, 0, row, column] = True
    return out, covered


@pytest.mark.parametrize(('stride', 'target'), [(8, 4), (4, 8), (32, 4), (4, 32), (14, 8), (128, 64), (64, 128)])
def test_padding_and_odd_grids_against_the_formula(stride: int, target: int) -> None:
    size = (100, 155)
    values = random_map(cells(size, stride))
    mask = valid_cells([(100, 155), (61, 70)], stride=stride, grid=cells(size, stride))
    spoiled = torch.where(mask, values, math.nan)
    got, valid = resize_map(spoiled, mask, strides=(stride, target), grid=cells(size, target))
    want, covered = reference(values, mask, stride, target, cells(size, target))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(valid, covered)


def test_a_constant_stays_constant_up_to_the_border_of_the_image() -> None:
    mask = valid_cells([(40, 64), (21, 37)], stride=8, grid=(5, 8))
    got, valid = resize_map(torch.full((2, 1, 5, 8), 3.0), mask, strides=(8, 4), grid=(10, 16))
    assert torch.equal(got, torch.where(valid, 3.0, 0.0))
    # Every cell of the finer grid that shows the image lies in a coarse one that does.
    assert (valid | ~valid_cells([(40, 64), (21, 37)], stride=4, grid=(10, 16))).all()


def test_gradients() -> None:
    mask = valid_cells([(40, 64), (21, 37)], stride=8, grid=(5, 8))
    values = random_map((5, 8)).requires_grad_()

    def resized(given: Tensor) -> Tensor:
        return resize_map(given, mask, strides=(8, 4), grid=(10, 16))[0]

    assert torch.autograd.gradcheck(resized, values)
    spoiled = torch.where(mask, values.detach(), math.nan).requires_grad_()
    torch.autograd.backward(resized(spoiled).square().sum())
    assert spoiled.grad is not None
    assert spoiled.grad.isfinite().all()
    assert not spoiled.grad[~mask.expand_as(spoiled)].any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_interpolated_in_single(dtype: torch.dtype) -> None:
    values, mask = random_map((6, 8), dtype), torch.ones(2, 1, 6, 8, dtype=torch.bool)
    got, _ = resize_map(values, mask, strides=(8, 4), grid=(12, 16))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, interpolate(values.float(), scale_factor=2, mode='bilinear', align_corners=False))
