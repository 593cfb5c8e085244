"""Gather and scatter around convolutions that are computed at some cells only.

C channels, H W map, N chosen cells with rows `mask_h_idx` and columns `mask_w_idx` (N,) int64. Batches of one image.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fills `data_col` (C * kernel_h * kernel_w, N) with the patch of `features` (1, C, H, W) under each cell."""
    padded = pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=features.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=features.device)[:, None]
    data_col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, *, height: int, width: int, channels: int
) -> None:
    """Writes the columns of `col` (channels, N) to their cells of `im` (1, channels, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)
