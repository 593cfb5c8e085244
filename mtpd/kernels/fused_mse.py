"""The weighted mean squared error of several levels as one operator of PyTorch, by Triton kernels.

Registered operators are opaque to torch.compile and autocast, which take them as they are. Bytes per element, for a
half-precision student and int8 codes: forward 2 + 1, backward 2 + 1 + 2, together 8. In eager mode the reference moves
about 90, and keeps float32 copies of the maps for its backward pass; compiled, it moves 8 too, in more launches.

Each level has a launch for each direction, and all together one more, which ends the sums of the forward pass. One
launch for all levels would take its pointers out of tables, where Triton cannot see how they are aligned: three
quarters of all bytes are in the finest level, and they would be read more slowly.

Legend: B images, C channels, H W grid of a level.
"""

import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

VALUES = (torch.float32, torch.float16, torch.bfloat16)
# By how many elements loads can be aligned: a vector has 16 bytes. Each is a compilation, at the first map of its kind.
UNITS = (16, 8, 2, 1)
# FP fusion is set explicitly, as its default differs between versions of Triton.
OPTIONS = {'enable_fp_fusion': True}
FINISH_OPTIONS = {'block': 16384, 'num_warps': 32, **OPTIONS}


class Tile(NamedTuple):
    """What a program computes: channels and cells, powers of 2, at most 64 elements for each thread of its warps."""

    channels: int
    cells: int
    num_warps: int


# Rows of 1024 cells in 2 warps: 16 cells for each thread, as long as the longest vector, so that student and teacher
# have one layout and nothing is exchanged between threads.
TILE = Tile(4, 1024, 2)
# Maps of few cells would leave most of a row idle.
SMALL_TILE, FEW_CELLS = Tile(32, 128, 2), 512
# Both sides are whole lines of memory, should one map be channels-last and the other contiguous.
CHANNELS_LAST_TILE = Tile(64, 128, 4)
# Elements that are not aligned have an address each: with more of them, registers would spill.
ODD_CHANNELS_TILE = Tile(32, 128, 4)

