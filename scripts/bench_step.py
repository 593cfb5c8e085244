#!/usr/bin/env python3
"""A training step of one student three ways: plain, distilled from a cache, and with the teacher in the loop.

    scripts/bench_step.py                                   # a CPU: the demo's student and strong teacher, under 3 min
    scripts/bench_step.py --device cuda --batch-size 16 --precision bf16 --workers 8
    scripts/bench_step.py --student my.py --teacher r101 --checkpoint r101.pth --coco data/coco_mini --size 1333x800

Creates images of one size (or uses --coco), a teacher with random weights (or --checkpoint), and its cache. Each way
runs in its own process, so that memory is separate; they take turns of `--steps` steps, `--rounds` times, after one
warm-up round. Every turn starts with untimed steps, to consume prefetched batches. Figures
are medians of turns, ratios medians of rounds, so that a slow phase of the machine affects all ways. The parts of a
step are measured in additional steps, which wait for the GPU after each part:

    wait      for the images, and for the codes that a thread reads
    copy      pixels to the device, normalised
    teacher   codes to the device and decoded, or the teacher's own forward pass; masks
    forward   the student and its own losses
    loss      the distillation losses
    backward  both
    update    clipping and optimizer

Memory is the peak of the tensors on the GPU; on a CPU the peak of the process during training, without
imports. Last line: `cached/plain R1 cached/online R2 memory-cached/plain R3`; R1 and R2 are of images/s.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from measuring import described_parser, interleaved, median_ratio
from mtpd.system.environment import describe_device
from train_steps import PARTS, WAYS, Trainer, Turn, add_setting_options, parse_options, prepare


def main() -> None:
    options = _options()
    device: torch.device = options.chosen
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        spawn = multiprocessing.get_context('spawn')
        pools = {
            way: stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(file, device)))
            for way, file in prepare(Path(name), options).items()
        }
        print(
            f'{options.student} from {options.teacher} on {describe_device(device)}: {options.images} images at '
            f'{options.size}, batches of {options.batch_size}, {options.precision}, {options.loss}, codec '
            f'{options.codec}, {options.workers} workers'
        )
        turns = {way: partial(_turn_in, pool, options.steps) for way, pool in pools.items()}
        _report(interleaved(turns, options.rounds))


def _report(rounds: list[dict[str, Turn]]) -> None:
    columns = ''.join(f'{part:>9}' for part in PARTS)
    print(f'{"":<8}{"images/s":>10}{"slowest":>9}{"fastest":>9}{"MB":>8} | ms a step:{columns}')
    memory = {way: max(one[way].memory for one in rounds) / 1e6 for way in WAYS}
    rates = {way: [one[way].rate for one in rounds] for way in WAYS}
    for way in WAYS:
        parts = ''.join(f'{statistics.median(one[way].parts[part] for one in rounds):>9.1f}' for part in PARTS)
        speed = f'{statistics.median(rates[way]):>10.2f}{min(rates[way]):>9.2f}{max(rates[way]):>9.2f}'
        print(f'{way:<8}{speed}{memory[way]:>8.0f} |{"":11}{parts}')
    plain, online = (median_ratio(rates['cached'], rates[way]) for way in ('plain', 'online'))
    more = memory['cached'] / memory['plain']
    print(f'cached/plain {plain:.3f} cached/online {online:.3f} memory-cached/plain {more:.3f}')


# A process of the pool has one trainer.
_trainers: list[Trainer] = []


def _start(stage_file: Path, device: torch.device) -> None:
    _trainers.append(Trainer(stage_file, device))


def _turn_in(pool: ProcessPoolExecutor, num_steps: int) -> Turn:
    return pool.submit(_turn, num_steps).result()


def _turn(num_steps: int) -> Turn:
    return _trainers[0].turn(num_steps)


def _options() -> argparse.Namespace:
    parser = described_parser(__doc__)
    add_setting_options(parser)
    parser.add_argument('--batch-size', type=int, help='(default %(default)s)')
    parser.add_argument(
        '--steps', type=int, default=8, help='timed steps per turn, an even number (default %(default)s)'
    )
    parser.add_argument('--rounds', type=int, default=10, help='measured rounds (default %(default)s)')
    return parse_options(parser)


if __name__ == '__main__':
    main()
