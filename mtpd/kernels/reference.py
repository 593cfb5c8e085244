"""The weighted mean squared error in plain PyTorch: what the kernel is measured by, and what runs where it cannot."""

import torch
from torch import Tensor


def reference_weighted_mse(
    student: Tensor, teacher: Tensor, weights: Tensor, scale: Tensor | None, channel_weights: Tensor | None
) -> Tensor:
    """See `mtpd.kernels.weighted_mse.weighted_mse`; here `scale` is (B, 2, C) and `channel_weights` (B, C)."""
    is_double = torch.float64 in (student.dtype, teacher.dtype)
    # Half precision is too coarse to add up in.
    dtype = torch.float64 if is_double else torch.float32
    target = teacher.to(dtype)
    if scale is not None:
        step, offset = scale.to(dtype)[..., None, None].unbind(1)
        target = torch.addcmul(offset, target, step)
    # Chosen, not multiplied: 0 * NaN is NaN.
    squares = torch.where(weights != 0, student.to(dtype) - target, 0.0).square()
    if weights.dtype != torch.bool:
        squares = squares * weights.to(dtype)
    if channel_weights is not None:
        squares = squares * channel_weights.to(dtype)[..., None, None]
    total = weights.sum() if weights.dtype == torch.bool else weights.sum(dtype=dtype)
    # Chosen on the device: reading the sum here would make the host wait for the GPU.
    return squares.sum() / (student.shape[1] * torch.where(total > 0, total, 1))
