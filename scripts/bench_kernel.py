#!/usr/bin/env python3
"""The fused loss kernel against eager PyTorch, torch.compile and a bare copy: time and peak memory, on a GPU.

    scripts/bench_kernel.py --csv kernel.csv
    scripts/bench_kernel.py --pyramids p2-p5 --batches 16 --dtypes bfloat16/int8       # the row of the last line
    scripts/bench_kernel.py --host                   # the time of Python alone, which needs no GPU
    scripts/bench_kernel.py --toy                    # on the CPU, in Triton's interpreter: only tests the script

Inputs of 800x1333, padded to 800x1344, 256 channels. A step is the loss of all levels and the gradients of the
student's maps, what `mtpd.kernels.reference` computes in eager mode and compiled. GB/s count the bytes that no way of
computing in two passes can spare: student and teacher once in either direction, and the gradient (8 bytes per element
with a half-precision student and int8 codes); `lean` are int8 codes with steps and offsets in half precision. The copy
moves 1 GiB. Before each step the caches of the GPU are overwritten, for long enough that the host has queued the step
when it begins, as it has in training: times are the GPU's. `extra MB` is the peak of memory beyond inputs and
gradients; a dash: out of memory, or not on a GPU.
Last line: `kernel/copy R1 kernel/compile R2 eager/kernel R3`, ratios of throughput in the row with most elements.

With `--host`: the processor time of a step on the host, with kernels that are compiled for an H100 and not launched,
for a batch of 2 with bfloat16/int8, p3 to p7. Last line: `together/separate R`, one call of the operator for all levels
against one for each.
"""

import contextlib
import csv
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from measuring import described_parser
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.kernels.fused_mse import Operands, fused_weighted_mse
from mtpd.kernels.reference import reference_weighted_mse
from mtpd.losses.maps import valid_cells

PYRAMIDS = {'p3-p7': (8, 16, 32, 64, 128), 'p2-p5': (4, 8, 16, 32)}
DTYPES = (
    'bfloat16/int8', 'float16/int8', 'float32/int8', 'float16/lean', 'bfloat16/float16', 'float16/float16',
    'float32/float16',
)  # fmt: skip
LAYOUTS = ('contiguous', 'channels_last')
METHODS = ('kernel', 'compile', 'eager')
SECONDS = 0.5  # of measurement for each method
MAX_TIMES = 100
# Of memory that is overwritten before a step, beyond the caches of any GPU, and how often: some 6 ms on an H100.
FLUSHED_BYTES, FLUSHES = 2**30, 16

HOST_STEPS = 500
Losses = Callable[[Sequence[Operands]], Sequence[Tensor]]


@dataclass(frozen=True)
class Size:
    """What is put in: (height, width) of images and of the padded batch, and the channels of each level."""

    resized: tuple[int, int] = (800, 1333)
    padded: tuple[int, int] = (800, 1344)
    channels: int = 256
    copied_bytes: int = 2**30


TOY = Size((64, 90), (64, 96), 3, 2**20)


class Setting(NamedTuple):
    """A row of the table."""

    pyramid: str
    batch: int
    layout: str
    dtypes: str


class Row(NamedTuple):
    """What came out, by method; NaN where memory did not suffice.

    `seconds` are those of a step; `extra` are bytes beyond inputs and gradients, NaN on a CPU; `rate` are bytes per
    second: of those that must be moved, or read and written by `copy`.
    """

    num_elements: int
    seconds: dict[str, float]
    extra: dict[str, float]
    rate: dict[str, float]


