"""Pooling of regions of interest: RoIAlign (He et al. 2017), max pooling, deformable pooling (Dai et al. 2017, eq. 5).

B batch, C channels, H W map, K regions, N samples; `rois` is (K, 5): index into the batch, absolute xyxy in px. `input`
is (B, C, H, W), the outputs are (K, C, bins down, bins across).

RoIAlign runs on torchvision, which reads regions without checking: a batch index out of range, or a coordinate that is
not finite, makes its CPU kernels read outside of the map, which ends the process. So here such an index is refused, and
regions that are not finite give NaN.

Max pooling is mmcv's: bin edges are not rounded to cells first, unlike torchvision's roi_pool.
"""

from functools import partial
from typing import Any

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from mtpd.detectors.of_mmdet.mmcv_ext.numerics import common, fill_gradients

# Far outside of every map in use, and small enough for sums to stay exact in float32.
FAR = 1e6
# With adaptive sampling the number of samples grows with the region's area.
ADAPTIVE_LIMIT = 4  # map sides
MAX_POOLING = 0
EMPTY = -1


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **options: Any
) -> None:
    """Fills `output`; regions that are not finite give NaN. `argmax_y` and `argmax_x` are those of max pooling."""
    scale, *bins, ratio, aligned = _align_options(**options)
    if not input.numel() or not output.numel():
        output.zero_()
        return
    _check_batch_index(rois, batch_size=input.size(0))
    maps, regions = common(input, rois)
    regions, unusable = _finite_regions(regions, scale, input.shape[2:], ratio)
    pooled = torch.ops.torchvision.roi_align(maps, regions, scale, *bins, ratio, aligned)
    output.copy_(pooled.masked_fill(unusable[:, None, None, None], torch.nan))


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **options: Any
) -> None:
    """Fills `grad_input` (B, C, H, W)."""
    scale, *bins, ratio, aligned = _align_options(**options)
    if not grad_input.numel() or not grad_output.numel():
        grad_input.zero_()
        return
    gradient, regions = common(grad_output, rois)
    regions, _ = _finite_regions(regions, scale, grad_input.shape[2:], ratio)
    backward = torch.ops.torchvision._roi_align_backward
    grad_input.copy_(backward(gradient, regions, scale, *bins, *grad_input.shape, ratio, aligned))


def _align_options(
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> tuple[Any, ...]:
    """In the order in which torchvision takes them."""
    if pool_mode == MAX_POOLING:
        raise NotImplementedError(
            "roi_align with pool_mode 'max' is not implemented in mtpd; use pool_mode 'avg' or install a compiled mmcv"
        )
    return spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned


def deform_roi_pool_forward(input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, **options: Any) -> None:
    """Fills `output`: RoIAlign whose bins move; regions that are not finite give NaN.

    `offset` (K, 2, bins down, bins across) holds shifts (x, y) of the bins, in `gamma` times the region's width and
    height; empty means none. One region after the other, as their numbers of samples differ: slow, for the few models
    that have it.
    """
    maps, regions, shifts = common(input, rois, offset)
    output.copy_(_deform_pool(maps, shifts, rois=regions, **options))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    **options: Any,
) -> None:
    """Fills `grad_input` and `grad_offset`."""
    maps, regions, shifts = common(input, rois, offset)
    pool = partial(_deform_pool, rois=regions, **options)
    fill_gradients((grad_input, grad_offset), pool, (maps, shifts), grad_output)


