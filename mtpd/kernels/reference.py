"""The weighted mean squared error in plain PyTorch: the reference for the kernel, and the way without it."""

import torch
from torch import Tensor


def reference_weighted_mse(
    student: Tensor, teacher: Tensor, weights: Tensor, scale: Tensor | None, channel_weights: Tensor | None
) -> Tensor:
    """See `mtpd.kernels.weighted_mse.WeightedError`; here `scale` is (B, 2, C) and `channel_weights` (B, C)."""
    is_double = torch.float64 in (student.dtype, teacher.dtype)
    # Half precision is too coarse to add up in.
    dtype = torch.float64 if is_double else torch.float32
    error = _error(student.to(dtype), teacher, None if scale is None else scale.to(dtype))
    # Chosen, not multiplied: 0 * NaN is NaN.
    error = error.masked_fill_(weights == 0, 0.0)
    squares = error.square() if error.requires_grad else error.square_()
    if weights.dtype != torch.bool:
        squares = squares * weights.to(dtype)
    if channel_weights is not None:
        squares = squares * channel_weights.to(dtype)[..., None, None]
    total = weights.sum() if weights.dtype == torch.bool else weights.sum(dtype=dtype)
    # Chosen on the device: reading the sum here would make the host wait for the GPU.
    return squares.sum() / (student.shape[1] * torch.where(total > 0, total, 1))


def _error(student: Tensor, teacher: Tensor, scale: Tensor | None) -> Tensor:
    """S - (teacher step + offset) in the student's dtype, in memory of its own.

    In place where it can be: on a CPU fresh memory takes longer than what is computed in it.
    """
    if teacher.dtype == student.dtype:
        if scale is None:
            return student - teacher
        step, offset = scale[..., None, None].unbind(1)
        return (teacher * -step).sub_(offset).add_(student)
    target = teacher.to(student.dtype)
    if scale is None:
        return target.neg_().add_(student)
    step, offset = scale[..., None, None].unbind(1)
    return target.mul_(-step).sub_(offset).add_(student)
