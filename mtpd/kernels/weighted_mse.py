"""The weighted mean squared error between a student's map and a teacher's, by a fused kernel where there is one.

`weighted_mse` is what losses call. On a GPU it is an operator of PyTorch with a Triton kernel for each direction;
registered operators are opaque to torch.compile and autocast, which take them as they are. Bytes per element, for a
half-precision student and int8 codes: forward 2 + 1, backward 2 + 1 + 2, together 8; the reference moves about 90, and
keeps float32 copies of the maps for its backward pass.

One call takes one level. To take several in one launch would save some launches of microseconds each, in a step of
hundreds of milliseconds, for pointers out of tables, whose alignment Triton cannot see: three quarters of all bytes are
in the finest level, and they would be read more slowly.

Legend: B images, C channels, H W grid of a level.
"""

import math
import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.kernels.reference import reference_weighted_mse

VALUES = (torch.float32, torch.float16, torch.bfloat16)
# 4096 elements in 4 warps: 32 for each thread, 16 bytes per load where the alignment allows, about 60 registers.
TILE = 4096
CELLS = 1024
# Both sides of a tile are whole lines of memory, should one map be channels-last and the other contiguous.
CELLS_CHANNELS_LAST = 64
PARTIALS_BLOCK = 1024
# FP fusion is set explicitly, as its default differs between versions of Triton.
OPTIONS = {'num_warps': 4, 'enable_fp_fusion': True}
# The longest vector: 16 bytes of int8.
LONGEST_VECTOR = 16


