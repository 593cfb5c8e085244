"""What all losses ask of the maps that they compare.

Legend: B batch, C channels, H W grid of a level.
"""

import torch
from torch import Tensor

from mtpd.errors import InputError


def check_shapes(student: Tensor, teacher: Tensor, mask: Tensor) -> None:
    """Refuses maps of different shapes, which broadcasting would let pass.

    Raises:
        InputError: they are not two maps of one shape and a bool mask (B, 1, H, W).
    """
    wanted = (teacher.shape[0], 1, *teacher.shape[2:])
    if teacher.ndim != 4 or student.shape != teacher.shape or mask.shape != wanted or mask.dtype != torch.bool:
        raise InputError(
            f'student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask {tuple(mask.shape)} {mask.dtype} '
            f'do not fit: expected two maps of one shape (B, C, H, W) and a torch.bool mask (B, 1, H, W)'
        )


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if a tensor is, else float32: half precision is too coarse to add up in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
