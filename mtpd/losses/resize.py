"""Bringing a map to the grid of another level, without padding bleeding into the image.

Legend: B batch, C channels, H W grid of a level.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mtpd.losses.maps import accumulation_dtype


def resize_map(
    values: Tensor, mask: Tensor, *, stride: int, target_stride: int, target_grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation of the valid cells, and where it has any to go by.

    Cells are squares of the input, so a place keeps its pixels: where the grids are exact multiples and nothing is
    padding this is torch's `interpolate(mode='bilinear', align_corners=False)`. Elsewhere the weights of valid
    neighbours are scaled to add up to 1. Shrinking takes the cells around the centre, without smoothing, as torch does.

    Args:
        values: (B, C, h, w), any floating dtype. Values outside the mask, including NaN, change neither the
            result nor a gradient.
        mask: bool (B, 1, h, w), True at cells that count.
        stride: of `values`, input pixels per cell.
        target_stride: of the result.
        target_grid: (H, W) of the result.

    Returns:
        the map (B, C, H, W), in float32 (float64 if `values` is), and a bool mask (B, 1, H, W), True at cells that lie
        by a valid one; the map is 0 elsewhere.
    """
    values = torch.where(mask, values, 0.0).to(accumulation_dtype(values))
    # Both grids are rounded up from the same input, each by its own stride: with cells that count for nothing the
    # finite grids cover the same pixels, and one is an exact multiple of the other.
    common = math.lcm(stride, target_stride)
    covered = [
        -(-max(cells * stride, wanted * target_stride) // common) * common
        for cells, wanted in zip(values.shape[2:], target_grid, strict=True)
    ]
    extra = (0, covered[1] // stride - values.shape[3], 0, covered[0] // stride - values.shape[2])
    size = covered[0] // target_stride, covered[1] // target_stride
    rows, columns = target_grid
    sums, weights = (
        interpolate(pad(one, extra), size=size, mode='bilinear', align_corners=False)[:, :, :rows, :columns]
        for one in (values, mask.to(values.dtype))
    )
    valid = weights > 0
    return sums / torch.where(valid, weights, 1.0), valid