def make_inputs(setting: Setting, size: Size, device: torch.device) -> list[Operands]:
    student_name, teacher_name = setting.dtypes.split('/')
    student_dtype = getattr(torch, student_name)
    teacher_dtype = torch.int8 if teacher_name == 'lean' else getattr(torch, teacher_name)
    memory_format = torch.channels_last if setting.layout == 'channels_last' else torch.contiguous_format
    levels: list[Operands] = []
    for stride in PYRAMIDS[setting.pyramid]:
        grid = Level(f'stride{stride}', stride, size.channels).grid(*size.padded)
        shape, scale = (setting.batch, size.channels, *grid), None
        student = torch.randn(shape, device=device, dtype=student_dtype).to(memory_format=memory_format)
        if teacher_dtype == torch.int8:
            teacher = torch.randint(-128, 128, shape, device=device, dtype=torch.int8)
            scale = torch.rand((setting.batch, 2, size.channels), device=device) / 100
            scale = scale.half() if teacher_name == 'lean' else scale
        else:
            teacher = torch.randn(shape, device=device, dtype=teacher_dtype)
        mask = valid_cells([size.resized] * setting.batch, stride=stride, grid=grid, device=device)
        levels.append((student.requires_grad_(), teacher, mask, scale, None))
    return levels


def losses_of(method: str, *, toy: bool) -> Losses:
    if method == 'kernel':
        return fused_weighted_mse
    if method == 'compile':
        # A shape at a time, as fast as it gets; what was compiled for the last row would count against a limit.
        torch.compiler.reset()
        backend = 'aot_eager' if toy else 'inductor'
        compiled = torch.compile(reference_weighted_mse, dynamic=False, backend=backend)
        return lambda inputs: [compiled(*level) for level in inputs]
    return lambda inputs: [reference_weighted_mse(*level) for level in inputs]