def weighted_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
    channel_weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error over cells and channels, each cell with its weight, against values or stored codes.

        L = sum_bchw W_bhw A_bc (S_bchw - T_bchw)^2 / (C sum_bhw W_bhw),   T = teacher * step + offset

    W is 0 outside of the mask. It is here that all shapes are checked: the kernel would read beyond the ends of what is
    smaller, and plain PyTorch would broadcast.

    A has no part in what is divided by: channel weights whose mean is 1 keep the size of the loss.

    On a GPU with Triton one kernel for each direction reads the maps as they are, in any strides, and keeps nothing but
    the student's gradient; the same inputs give the same bits. Elsewhere, for float64, and when another tensor than the
    student needs a gradient it is computed by plain PyTorch.

    Args:
        student: (B, C, H, W), any floating dtype.
        teacher: (B, C, H, W), any floating dtype, or int8 codes.
        mask: bool (B, 1, H, W), True at cells that count. Values elsewhere, and where the weight is 0, including NaN,
            change neither the loss nor a gradient.
        weights: W, (B, 1, H, W), floating, at least 0; None: 1.
        scale: step and offset of codes, (B, 2, C), or (2, C) for all images, or (2, 1) for all channels too, floating;
            None where `teacher` has values.
        channel_weights: A, (B, C) or (C,), floating, at least 0; None: 1.

    Returns:
        Scalar, accumulated in float32 (float64 if a map is); 0, with a gradient of zeros, when no cell has a weight.

    Raises:
        InputError: the shapes do not fit.
    """
    wanted = (*student.shape[:1], 1, *student.shape[2:])
    shapes_fit = student.ndim == 4 and teacher.shape == student.shape and mask.shape == wanted
    if not shapes_fit or mask.dtype != torch.bool or (weights is not None and weights.shape != wanted):
        of_weights = '' if weights is None else f' and weights {tuple(weights.shape)}'
        raise InputError(
            f'student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask {tuple(mask.shape)} {mask.dtype}'
            f'{of_weights} do not fit: expected two maps of one shape (B, C, H, W), a torch.bool mask (B, 1, H, W) and '
            'weights, if any, of its shape'
        )
    cells = mask if weights is None else torch.where(mask, weights, 0.0)
    batch, channels = student.shape[:2]
    scale = None if scale is None else scale.expand(batch, 2, channels)
    channel_weights = None if channel_weights is None else channel_weights.expand(batch, channels)
    if _runs_fused(student, teacher, cells, scale, channel_weights):
        loss: Tensor = fused_weighted_mse(student, teacher, cells, scale, channel_weights)[0]
        return loss
    return reference_weighted_mse(student, teacher, cells, scale, channel_weights)


def _runs_fused(student: Tensor, teacher: Tensor, *others: Tensor | None) -> bool:
    constants = [teacher, *(one for one in others if one is not None)]
    return (
        HAS_TRITON
        and student.is_cuda
        and student.dtype in VALUES
        and teacher.dtype in (torch.int8, *VALUES)
        and all(one.dtype != torch.float64 and not one.requires_grad for one in constants)
    )


# Triton needs a C compiler and the headers of Python to build launchers. Not asked again in each step, where
# torch.compile could not follow.
HAS_TRITON = (
    find_spec('triton') is not None
    and any(map(shutil.which, (os.environ.get('CC', 'gcc'), 'clang')))
    and Path(sysconfig.get_paths()['include'], 'Python.h').is_file()
)


# What both passes read, as `weighted_mse` expands it: weights (B, 1, H, W), scale (B, 2, C), channel weights (B, C).
_INPUTS = 'Tensor student, Tensor teacher, Tensor weights, Tensor? scale, Tensor? channel_weights'


def launch_forward(
    student: Tensor, teacher: Tensor, weights: Tensor, scale: Tensor | None, channel_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss and what it was divided by, float32 scalars."""
    # Not at the top: Triton is not everywhere, and takes seconds to import.
    from mtpd.kernels import triton_mse

    loss, denominator = (torch.empty((), dtype=torch.float32, device=student.device) for _ in range(2))
    if not student.numel():
        return loss.zero_(), denominator.fill_(1)
    num_programs, arguments = _launch(student, teacher, weights, scale, channel_weights, maps=[student, teacher])
    partials = torch.empty((2, num_programs), dtype=torch.float32, device=student.device)
    # Triton launches on the current device; a CPU tensor, in its interpreter, says -1, which changes nothing.
    with torch.cuda.device(student.get_device()):
        triton_mse.forward_kernel[(num_programs,)](**arguments, partials=partials)
        triton_mse.finish_kernel[(1,)](
            partials,
            loss,
            denominator,
            num_programs,
            student.shape[1],
            # Rounded up, as each number of blocks is compiled separately.
            num_blocks=_power_of_two(-(-num_programs // PARTIALS_BLOCK)),
            block=PARTIALS_BLOCK,
            **OPTIONS,
        )
    return loss, denominator


def launch_backward(
    grad_loss: Tensor,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    channel_weights: Tensor | None,
    denominator: Tensor,
) -> Tensor:
    """The student's gradient, in its dtype and layout."""
    from mtpd.kernels import triton_mse

    gradient = torch.empty_like(student)
    if not gradient.numel():
        return gradient
    maps = [student, teacher, gradient]
    num_programs, arguments = _launch(student, teacher, weights, scale, channel_weights, maps=maps)
    with torch.cuda.device(student.get_device()):
        triton_mse.backward_kernel[(num_programs,)](
            **arguments,
            grad_loss=grad_loss,
            denominator=denominator,
            gradient=gradient,
            gradient_strides=_strides(gradient, arguments['alignment']),
        )
    return gradient


def _launch(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    channel_weights: Tensor | None,
    *,
    maps: list[Tensor],
) -> tuple[int, dict[str, Any]]:
    """How many programs run, and what both kernels take; `maps` are all maps that the kernel touches."""
    weights = weights.contiguous()
    batch, channels, height, width = student.shape
    # The greatest power of 2 that divides the cells and the strides of images and channels, up to a vector. Where
    # channels are the fast axis it is 1, and Triton itself sees what divides the strides of cells.
    alignment = math.gcd(LONGEST_VECTOR, height * width, *(stride for one in maps for stride in one.stride()[:2]))
    # A tile: powers of 2, not much larger than the map.
    channels_last = channels > 1 and student.stride(1) == 1
    block_cells = min(_power_of_two(height * width), CELLS_CHANNELS_LAST if channels_last else CELLS)
    block_channels = min(_power_of_two(channels), TILE // block_cells)
    num_programs = batch * -(-channels // block_channels) * -(-(height * width) // block_cells)
    return num_programs, {
        'student': student,
        'student_strides': _strides(student, alignment),
        'teacher': teacher,
        'teacher_strides': _strides(teacher, alignment),
        # Triton has no pointers to bool.
        'weights': weights.view(torch.uint8) if weights.dtype == torch.bool else weights,
        'scale': scale,
        'scale_strides': None if scale is None else scale.stride(),
        'channel_weights': channel_weights,
        'channel_weights_strides': None if channel_weights is None else channel_weights.stride(),
        'shape': (channels, height * width // alignment, width),
        'is_flat': all(one.stride(2) == width * one.stride(3) for one in maps),
        'alignment': alignment,
        'block_channels': block_channels,
        'block_cells': block_cells,
        **OPTIONS,
    }


def _strides(maps: Tensor, alignment: int) -> tuple[int, ...]:
    image, channel, row, column = maps.stride()
    return image // alignment, channel // alignment, row, column


def _power_of_two(number: int) -> int:
    """The least power of 2 that is not less."""
    return 1 << (number - 1).bit_length()


# Differentiable by the student alone, once.
fused_weighted_mse = torch.library.custom_op(
    'mtpd::weighted_mse', launch_forward, mutates_args=(), schema=f'({_INPUTS}) -> (Tensor, Tensor)'
)
_gradient = torch.library.custom_op(
    'mtpd::weighted_mse_backward',
    launch_backward,
    mutates_args=(),
    schema=f'(Tensor grad_loss, {_INPUTS}, Tensor denominator) -> Tensor',
)


@fused_weighted_mse.register_fake
def _(student: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    return student.new_empty((), dtype=torch.float32), student.new_empty((), dtype=torch.float32)


@_gradient.register_fake
def _(grad_loss: Tensor, student: Tensor, *_: Tensor | None) -> Tensor:
    return torch.empty_like(student)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    _, denominator = output
    ctx.save_for_backward(*inputs, denominator)
    ctx.mark_non_differentiable(denominator)


def _differentiate(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _gradient(grad_loss, *ctx.saved_tensors), None, None, None, None


fused_weighted_mse.register_autograd(_differentiate, setup_context=_save)
