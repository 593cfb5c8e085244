"""Cells are valid exactly where their top-left pixel lies inside the image."""

import pytest
import torch

from mtpd.geometry import Level
from mtpd.losses.maps import on_full_grid, valid_cells


@pytest.mark.parametrize('stride', [1, 8, 12, 128])
def test_against_a_mask_of_pixels(stride: int) -> None:
    sizes = [(1, 1), (64, 97), (63, 96), (65, 8), (128, 160)]
    height, width = 128, 160
    mask = valid_cells(sizes, stride=stride, grid=Level('x', stride, 1).grid(height, width))
    for index, (image_height, image_width) in enumerate(sizes):
        pixels = torch.zeros(height, width, dtype=torch.bool)
        pixels[:image_height, :image_width] = True
        assert torch.equal(mask[index, 0], pixels[::stride, ::stride])


def test_an_image_that_fills_the_batch_has_no_padding() -> None:
    assert valid_cells([(800, 1088)], stride=128, grid=(7, 9)).all()


def test_no_images() -> None:
    mask = valid_cells([], stride=8, grid=(3, 4), device='cpu')
    assert mask.shape == (0, 1, 3, 4)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize(('rows', 'columns'), [(4, 5), (3, 5), (4, 4), (3, 4)])
def test_a_map_that_lacks_cells_counts_where_it_has_some(rows: int, columns: int) -> None:
    values = torch.randn(2, 3, rows, columns)
    mask = valid_cells([(31, 40), (32, 20)], stride=8, grid=(4, 5))
    full, seen = on_full_grid(values, mask)
    assert full.shape == (2, 3, 4, 5)
    assert torch.equal(full[:, :, :rows, :columns], values)
    assert torch.equal(seen[:, :, :rows, :columns], mask[:, :, :rows, :columns])
    assert seen.sum() == mask[:, :, :rows, :columns].sum()


@pytest.mark.parametrize('size', [(2, 5), (5, 5), (4, 6)])
def test_a_map_of_another_grid_is_left_as_it_is(size: tuple[int, int]) -> None:
    values, mask = torch.randn(1, 3, *size), torch.ones(1, 1, 4, 5, dtype=torch.bool)
    assert on_full_grid(values, mask) == (values, mask)
