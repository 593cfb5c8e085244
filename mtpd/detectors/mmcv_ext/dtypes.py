"""Precision in which the replacement operators compute."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` itself if it is float32 or float64; float32 otherwise (half precision, integers)."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def common(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in one dtype, the widest of them, float32 at least."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return tuple(tensor.to(dtype) for tensor in tensors)
