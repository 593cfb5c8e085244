#!/usr/bin/env python3
"""Compiles the kernels for a GPU that need not be there, and prints what became of each, as a line of JSON.

    tests/kernels/gpu_code.py CAPABILITY        e.g. 90: H100
    tests/kernels/gpu_code.py CAPABILITY --sizes        only how many binaries images of 12 random sizes take

The maps are those of batches of 800x1344 px: all levels in both layouts, all dtypes in P3, and calls as a stream and
the variance make them. Of each kernel: registers of a thread, bytes spilled from them, barriers, loads and stores by
their bits, and instructions for each element of a tile, all threads together: the code is a straight line.
"""

import collections
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mtpd.geometry import Level
from mtpd.kernels.fused_mse import VALUES, Operands, launch_backward, launch_forward

HALF, CODES = torch.float16, torch.int8
STRIDES = {'P2': 4, 'P3': 8, 'P4': 16, 'P5': 32, 'P6': 64, 'P7': 128}
PADDED = (800, 1344)
TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'


class Driver:
    """A driver without a GPU: as much of one as it takes to compile."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget('cuda', capability, 32)

    def get_current_target(self) -> Any:
        """What to compile for."""
        return self._target

    def get_current_device(self) -> int:
        """Kernels are kept by device."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """Where they would run."""
        return 0


def operands(
    stride: int,
    student: torch.dtype = HALF,
    teacher: torch.dtype = CODES,
    layouts: Sequence[str] = ('contiguous', 'contiguous'),
    *,
    channels: int = 256,
    padded: tuple[int, int] = PADDED,
    weights: torch.dtype = torch.bool,
    has_channel_weights: bool = False,
) -> Operands:
    grid = Level('level', stride, channels).grid(*padded)
    maps = []
    for dtype, layout in zip((student, teacher), layouts, strict=True):
        values = torch.empty((2, channels, *grid), dtype=dtype)
        maps.append(values.contiguous(memory_format=torch.channels_last) if layout == 'channels_last' else values)
    scale = torch.empty(2, 2, channels) if teacher == CODES else None
    channel_weights = torch.empty(2, channels) if has_channel_weights else None
    return maps[0], maps[1], torch.empty((2, 1, *grid), dtype=weights), scale, channel_weights


def apart(values: Tensor) -> Tensor:
    """As the maps of a stream, whose images have those of other levels between them."""
    return torch.empty(len(values), 2 * values[0].numel(), dtype=values.dtype)[:, : values[0].numel()].view_as(values)


def cases() -> Iterator[tuple[str, Operands]]:
    for (name, stride), student_layout in product(STRIDES.items(), ('contiguous', 'channels_last')):
        yield f'{name} {student_layout}', operands(stride, layouts=(student_layout, 'contiguous'))
    student, codes, weights, scale, _ = operands(8)
    yield 'variance', (torch.zeros(()).expand_as(student), apart(codes), weights, scale, None)
    yield 'live teacher', operands(16, HALF, HALF, ('channels_last', 'channels_last'))
    yield 'live teacher of another layout', operands(16, HALF, HALF, ('contiguous', 'channels_last'))
    for student_dtype, teacher_dtype, layout in product(VALUES, (CODES, *VALUES), ('contiguous', 'channels_last')):
        name = f'P3 {layout} {student_dtype}/{teacher_dtype}'.replace('torch.', '')
        yield name, operands(8, student_dtype, teacher_dtype, (layout, 'contiguous'))
    yield (
        'weights of cells and channels, bfloat16',
        operands(16, torch.bfloat16, weights=torch.float32, has_channel_weights=True),
    )
    yield 'odd channels', operands(64, torch.float32, HALF, ('channels_last', 'contiguous'), channels=37, weights=HALF)
    yield 'odd channels of codes', operands(64, layouts=('channels_last', 'contiguous'), channels=255)
    yield 'one cell', operands(8, layouts=('channels_last', 'contiguous'), channels=1, padded=(8, 8))


def launch(operands: Operands) -> None:
    student, teacher, weights, scale, channel_weights = operands
    losses, totals = launch_forward([student], [teacher], [weights], [scale], [channel_weights])
    launch_backward(losses, [student], [teacher], [weights], [scale], [channel_weights], totals)


def description(kernel: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(kernel.asm['cubin'])
        file.flush()
        usage, assembly = (
            subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (('cuobjdump', '--dump-resource-usage'), ('nvdisasm', '-c'))
        )
    instructions = re.findall(r'/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)', assembly)
    while instructions[-1] == 'NOP':
        instructions.pop()
    names = kernel.src.fn.arg_names
    constants = {names[place[0]]: value for place, value in kernel.src.constants.items()}
    tile = constants.get('block') or constants['block_channels'] * constants['block_cells']
    kinds = collections.Counter(one.split('.')[0] for one in instructions)
    return {
        'kernel': kernel.src.fn.__name__,
        'registers': int(re.findall(r'REG:(\d+)', usage)[0]),
        'spilled': sum(map(int, re.findall(r'(?:STACK|LOCAL):(\d+)', usage))) + kinds['LDL'] + kinds['STL'],
        'instructions': len(instructions) * 32 * kernel.metadata.num_warps / tile,
        'barriers': kinds['BAR'],
        'loads': bits(instructions, 'LDG'),
        'stores': bits(instructions, 'STG'),
    }


def bits(instructions: Sequence[str], kind: str) -> dict[int, int]:
    """How many move how many bits."""
    found = [one.split('.') for one in instructions if one.split('.')[0] == kind]
    widths = [next((int(part.strip('US')) for part in one if part.strip('US').isdigit()), 32) for one in found]
    return collections.Counter(widths)


def main() -> None:
    """See the module."""
    triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
    compiled: dict[str, Any] = {}
    launched = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        kernel = launched(self, *args, warmup=True, **options)
        compiled[kernel.hash] = kernel

    JITFunction.run = compile_only
    if '--sizes' in sys.argv:
        draw = random.Random(0)
        for _ in range(12):
            # Shorter side 800 px or longer side 1333, as COCO's recipe has it, padded to a multiple of 32.
            padded = (32 * draw.randint(15, 25), 32 * draw.randint(25, 42))
            for name in ('P3', 'P4', 'P5', 'P6', 'P7'):
                launch(operands(STRIDES[name], padded=padded))
        print(len(compiled))
        return
    for name, tensors in cases():
        before = set(compiled)
        launch(tensors)
        for key in compiled.keys() - before:
            print(json.dumps({'case': name, **description(compiled[key])}), flush=True)


if __name__ == '__main__':
    main()
