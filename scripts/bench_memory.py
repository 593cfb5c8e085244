#!/usr/bin/env python3
"""Memory of a training step, by batch size and by the options that save memory.

    scripts/bench_memory.py                                                # a CPU: the demo's student, about 5 min
    scripts/bench_memory.py --device cuda --batch-sizes 1 2 4 8 16
    scripts/bench_memory.py --device cuda --memory-limit 0.1 --batch-sizes 2   # as on a card of a tenth of the size

Trains a few steps of the same student plain and distilled from a cache, each cell of the table in a process of its
own: with the stage file's defaults, with `optim.channels_last`, with `optim.activation_checkpointing`, with both. A
cell is the most memory in MB and the images/s of the timed steps; `-` means that it did not fit. On a GPU the memory
is what PyTorch takes from the card (reserved; the driver's own context, some hundred MB, comes on top), on a CPU the
most that the process takes while it trains, without what it took for imports.

--memory-limit restricts PyTorch to that share of the GPU memory. Last line: the least memory with which a batch of the
smallest size ran plain and distilled, and their ratio.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from bench_step import Trainer, add_setting_options, parse_options, prepare
from measuring import described_parser
from mtpd.system.environment import describe_device

OPTIONS: Mapping[str, tuple[str, ...]] = {
    'defaults': (),
    'channels last': ('optim.channels_last=true',),
    'checkpointing': ('optim.activation_checkpointing=true',),
    'both': ('optim.channels_last=true', 'optim.activation_checkpointing=true'),
}
WAYS = ('plain', 'cached')


class Cell(NamedTuple):
    """The most memory in bytes, and images/s; None where it did not fit."""

    memory: int | None
    rate: float = 0.0

    def __str__(self) -> str:
        return '-' if self.memory is None else f'{self.memory / 1e6:.0f} MB {self.rate:.1f}/s'


def main() -> None:
    options = _options()
    sizes: list[int] = sorted(options.batch_sizes)
    # Steps, and the untimed ones before them, read so many images.
    options.images, options.batch_size = max(options.images, sizes[-1]), sizes[0]
    with tempfile.TemporaryDirectory() as name:
        files = prepare(Path(name), options)
        print(
            f'{options.student} from {options.teacher} on {describe_device(options.chosen)}: {options.size}, '
            f'{options.precision}, {options.loss}, codec {options.codec}'
        )
        table = {
            (way, choice): [_in_own_process(files[way], OPTIONS[choice], size, options) for size in sizes]
            for choice in OPTIONS
            for way in WAYS
        }
    _report(table, sizes)


def _report(table: Mapping[tuple[str, str], list[Cell]], sizes: list[int]) -> None:
    print(f'{"":<7} {"":<15}', *(f'{f"batch {one}":>20}' for one in sizes))
    for (way, choice), cells in table.items():
        print(f'{way:<7} {choice:<15}', *(f'{one!s:>20}' for one in cells))
    least = {
        way: min((cells[0].memory for (of, _), cells in table.items() if of == way and cells[0].memory), default=None)
        for way in WAYS
    }
    plain, cached = least['plain'], least['cached']
    if plain is None or cached is None:
        print(f'a batch of {sizes[0]} does not fit')
        return
    print(f'least-plain {plain / 1e6:.0f} MB least-cached {cached / 1e6:.0f} MB cached/plain {cached / plain:.3f}')


def _in_own_process(file: Path, choice: tuple[str, ...], batch_size: int, options: argparse.Namespace) -> Cell:
    overrides = (*choice, f'data.batch_size={batch_size}')
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(_train, file, overrides, options.chosen, options.memory_limit, options.steps).result()


def _train(
    file: Path, overrides: tuple[str, ...], device: torch.device, memory_limit: float | None, num_steps: int
) -> Cell:
    on_gpu = device.type == 'cuda'
    if on_gpu and memory_limit is not None:
        torch.cuda.set_per_process_memory_fraction(memory_limit, device)
    try:
        turn = Trainer(file, device, overrides=overrides).turn(num_steps)
    except torch.OutOfMemoryError:
        return Cell(None)
    return Cell(torch.cuda.max_memory_reserved(device) if on_gpu else turn.memory, turn.rate)


def _options() -> argparse.Namespace:
    parser = described_parser(__doc__)
    add_setting_options(parser)
    add = parser.add_argument
    add('--batch-sizes', type=int, nargs='+', default=[1, 2, 4, 8], help='(default 1 2 4 8)')
    add(
        '--memory-limit', type=float, metavar='SHARE', help='share of the GPU memory to use, from 0 to 1 (default: all)'
    )
    add('--steps', type=int, default=4, help='timed steps, an even number (default %(default)s)')
    options = parse_options(parser)
    if options.memory_limit is not None and not 0 < options.memory_limit <= 1:
        parser.error(
            f'--memory-limit is {options.memory_limit:g}; expected a share of the GPU memory, above 0 and at most 1'
        )
    return options


if __name__ == '__main__':
    main()
