"""Deformable RoI pooling (Dai et al. 2017, equation 5) in plain PyTorch: RoIAlign whose bins move.

C channels, H W map, K regions, N samples; `rois` is (K, 5): index into the batch, absolute xyxy in px. `offset` is
(K, 2, bins down, bins across): shifts (x, y) of the bins, in `gamma` times the region's width and height; empty means
none. One region after the other, as their numbers of samples differ: slow, for the few models that have it.
"""

from functools import partial

import torch
from torch import Tensor

from mtpd.detectors.mmcv_ext.dtypes import common
from mtpd.detectors.mmcv_ext.gradients import gradients_of
from mtpd.detectors.mmcv_ext.regions import check_batch_index, finite_regions


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fills `output` (K, C, pooled_height, pooled_width); regions that are not finite give NaN."""
    bins = (pooled_height, pooled_width)
    maps, regions, shifts = common(input, rois, offset)
    output.copy_(_pool(maps, shifts, rois=regions, bins=bins, scale=spatial_scale, ratio=sampling_ratio, gamma=gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fills `grad_input` and `grad_offset`."""
    bins = (pooled_height, pooled_width)
    maps, regions, shifts = common(input, rois, offset)
    pool = partial(_pool, rois=regions, bins=bins, scale=spatial_scale, ratio=sampling_ratio, gamma=gamma)
    gradients = gradients_of(pool, (maps, shifts), grad_output)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[1])


def _pool(
    maps: Tensor, shifts: Tensor, *, rois: Tensor, bins: tuple[int, int], scale: float, ratio: int, gamma: float
) -> Tensor:
    if not len(rois) or not maps.numel():
        return maps.new_zeros(len(rois), maps.size(1), *bins)
    check_batch_index(rois, batch_size=len(maps))
    regions, unusable = finite_regions(rois, scale, maps.shape[2:], ratio)
    pooled = []
    for k, (image, *box) in enumerate(regions.tolist()):
        x1, y1, x2, y2 = (edge * scale - 0.5 for edge in box)
        shift_x, shift_y = shifts[k] * gamma if shifts.numel() else maps.new_zeros(2, *bins)
        rows = _samples(y1, y2, bins[0], ratio, maps)[:, None, :, None] + (shift_y * (y2 - y1))[..., None, None]
        columns = _samples(x1, x2, bins[1], ratio, maps)[:, None] + (shift_x * (x2 - x1))[..., None, None]
        pooled.append(_sample(maps[int(image)], rows, columns))
    return torch.stack(pooled).masked_fill(unusable[:, None, None, None], torch.nan)


def _samples(start: float, end: float, num_bins: int, ratio: int, like: Tensor) -> Tensor:
    """Sample positions (num_bins, N) along an edge, in cells; one sample a cell when `ratio` is 0."""
    size = (end - start) / num_bins
    number = ratio if ratio > 0 else max(-int(-size // 1), 0)
    steps = (torch.arange(number, device=like.device, dtype=like.dtype) + 0.5) / max(number, 1)
    return start + (torch.arange(num_bins, device=like.device, dtype=like.dtype)[:, None] + steps) * size


def _sample(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean over the last two axes of the values of `image` (C, H, W) at fractional cells.

    Linear between cell centres; constant for up to one cell beyond the edge; zero further out.
    """
    height, width = image.shape[1:]
    inside = (rows >= -1) & (rows <= height) & (columns >= -1) & (columns <= width)
    y, x = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    # A NaN shift must not become an index.
    top, left = (position.detach().nan_to_num(0).long() for position in (y, x))
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    upper = image[:, top, left] * (1 - across) + image[:, top, right] * across
    lower = image[:, bottom, left] * (1 - across) + image[:, bottom, right] * across
    values = (upper * (1 - down) + lower * down) * inside
    # A region without samples gives 0.
    return values.sum(dim=(-2, -1)) / max(inside.shape[-2] * inside.shape[-1], 1)