def step(losses: Losses, inputs: Sequence[Operands]) -> tuple[Tensor, tuple[Tensor, ...]]:
    total = torch.stack(tuple(losses(inputs))).sum()
    return total.detach(), torch.autograd.grad(total, [level[0] for level in inputs])


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    if device.type == 'cpu':
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    overwritten = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
    times: list[float] = []
    for _ in range(3):
        run()
    while len(times) < 10 or (sum(times) < SECONDS and len(times) < MAX_TIMES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(FLUSHES):
            overwritten.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def extra_bytes(run: Callable[[], object], inputs: Sequence[Operands], device: torch.device) -> float:
    """Peak memory of a call beyond what was there and the gradients."""
    if device.type == 'cpu':
        return math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    gradients = sum(level[0].nbytes for level in inputs)
    return torch.cuda.max_memory_allocated() - before - gradients


def measure(setting: Setting, size: Size, device: torch.device, *, toy: bool) -> Row:
    """One row; all methods must agree."""
    inputs = make_inputs(setting, size, device)
    floor = sum(3 * level[0].nbytes + 2 * level[1].nbytes for level in inputs)
    row = Row(sum(level[0].numel() for level in inputs), {}, {}, {'copy': copy_rate(size, device)})
    wanted = None
    for method in METHODS:
        row.seconds[method] = row.extra[method] = math.nan
        run = partial(step, losses_of(method, toy=toy), inputs)
        try:
            found = run()[0].item()
            row.extra[method] = extra_bytes(run, inputs, device)
            row.seconds[method] = seconds_of(run, device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        else:
            wanted = found if wanted is None else wanted
            if not math.isclose(found, wanted, rel_tol=1e-4):
                raise InputError(f'{setting}: {method} gives {found}, but kernel {wanted}; one of them is wrong')
        row.rate[method] = floor / row.seconds[method]
    return row


def copy_rate(size: Size, device: torch.device) -> float:
    source, target = (torch.ones(size.copied_bytes, dtype=torch.int8, device=device) for _ in range(2))
    return 2 * size.copied_bytes / seconds_of(lambda: target.copy_(source), device)


def host_seconds() -> dict[str, float]:
    """Median processor time of a step, its kernels compiled but not launched."""
    import triton
    from triton.backends.compiler import GPUTarget

    # As much of a driver and a launcher as Triton asks for on the way to a launch.
    utils = SimpleNamespace(
        load_binary=lambda *_: (0, 0, 32, 0, 1024),
        get_device_properties=lambda _: {
            'max_shared_mem': 2**18, 'multiprocessor_count': 132, 'max_num_regs': 2**16, 'warpSize': 32,
        },
    )  # fmt: skip
    driver = SimpleNamespace(
        utils=utils,
        launcher_cls=lambda *_: lambda *_: None,
        get_current_target=lambda: GPUTarget('cuda', 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
    )
    triton.runtime.driver.set_active(driver)
    inputs = make_inputs(Setting('p3-p7', 2, 'contiguous', 'bfloat16/int8'), Size(), torch.device('cpu'))
    ways: dict[str, Losses] = {
        'together': fused_weighted_mse,
        'separate': lambda inputs: [fused_weighted_mse([level])[0] for level in inputs],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(HOST_STEPS):
        for name, losses in ways.items():
            start = time.process_time()
            step(losses, inputs)
            times[name].append(time.process_time() - start)
    return {name: statistics.median(one) for name, one in times.items()}


def print_host() -> None:
    seconds = host_seconds()
    print('calls', 'us a step', 'us a level', sep=' | ')
    for name, one in seconds.items():
        print(name, f'{1e6 * one:.0f}', f'{1e6 * one / len(PYRAMIDS["p3-p7"]):.0f}', sep=' | ')
    print(f'together/separate {seconds["together"] / seconds["separate"]:.3f}')


def columns(setting: Setting, row: Row) -> dict[str, str]:
    shown = {name: str(getattr(setting, name)) for name in ('pyramid', 'batch', 'dtypes', 'layout')}
    shown['M elements'] = f'{row.num_elements / 1e6:.1f}'
    shown |= {f'{method} ms': f'{1000 * row.seconds[method]:.3f}' for method in METHODS}
    shown |= {f'{method} GB/s': f'{row.rate[method] / 1e9:.4g}' for method in ('copy', 'kernel')}
    shown |= {f'{method} extra MB': f'{row.extra[method] / 1e6:.1f}' for method in METHODS}
    shown |= {ratio: f'{value:.3f}' for ratio, value in ratios(row).items()}
    return {name: '-' if value == 'nan' else value for name, value in shown.items()}


def ratios(row: Row) -> dict[str, float]:
    pairs = (('kernel', 'copy'), ('kernel', 'compile'), ('eager', 'kernel'))
    return {f'{one}/{other}': row.rate[one] / row.rate[other] for one, other in pairs}


def main() -> None:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add('--pyramids', nargs='+', choices=PYRAMIDS, default=list(PYRAMIDS))
    add('--batches', nargs='+', type=int, default=[2, 16])
    add('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES), help='types of student and teacher')
    add('--csv', type=Path, help='CSV file for the table')
    add('--host', action='store_true', help='time of the host alone, without a GPU')
    add('--toy', action='store_true', help='tiny sizes on the CPU')
    options = parser.parse_args()
    if options.host:
        print_host()
        return
    device, size = torch.device('cuda'), Size()
    if options.toy:
        # Before Triton is imported.
        os.environ['TRITON_INTERPRET'] = '1'
        device, size = torch.device('cpu'), TOY
        options.dtypes = [one for one in options.dtypes if 'bfloat16' not in one]
    elif not torch.cuda.is_available():
        raise SystemExit(
            'bench_kernel.py needs a GPU, but none was found; --toy tests it on the CPU, --host needs none'
        )
    device_name = 'CPU, Triton interpreted' if options.toy else torch.cuda.get_device_name(device)
    rows: list[Row] = []
    with options.csv.open('w', newline='') if options.csv else contextlib.nullcontext() as file:
        for each in product(options.pyramids, sorted(options.batches), LAYOUTS, options.dtypes):
            setting = Setting(*each)
            row = measure(setting, size, device, toy=options.toy)
            shown = columns(setting, row)
            if not rows:
                print(*shown, sep=' | ')
            print(*shown.values(), sep=' | ', flush=True)
            if file is not None:
                shown = {'device': device_name, 'torch': torch.__version__, **shown}
                writer = csv.DictWriter(file, shown)
                if not rows:
                    writer.writeheader()
                writer.writerow(shown)
            rows.append(row)
    # Of equal sizes the first: contiguous maps in the first dtypes.
    largest = max(rows, key=lambda row: row.num_elements)
    print(*(f'{name} {value:.3f}' for name, value in ratios(largest).items()))


if __name__ == '__main__':
    main()
