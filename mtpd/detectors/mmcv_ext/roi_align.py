"""RoIAlign (He et al. 2017), average pooling, on torchvision.

B batch, C channels, H W map, K regions; `rois` is (K, 5): index into the batch, absolute xyxy in px.
"""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from mtpd.detectors.mmcv_ext.dtypes import common
from mtpd.detectors.mmcv_ext.regions import check_batch_index, finite_regions

MAX_POOLING = 0


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `output` (K, C, aligned_height, aligned_width); regions that are not finite give NaN."""
    _refuse_max_pooling(pool_mode)
    if not input.numel() or not output.numel():
        output.zero_()
        return
    check_batch_index(rois, batch_size=input.size(0))
    maps, regions = common(input, rois)
    regions, unusable = finite_regions(regions, spatial_scale, input.shape[2:], sampling_ratio)
    pooled = torch.ops.torchvision.roi_align(
        maps, regions, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled.masked_fill(unusable[:, None, None, None], torch.nan))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `grad_input` (B, C, H, W)."""
    _refuse_max_pooling(pool_mode)
    if not grad_input.numel() or not grad_output.numel():
        grad_input.zero_()
        return
    gradient, regions = common(grad_output, rois)
    regions, _ = finite_regions(regions, spatial_scale, grad_input.shape[2:], sampling_ratio)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            gradient,
            regions,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _refuse_max_pooling(pool_mode: int) -> None:
    if pool_mode == MAX_POOLING:
        raise NotImplementedError(
            "roi_align with pool_mode 'max' is not implemented in mtpd; use pool_mode 'avg' or install a compiled mmcv"
        )
