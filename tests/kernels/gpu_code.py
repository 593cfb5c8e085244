#!/usr/bin/env python3
"""Compiles the kernels for a GPU that need not be there, and prints the global loads and stores of each, as JSON.

    tests/kernels/gpu_code.py CAPABILITY        e.g. 90: H100

One line for each call of CALLS: [forward, backward], each with the number of instructions by name. Then one line for
the forward pass against 0 as `masked_variance` calls it, on codes of a stream, whose images lie apart.
"""

import collections
import json
import re
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mtpd.kernels.weighted_mse import Inputs, launch_backward, launch_forward

HALF, CODES = torch.float16, torch.int8
# Shape, dtypes, whether the student is channels-last, dtype of the weights, channel weights.
CALLS = [
    ((2, 256, 100, 168), HALF, CODES, False, torch.bool, False),
    ((2, 256, 100, 168), HALF, CODES, True, torch.bool, False),
    ((2, 256, 50, 84), torch.bfloat16, torch.float32, False, torch.float32, True),
    ((2, 256, 7, 11), torch.float32, HALF, False, torch.bool, False),
    ((3, 1, 1, 1), HALF, CODES, True, HALF, True),
]


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


def main() -> None:
    """See the module."""
    triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
    compiled: list[dict[str, int]] = []
    launched = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        assembly = launched(self, *args, warmup=True, **options).asm['ptx']
        compiled.append(collections.Counter(re.findall(r'(?:ld|st)\.global[.\w]*', assembly)))

    JITFunction.run = compile_only
    for shape, student_dtype, teacher_dtype, channels_last, weights_dtype, has_channel_weights in CALLS:
        batch, channels, height, width = shape
        student = torch.zeros(shape, dtype=student_dtype)
        if channels_last:
            student = student.contiguous(memory_format=torch.channels_last)
        scale = torch.ones(batch, 2, channels) if teacher_dtype == CODES else None
        inputs = Inputs(
            student,
            torch.zeros(shape, dtype=teacher_dtype),
            torch.ones((batch, 1, height, width), dtype=weights_dtype),
            scale,
            torch.ones(batch, channels) if has_channel_weights else None,
        )
        compiled.clear()
        loss, denominator = launch_forward(inputs)
        launch_backward(loss, inputs, denominator)
        forward, _, backward = compiled
        print(json.dumps([forward, backward]))
    compiled.clear()
    shape = (2, 256, 100, 168)
    codes = torch.zeros(2, 5_734_400, dtype=CODES)[:, : 256 * 100 * 168].view(shape)
    nothing, mask = torch.zeros(()).expand(shape), torch.ones((2, 1, 100, 168), dtype=torch.bool)
    launch_forward(Inputs(nothing, codes, mask, torch.ones(2, 2, 256), None))
    print(json.dumps(compiled[0]))


if __name__ == '__main__':
    main()