# Student, teacher or codes, weights (B, 1, H, W), scale (B, 2, C), channel weights (B, C).
Operands = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def runs_fused(student: Tensor, teacher: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels can compute the error of these operands."""
    constants = [teacher, *(one for one in others if one is not None)]
    return (
        HAS_TRITON
        and student.is_cuda
        and student.numel() > 0
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


def fused_weighted_mse(errors: Sequence[Operands]) -> tuple[Tensor, ...]:
    """The errors, float32 scalars, of operands on one device; differentiable by the students alone, once."""
    operands = [one for kind in zip(*errors, strict=True) for one in kind]
    if torch.compiler.is_compiling():
        # It takes no tensor twice, as the mask of two losses on one level.
        operands = [None if one is None else one.view_as(one) for one in operands]
    losses: Tensor = _FusedWeightedMse.apply(len(errors), *operands)
    return losses.unbind()


Tensors = Sequence[Tensor]
OptionalTensors = Sequence[Tensor | None]


def launch_forward(
    students: Tensors, teachers: Tensors, weights: Tensors, scales: OptionalTensors, channel_weights: OptionalTensors
) -> tuple[Tensor, Tensor]:
    """The loss of each level and what it was divided by, the sum of its weights: float32 (levels,)."""
    # Not at the top: Triton is not everywhere, and takes seconds to import.
    from mtpd.kernels import triton_mse

    calls = [_call(*one) for one in zip(students, teachers, weights, scales, channel_weights, strict=True)]
    device = students[0].device
    losses, totals = (torch.empty(len(calls), dtype=torch.float32, device=device) for _ in range(2))
    bounds = torch.empty((len(calls), 2), dtype=torch.int32, device=device)
    partials = torch.empty((sum(num_programs for num_programs, *_ in calls), 2), dtype=torch.float32, device=device)
    first = 0
    # Triton launches on the current device; a CPU tensor, in its interpreter, says -1, which changes nothing.
    with torch.cuda.device(students[0].get_device()):
        for level, (num_programs, operands, numbers) in enumerate(calls):
            triton_mse.forward_kernel[(num_programs,)](*operands, partials, bounds, level, first, **numbers)
            first += num_programs
        triton_mse.finish_kernel[(len(calls),)](partials, bounds, losses, totals, **FINISH_OPTIONS)
    return losses, totals


def launch_backward(
    grad_losses: Tensor,
    students: Tensors,
    teachers: Tensors,
    weights: Tensors,
    scales: OptionalTensors,
    channel_weights: OptionalTensors,
    totals: Tensor,
) -> list[Tensor]:
    """The students' gradients, in their dtypes."""
    from mtpd.kernels import triton_mse

    gradients = []
    grad_losses = grad_losses.contiguous()
    calls = zip(students, teachers, weights, scales, channel_weights, strict=True)
    with torch.cuda.device(students[0].get_device()):
        for level, (student, *constants) in enumerate(calls):
            num_programs, operands, numbers = _call(student, *constants)  # type: ignore[arg-type]
            gradient = _gradient_like(student, numbers['student_layout'])
            gradients.append(gradient)
            stride = gradient.stride(0) // numbers['student_unit']
            triton_mse.backward_kernel[(num_programs,)](
                *operands, grad_losses, totals, level, gradient, stride, **numbers
            )
    return gradients


def _call(
    student: Tensor, teacher: Tensor, weights: Tensor, scale: Tensor | None, channel_weights: Tensor | None
) -> tuple[int, Operands, Mapping[str, Any]]:
    """How many programs run, and what both kernels take: operands and numbers."""
    plan = _plan(student.shape, student.stride(), teacher.stride())
    if plan is None:
        student, teacher = (one if _layout(one.shape, one.stride()) else one.contiguous() for one in (student, teacher))
        plan = _plan(student.shape, student.stride(), teacher.stride())
        assert plan is not None
    # Triton has no pointers to bool.
    weights = (weights.view(torch.uint8) if weights.dtype == torch.bool else weights).contiguous()
    scale = None if scale is None else scale.contiguous()
    channel_weights = None if channel_weights is None else channel_weights.contiguous()
    num_programs, numbers = plan
    return num_programs, (student, teacher, weights, scale, channel_weights), numbers


@lru_cache
def _plan(
    shape: Sequence[int], student_strides: Sequence[int], teacher_strides: Sequence[int]
) -> tuple[int, Mapping[str, Any]] | None:
    """How many programs run, and the numbers that both kernels take; None where they cannot read a map."""
    batch, channels, height, width = shape
    num_cells = height * width
    is_small = num_cells <= FEW_CELLS
    # Small maps are rarely aligned, and read fast enough.
    aligned_cells = 1 if is_small else num_cells
    cell_unit = _unit(aligned_cells)
    numbers: dict[str, Any] = {'channels': channels, 'num_cells': num_cells // cell_unit, 'cell_unit': cell_unit}
    tile = SMALL_TILE if is_small else TILE
    for name, strides in (('student', student_strides), ('teacher', teacher_strides)):
        layout = _layout(shape, strides)
        if layout is None:
            return None
        if layout == 'channels_last':
            tile = CHANNELS_LAST_TILE if channels % 2 == 0 else ODD_CHANNELS_TILE
        # Images, channels and cells lie a multiple of it apart, as far as the kernel multiplies by them.
        stride = strides[0] if batch > 1 else 0
        unit = _unit(channels if layout == 'channels_last' else aligned_cells, stride)
        numbers |= {f'{name}_stride': stride // unit, f'{name}_layout': layout, f'{name}_unit': unit}
    block_channels = min(tile.channels, 1 << (channels - 1).bit_length())
    numbers |= {'block_channels': block_channels, 'block_cells': tile.cells, 'num_warps': tile.num_warps, **OPTIONS}
    return batch * -(-channels // block_channels) * -(-num_cells // tile.cells), numbers


def _unit(*numbers: int) -> int:
    """What all the numbers are multiples of."""
    return next(unit for unit in UNITS if math.gcd(*numbers) % unit == 0)


def _layout(shape: Sequence[int], strides: Sequence[int]) -> str | None:
    """How the kernels can read maps, whose images may lie apart; None: they cannot."""
    if not any(strides):
        return 'single'
    for layout, order in (('contiguous', (3, 2, 1)), ('channels_last', (1, 3, 2))):
        # The strides of axes of one element mean nothing.
        axes = [axis for axis in order if shape[axis] > 1]
        if all(strides[axis] == math.prod(shape[one] for one in axes[:place]) for place, axis in enumerate(axes)):
            return layout
    return None


def _gradient_like(student: Tensor, layout: str | None) -> Tensor:
    is_last = layout == 'channels_last'
    return torch.empty_like(student, memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _fake_forward(students: Tensors, *_: OptionalTensors) -> tuple[Tensor, Tensor]:
    first = students[0]
    return first.new_empty(len(students), dtype=torch.float32), first.new_empty(len(students), dtype=torch.float32)


def _fake_backward(grad_losses: Tensor, students: Tensors, *_: Any) -> list[Tensor]:
    return [_gradient_like(one, _layout(one.shape, one.stride())) for one in students]


_LIBRARY = torch.library.Library('mtpd', 'FRAGMENT')  # type: ignore[no-untyped-call]
_INPUTS = 'Tensor[] students, Tensor[] teachers, Tensor[] weights, Tensor?[] scales, Tensor?[] channel_weights'


def _define(name: str, schema: str, *, launch: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Defines an operator. `torch.library.custom_op` would sort the lists of each call for half of the host's time."""
    _LIBRARY.define(f'{name}{schema}', tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, launch, 'CompositeExplicitAutograd')  # type: ignore[no-untyped-call]
    torch.library.register_fake(f'mtpd::{name}', fake, lib=_LIBRARY)


_define('weighted_mse', f'({_INPUTS}) -> (Tensor, Tensor)', launch=launch_forward, fake=_fake_forward)
_define(
    'weighted_mse_backward',
    f'(Tensor grad_losses, {_INPUTS}, Tensor totals) -> Tensor[]',
    launch=launch_backward,
    fake=_fake_backward,
)


class _FusedWeightedMse(torch.autograd.Function):
    """Of `num_levels` students, then as many teachers, weights, scales and channel weights."""

    @staticmethod
    def forward(ctx: Any, num_levels: int, *operands: Tensor | None) -> Tensor:
        losses: Tensor
        losses, totals = torch.ops.mtpd.weighted_mse(*_by_kind(operands, num_levels))
        ctx.num_levels = num_levels
        ctx.save_for_backward(*operands, totals)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        *operands, totals = ctx.saved_tensors
        inputs = _by_kind(operands, ctx.num_levels)
        gradients = torch.ops.mtpd.weighted_mse_backward(grad_losses, *inputs, totals)
        return None, *gradients, *[None] * (len(operands) - ctx.num_levels)


def _by_kind(operands: Sequence[Tensor | None], num_levels: int) -> list[Sequence[Tensor | None]]:
    return [operands[start : start + num_levels] for start in range(0, len(operands), num_levels)]
