"""The weighted mean squared error between a student's map and a teacher's, by the fused kernel where there is one.

Legend: B images, C channels, H W grid of a level.
"""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.kernels.fused import fused_weighted_mse
from mtpd.kernels.reference import reference_weighted_mse

VALUES = (torch.float32, torch.float16, torch.bfloat16)


def weighted_mse(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    *,
    scale: Tensor | None = None,
    channel_weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error over cells and channels, each cell with its weight, against values or stored codes.

        L = sum_bchw W_bhw A_bc (S_bchw - T_bchw)^2 / (C sum_bhw W_bhw),   T = teacher * step + offset

    A has no part in what is divided by: channel weights whose mean is 1 keep the size of the loss.

    On a GPU with Triton one kernel for each direction reads the maps as they are, in any strides, and keeps nothing but
    the student's gradient; the same inputs give the same bits. Elsewhere, for float64, and when another tensor than the
    student needs a gradient it is computed by plain PyTorch.

    Args:
        student: (B, C, H, W), any floating dtype.
        teacher: (B, C, H, W), any floating dtype, or int8 codes.
        weights: (B, 1, H, W), bool or floating, at least 0. Values where the weight is 0, including NaN, change
            neither the loss nor a gradient.
        scale: step and offset of codes, (B, 2, C), or (2, C) for all images, or (2, 1) for all channels too, floating;
            None where `teacher` has values.
        channel_weights: A, (B, C) or (C,), floating, at least 0; None: 1.

    Returns:
        Scalar, accumulated in float32 (float64 if a map is); 0, with a gradient of zeros, when no cell has a weight.

    Raises:
        InputError: the shapes do not fit.
    """
    _require_shapes(student, teacher, weights)
    batch, channels = student.shape[:2]
    scale = None if scale is None else scale.expand(batch, 2, channels)
    channel_weights = None if channel_weights is None else channel_weights.expand(batch, channels)
    if _runs_fused(student, teacher, weights, scale, channel_weights):
        loss: Tensor = fused_weighted_mse(student, teacher, weights, scale, channel_weights)[0]
        return loss
    return reference_weighted_mse(student, teacher, weights, scale, channel_weights)


def _runs_fused(student: Tensor, teacher: Tensor, *others: Tensor | None) -> bool:
    constants = [teacher, *(one for one in others if one is not None)]
    return (
        HAS_TRITON
        and student.is_cuda
        and student.dtype in VALUES
        and teacher.dtype in (torch.int8, *VALUES)
        and all(one.dtype != torch.float64 and not one.requires_grad for one in constants)
    )


def _require_shapes(student: Tensor, teacher: Tensor, weights: Tensor) -> None:
    # The kernel would read beyond the ends of what is smaller.
    wanted = (student.shape[0], 1, *student.shape[2:])
    if student.ndim != 4 or teacher.shape != student.shape or weights.shape != wanted:
        raise InputError(
            f'student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and weights {tuple(weights.shape)} do not '
            f'fit: expected two maps of one shape (B, C, H, W) and weights (B, 1, H, W)'
        )


def _has_triton() -> bool:
    """Whether Triton is there, with the C compiler and the headers of Python that it builds launchers with."""
    header = Path(sysconfig.get_paths()['include'], 'Python.h')
    compilers = (os.environ.get('CC', 'gcc'), 'clang')
    return find_spec('triton') is not None and any(map(shutil.which, compilers)) and header.is_file()


# Not asked again in each step, where torch.compile could not follow.
HAS_TRITON = _has_triton()
