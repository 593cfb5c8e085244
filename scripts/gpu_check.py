#!/usr/bin/env python3
"""Tests and measures all that needs a GPU, part by part; `scripts/gpu_check.sh` runs it.

    kernels      fused kernels against float64 formulas: opcheck, torch.compile, autocast, CUDA graphs
    stream       pinned buffers and side stream, also with copies that are late; workers by fork and spawn
    bandwidth    fused kernel against a copy, torch.compile and eager PyTorch
    step-2 ...   RetinaNet-R50 at 1333x800, bf16, channels-last, batches of 2, 8 and 16: plain, cached, online with R101
    extraction   R101 with random weights against its bare forward pass
    scaler       the step in fp16, with scaled losses
    memory       least memory of a batch of 2, on a card of 8 GB: PyTorch may take no more
    cards        two processes with NCCL, where there are two cards

Each part is a process with a time limit of its own, and what it prints is shown at once. A part that fails or runs out
of time does not stop the others; those for which no time is left are named. Then one table, and a JSON file with the
name of the card, and the figures of the last line of each measurement. Exit status 1 when a part failed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch

from measuring import described_parser

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 525  # s, for all parts
SMALL_CARD = 8e9  # bytes


@dataclass(frozen=True)
class Part:
    """What runs: the arguments of Python, and how long it may take, in seconds."""

    name: str
    command: Sequence[str]
    limit: int


@dataclass(frozen=True)
class Outcome:
    """How a part went; figures are the pairs `name value` of the last line that a measurement prints."""

    name: str
    state: str
    seconds: float
    last_line: str
    figures: dict[str, float]


def tests(name: str, *arguments: str, limit: int) -> Part:
    # Warnings are no errors here: versions of libraries that the tests do not know are welcome.
    how = ['-q', '-n', '0', '-p', 'no:cacheprovider', '--import-mode=importlib', '-o', 'filterwarnings=']
    return Part(name, ['-m', 'pytest', *how, *arguments], limit)


def script(name: str, file: str, *arguments: str, limit: int) -> Part:
    return Part(name, [str(ROOT / 'scripts' / file), *arguments], limit)


def parts_for_gpu() -> list[Part]:
    real = ('--size', '1333x800', '--steps', '4')
    share = min(1.0, SMALL_CARD / torch.cuda.get_device_properties(0).total_memory)
    steps = [
        script(f'step-{size}', 'bench_step.py', *real, '--rounds', '4', '--channels-last', '--batch-size', str(size),
               limit=90)
        for size in (16, 2, 8)
    ]  # fmt: skip
    return [
        tests('kernels', 'tests/kernels', '--ignore', 'tests/kernels/test_gpu_code.py', limit=120),
        script('bandwidth', 'bench_kernel.py', '--batches', '2', '16', '--dtypes', 'bfloat16/int8', 'float16/float16',
               limit=90),
        tests('stream', 'tests/train/teachers/test_code_stream.py', 'tests/train/data', limit=90),
        steps[0],
        script('extraction', 'bench_extract.py', '--teacher', 'r101', '--synthetic', '1333x800', '--scale', '1333x800',
               '--batch-size', '8', '--workers', '8', '--codec', 'lean', '--repeats', '3', limit=90),
        *steps[1:],
        script('scaler', 'bench_step.py', *real, '--rounds', '1', '--precision', 'fp16', limit=60),
        script('memory', 'bench_memory.py', *real[:2], '--steps', '2', '--batch-sizes', '2', '--images', '16',
               '--memory-limit', f'{share:.4f}', limit=150),
        *([tests('cards', 'tests/train/survival/test_data_parallel.py', limit=120)] if torch.cuda.device_count() > 1
          else []),
    ]  # fmt: skip


def parts_for_cpu() -> list[Part]:
    tiny = ('--device', 'cpu', '--images', '8', '--steps', '2')
    demo = str(ROOT / 'configs' / 'demo' / 'teachers' / 'strong.py')
    return [
        tests('kernels', 'tests/kernels', '--ignore', 'tests/kernels/test_gpu_code.py', limit=240),
        script('bandwidth', 'bench_kernel.py', '--toy', '--pyramids', 'p3-p7', '--batches', '2', '--dtypes',
               'float16/int8', limit=120),
        tests('stream', 'tests/train/teachers/test_code_stream.py', 'tests/train/data', limit=240),
        script('step-4', 'bench_step.py', *tiny, '--rounds', '1', limit=240),
        script('extraction', 'bench_extract.py', '--teacher', demo, '--synthetic', '128x128', '--scale', '128x128',
               '--limit', '8', '--repeats', '1', '--device', 'cpu', limit=120),
        tests('scaler', 'tests/train/training/test_step.py', '-k', 'overflow_half_precision', limit=120),
        script('memory', 'bench_memory.py', *tiny, '--batch-sizes', '1', limit=240),
    ]  # fmt: skip


def run(part: Part, *, limit: float, packages: Path) -> Outcome:
    """Shows what the part prints, and ends all its processes when it is over or out of time."""
    print(f'=== {part.name}: {" ".join(part.command)}', flush=True)
    python_path = os.pathsep.join([str(packages), str(ROOT / 'tests'), *filter(None, [os.environ.get('PYTHONPATH')])])
    # A folder of its own: pytest would else delete those of earlier runs at its end, within the time of the part.
    addopts = f'--basetemp={packages / "pytest"}'
    start = time.monotonic()
    late, last_line = threading.Event(), ''
    with subprocess.Popen(
        [sys.executable, *part.command],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': python_path, 'PYTHONUNBUFFERED': '1', 'PYTEST_ADDOPTS': addopts},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        start_new_session=True,
    ) as process:

        def end() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end='', flush=True)
                last_line = line.strip() or last_line
            code = process.wait()
        except BaseException:
            end()  # Ctrl-C does not reach a session of its own.
            raise
        finally:
            timer.cancel()
    state = 'out of time' if late.is_set() else 'passed' if code == 0 else f'failed ({code})'
    seconds = time.monotonic() - start
    print(f'=== {part.name} {state} after {seconds:.0f} s', flush=True)
    measured = state == 'passed' and part.command[0] != '-m'
    return Outcome(part.name, state, round(seconds, 1), last_line, figures_of(last_line) if measured else {})


def figures_of(line: str) -> dict[str, float]:
    """The pairs `name value` of a measurement's last line."""
    found: dict[str, float] = {}
    words = line.split()
    for name, value in pairwise(words):
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


