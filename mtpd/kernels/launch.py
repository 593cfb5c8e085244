"""Launches of the kernels in `mtpd.kernels.triton_mse`: tiles, strides, alignment.

One call takes one level. To take several in one launch would save some launches of microseconds each, in a step of
hundreds of milliseconds, for pointers out of tables, whose alignment Triton cannot see: three quarters of all bytes are
in the finest level, and they would be read more slowly.

Legend: B images, C channels, H W grid of a level.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Inputs:
    """What both passes read.

    Attributes:
        student: (B, C, H, W) float32, float16 or bfloat16, with any strides.
        teacher: (B, C, H, W) int8 codes, or values of the types of the student, with any strides.
        weights: (B, 1, H, W) bool, or of the types of the student.
        scale: (B, 2, C) step and offset of the codes, float32 or float16 with any strides, or None.
        channel_weights: (B, C) float32 or float16 with any strides, or None.
    """

    student: Tensor
    teacher: Tensor
    weights: Tensor
    scale: Tensor | None
    channel_weights: Tensor | None


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss and what it was divided by, float32 scalars."""
    # Not at the top: Triton is not everywhere, and takes seconds to import.
    from mtpd.kernels import triton_mse

    device, num_channels = inputs.student.device, inputs.student.shape[1]
    loss, denominator = (torch.empty((), dtype=torch.float32, device=device) for _ in range(2))
    if not inputs.student.numel():
        return loss.zero_(), denominator.fill_(1)
    maps = [inputs.student, inputs.teacher]
    arguments, num_programs = _arguments(inputs, maps), _num_programs(inputs.student)
    partials = torch.empty((2, num_programs), dtype=torch.float32, device=device)
    # Triton launches on the current device; a CPU tensor, in its interpreter, says -1, which changes nothing.
    with torch.cuda.device(inputs.student.get_device()):
        triton_mse.forward_kernel[(num_programs,)](**arguments, partials=partials)
        triton_mse.finish_kernel[(1,)](
            partials,
            loss,
            denominator,
            num_programs,
            num_channels,
            # Rounded up, as each number of blocks is compiled separately.
            num_blocks=_power_of_two(-(-num_programs // PARTIALS_BLOCK)),
            block=PARTIALS_BLOCK,
            **OPTIONS,
        )
    return loss, denominator


def backward(grad_loss: Tensor, inputs: Inputs, denominator: Tensor) -> Tensor:
    """The student's gradient, in its dtype and layout."""
    from mtpd.kernels import triton_mse

    gradient = torch.empty_like(inputs.student)
    if not gradient.numel():
        return gradient
    arguments = _arguments(inputs, [inputs.student, inputs.teacher, gradient])
    with torch.cuda.device(inputs.student.get_device()):
        triton_mse.backward_kernel[(_num_programs(inputs.student),)](
            **arguments,
            grad_loss=grad_loss,
            denominator=denominator,
            gradient=gradient,
            gradient_strides=_strides(gradient, arguments['alignment']),
        )
    return gradient


def _arguments(inputs: Inputs, maps: list[Tensor]) -> dict[str, Any]:
    """What both kernels take; `maps` are all maps that the kernel touches."""
    student, teacher, weights = inputs.student, inputs.teacher, inputs.weights.contiguous()
    _, channels, height, width = student.shape
    alignment = _alignment(maps)
    block_channels, block_cells = _blocks(student)
    scale, channel_weights = inputs.scale, inputs.channel_weights
    return {
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


def _blocks(student: Tensor) -> tuple[int, int]:
    """Channels and cells of a tile: powers of 2, not much larger than the map."""
    _, channels, height, width = student.shape
    channels_last = channels > 1 and student.stride(1) == 1
    cells = min(_power_of_two(height * width), CELLS_CHANNELS_LAST if channels_last else CELLS)
    return min(_power_of_two(channels), TILE // cells), cells


def _num_programs(student: Tensor) -> int:
    batch, channels, height, width = student.shape
    block_channels, block_cells = _blocks(student)
    return batch * -(-channels // block_channels) * -(-(height * width) // block_cells)


def _alignment(maps: list[Tensor]) -> int:
    """The greatest power of 2 that divides the cells and the strides of images and channels, up to a vector.

    Where channels are the fast axis it is 1, and Triton itself sees what divides the strides of cells.
    """
    numbers = [maps[0].shape[2] * maps[0].shape[3], *(stride for one in maps for stride in one.stride()[:2])]
    return math.gcd(LONGEST_VECTOR, *numbers)


def _strides(maps: Tensor, alignment: int) -> tuple[int, ...]:
    image, channel, row, column = maps.stride()
    return image // alignment, channel // alignment, row, column


def _power_of_two(number: int) -> int:
    """The least power of 2 that is not less."""
    return 1 << (number - 1).bit_length()
