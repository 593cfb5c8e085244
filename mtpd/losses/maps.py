"""Maps and their masks: shapes, dtypes, cells that show the image, resizing.

Legend: B batch, C channels, H W grid of a level.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mtpd.errors import InputError
from mtpd.geometry import Size


def check_shapes(student: Tensor, teacher: Tensor, mask: Tensor) -> None:
    """Refuses maps of different shapes, which broadcasting would let pass."""
    wanted = (teacher.shape[0], 1, *teacher.shape[2:])
    if teacher.ndim != 4 or student.shape != teacher.shape or mask.shape != wanted or mask.dtype != torch.bool:
        raise InputError(
            f'student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask {tuple(mask.shape)} {mask.dtype} '
            f'do not fit: expected two maps of one shape (B, C, H, W) and a torch.bool mask (B, 1, H, W)'
        )


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if a tensor is, else float32: half precision is too coarse to add up in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def valid_cells(
    resized_sizes: Sequence[Size], *, stride: int, grid: tuple[int, int], device: torch.device | str | None = None
) -> Tensor:
    """Marks the cells whose top-left pixel lies inside the resized image.

    A cell that straddles the border counts as image: its receptive field is centred near the border and sees both.
    Padding is at the right and the bottom, of mirrored images too, so one mask serves both views.

    Args:
        resized_sizes: (height, width) in px of each image after the resize, before padding.
        stride: input pixels per cell.
        grid: (H, W) of the level in the padded batch.
        device: where the mask is to be.

    Returns:
        Bool (B, 1, H, W).
    """
    # The sizes are copied and not the mask, without synchronizing with the device.
    sizes = torch.tensor(resized_sizes, dtype=torch.int64).reshape(-1, 2).to(device, non_blocking=True)
    rows = torch.arange(grid[0], device=sizes.device) * stride < sizes[:, :1]
    columns = torch.arange(grid[1], device=sizes.device) * stride < sizes[:, 1:]
    return rows[:, None, :, None] & columns[:, None, None, :]


def on_full_grid(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Brings a map (B, C, h, w) that lacks the last row or column to the grid of its mask, bool (B, 1, H, W).

    Cells that the map lacks do not count: networks that round the size of a map down, as HRNet's neck does, do not see
    the input's last pixels. A map that fits, or lacks more, which the losses refuse, stays as it is.
    """
    rows, columns = values.shape[2:]
    lacking = mask.shape[2] - rows, mask.shape[3] - columns
    if lacking == (0, 0) or not all(0 <= one <= 1 for one in lacking):
        return values, mask
    seen = torch.zeros_like(mask)
    seen[:, :, :rows, :columns] = mask[:, :, :rows, :columns]
    return pad(values, (0, lacking[1], 0, lacking[0])), seen


def resize_map(values: Tensor, mask: Tensor, *, strides: tuple[int, int], grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation of the valid cells to another stride.

    `values` are (B, C, h, w) and the mask is bool (B, 1, h, w). `strides`, in input px per cell, are those of `values`
    and of the result; `grid` is (H, W) of the result. Returns a map (B, C, H, W), float32 (float64 if `values` is),
    and a mask, bool (B, 1, H, W), of the cells beside a valid one; elsewhere the map is 0.

    Cells are squares of the input, so a place keeps its pixels: where the grids are exact multiples and nothing is
    padding this is torch's `interpolate(mode='bilinear', align_corners=False)`. Elsewhere the weights of valid
    neighbours are scaled to add up to 1. Shrinking takes the cells around the centre, without smoothing, as torch does.
    Values outside the mask, NaN included, change neither the result nor a gradient.
    """
    values = torch.where(mask, values, 0.0).to(accumulation_dtype(values))
    # Both grids are rounded up from the same input, each by its own stride: with cells that count for nothing the
    # finite grids cover the same pixels, and one is an exact multiple of the other.
    stride, target_stride = strides
    common = math.lcm(stride, target_stride)
    covered = [
        -(-max(cells * stride, wanted * target_stride) // common) * common
        for cells, wanted in zip(values.shape[2:], grid, strict=True)
    ]
    extra = (0, covered[1] // stride - values.shape[3], 0, covered[0] // stride - values.shape[2])
    size = covered[0] // target_stride, covered[1] // target_stride
    rows, columns = grid
    sums, weights = (
        interpolate(pad(one, extra), size=size, mode='bilinear', align_corners=False)[:, :, :rows, :columns]
        for one in (values, mask.to(values.dtype))
    )
    valid = weights > 0
    return sums / torch.where(valid, weights, 1.0), valid