def report(outcomes: Sequence[Outcome], device: str) -> None:
    print(f'\n{device}, torch {torch.__version__}\n{"part":<12}{"state":<14}{"s":>5}  last line')
    for one in outcomes:
        print(f'{one.name:<12}{one.state:<14}{one.seconds:>5.0f}  {one.last_line}')


def main() -> int:
    parser = described_parser(__doc__)
    parser.add_argument('--json', type=Path, default=Path('gpu_check.json'), help='file to write (default %(default)s)')
    parser.add_argument('--parts', nargs='+', help='names of the parts to run (default: all)')
    parser.add_argument('--budget', type=float, default=BUDGET, help='seconds for all parts (default %(default)s)')
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else 'CPU, toy sizes'
    parts = parts_for_gpu() if on_gpu else parts_for_cpu()
    unknown = sorted({*(options.parts or ())} - {part.name for part in parts})
    if unknown:
        parser.error(f'--parts names {unknown[0]}; expected some of {", ".join(part.name for part in parts)}')
    chosen = [part for part in parts if not options.parts or part.name in options.parts]
    deadline = time.monotonic() + options.budget
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        # The names under which a plain checkout's folders are imported.
        for package, folder in (('mtpd', 'mtpd'), ('mtpd_extract', 'extract'), ('mtpd_train', 'train')):
            (Path(name) / package).symlink_to(ROOT / folder)
        for part in chosen:
            left = deadline - time.monotonic()
            if left < 10:
                outcomes.append(Outcome(part.name, 'no time left', 0.0, '', {}))
            else:
                outcomes.append(run(part, limit=min(part.limit, left), packages=Path(name)))
            # Written after each part, should the machine be taken away.
            record = {'device': device, 'torch': torch.__version__, 'parts': [asdict(one) for one in outcomes]}
            options.json.write_text(json.dumps(record, indent=1) + '\n')
    report(outcomes, device)
    return int(any(one.state != 'passed' for one in outcomes))


if __name__ == '__main__':
    sys.exit(main())