def _deform_pool(
    maps: Tensor,
    shifts: Tensor,
    *,
    rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    if not len(rois) or not maps.numel():
        return maps.new_zeros(len(rois), maps.size(1), pooled_height, pooled_width)
    _check_batch_index(rois, batch_size=len(maps))
    regions, unusable = _finite_regions(rois, spatial_scale, maps.shape[2:], sampling_ratio)
    pooled = []
    for k, (image, *box) in enumerate(regions.tolist()):
        x1, y1, x2, y2 = (edge * spatial_scale - 0.5 for edge in box)
        shift_x, shift_y = shifts[k] * gamma if shifts.numel() else maps.new_zeros(2, pooled_height, pooled_width)
        y = _samples(y1, y2, pooled_height, sampling_ratio, maps)
        x = _samples(x1, x2, pooled_width, sampling_ratio, maps)
        rows = y[:, None, :, None] + (shift_y * (y2 - y1))[..., None, None]
        columns = x[:, None] + (shift_x * (x2 - x1))[..., None, None]
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


def _check_batch_index(rois: Tensor, *, batch_size: int) -> None:
    """Raises IndexError for one outside [0, batch_size); on a GPU PyTorch does at its next synchronisation."""
    index = rois[:, 0]
    valid = ((index >= 0) & (index < batch_size)).all()
    if rois.device.type != 'cpu':
        # Reading the flag here would stall the GPU.
        torch._assert_async(valid, f'rois name images outside of a batch of {batch_size}')
    elif not valid:
        raise IndexError(f'rois name images {index.min():g} to {index.max():g} of a batch of {batch_size}')


def _finite_regions(rois: Tensor, scale: float, map_size: tuple[int, ...], ratio: int) -> tuple[Tensor, Tensor]:
    """Regions that are safe to sample, and which of them (K,) bool were not finite.

    Coordinates beyond `FAR` cells, or beyond `ADAPTIVE_LIMIT` map sides when the sampling ratio is 0 or less, are
    clamped to that; regions that are not finite are moved out of the map.
    """
    limit = (FAR if ratio > 0 else float(ADAPTIVE_LIMIT * max(map_size))) / scale
    index, boxes = rois[:, :1], rois[:, 1:]
    unusable = ~torch.isfinite(boxes).all(dim=1)
    boxes = boxes.clamp(-limit, limit).masked_fill(unusable[:, None], -limit)
    if ratio <= 0:
        # An inverted side means a negative number of samples: none by the definition, an exception in torchvision.
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2])], dim=1)
    return torch.cat([index, boxes], dim=1), unusable


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fills `output` with the largest value of each bin, and `argmax`, of the same shape, with its place.

    That is the cell's index in the flat map, or -1 where a bin has no cell (output 0).
    """
    if not output.numel():
        return
    # The end pixel belongs to the region.
    edges = (common(rois)[0][:, 1:] + rois.new_tensor([0, 0, 1, 1])) * spatial_scale
    height, width = input.shape[2:]
    rows = _cells_of_bins(edges[:, 1], edges[:, 3], pooled_height, height)
    columns = _cells_of_bins(edges[:, 0], edges[:, 2], pooled_width, width)
    output.zero_()
    argmax.fill_(EMPTY)
    _check_batch_index(rois, batch_size=len(input))
    for k, image in enumerate(rois[:, 0].long().tolist()):
        for i in range(pooled_height):
            for j in range(pooled_width):
                cells = (rows[k, i, :, None] & columns[k, j]).flatten().nonzero()[:, 0]
                if len(cells):
                    best, position = input[image].flatten(1)[:, cells].max(dim=1)
                    output[k, :, i, j] = best
                    argmax[k, :, i, j] = cells[position].to(argmax.dtype)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **options: Any) -> None:
    """Adds each bin's gradient to the cell that gave its value, in `grad_input` (B, C, H, W)."""
    cells = argmax.flatten(2).long()
    gradient = grad_output.flatten(2).masked_fill(cells == EMPTY, 0)
    flat = grad_input.flatten(2)
    for k, image in enumerate(rois[:, 0].long().tolist()):
        flat[image].scatter_add_(1, cells[k].clamp(min=0), gradient[k])
    # flatten() copies a map that is not contiguous.
    grad_input.copy_(flat.view_as(grad_input))


def _cells_of_bins(start: Tensor, end: Tensor, num_bins: int, num_cells: int) -> Tensor:
    """Which cells (K, num_bins, num_cells) bool belong to the bins of an edge from `start` to `end` (K,), in cells.

    A region of no or negative length, or one that is not finite, has no cells.
    """
    size = (end - start)[:, None] / num_bins
    bins = torch.arange(num_bins, device=start.device)
    first = (start[:, None] + bins * size).clamp(-FAR, FAR).floor()
    beyond = (start[:, None] + (bins + 1) * size).clamp(-FAR, FAR).ceil()
    cell = torch.arange(num_cells, device=start.device)
    inside = (cell >= first[..., None]) & (cell < beyond[..., None])
    return inside & (size > 0)[..., None]
