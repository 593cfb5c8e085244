"""Cells are valid exactly where their top-left pixel lies inside the image."""

import pytest
import torch

from mtpd.losses.valid_mask import valid_cells
from mtpd.pyramid import Level


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
