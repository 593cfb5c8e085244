"""RoI max pooling as mmcv defines it: bin edges are not rounded to cells first, unlike torchvision's roi_pool.

C channels, H W map, K regions; `rois` is (K, 5): index into the batch, absolute xyxy in px.
"""

import torch
from torch import Tensor

from mtpd.detectors.mmcv_ext.dtypes import at_least_float32
from mtpd.detectors.mmcv_ext.regions import FAR

EMPTY = -1


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
    """Fills `output` (K, C, pooled_height, pooled_width) with the largest value of each bin.

    `argmax`, of the same shape, gets the cell's index in the flat map, or -1 where a bin has no cell (output 0).
    """
    if not output.numel():
        return
    # The end pixel belongs to the region.
    edges = (at_least_float32(rois[:, 1:]) + rois.new_tensor([0, 0, 1, 1])) * spatial_scale
    height, width = input.shape[2:]
    rows = _cells_of_bins(edges[:, 1], edges[:, 3], pooled_height, height)
    columns = _cells_of_bins(edges[:, 0], edges[:, 2], pooled_width, width)
    for k, image in enumerate(rois[:, 0].long().tolist()):
        if not 0 <= image < len(input):
            raise IndexError(f'rois name image {image} of a batch of {len(input)}')
        for i in range(pooled_height):
            for j in range(pooled_width):
                cells = (rows[k, i, :, None] & columns[k, j]).flatten().nonzero()[:, 0]
                if len(cells):
                    best, position = input[image].flatten(1)[:, cells].max(dim=1)
                    output[k, :, i, j] = best
                    argmax[k, :, i, j] = cells[position].to(argmax.dtype)
                else:
                    output[k, :, i, j] = 0
                    argmax[k, :, i, j] = EMPTY


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
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
