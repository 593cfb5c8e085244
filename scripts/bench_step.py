#!/usr/bin/env python3
"""A training step of one student three ways: plain, distilled from a cache, and with the teacher in the loop.

    scripts/bench_step.py                                   # a CPU: the demo's student and strong teacher, under 3 min
    scripts/bench_step.py --device cuda --batch-size 16 --precision bf16 --workers 8
    scripts/bench_step.py --student my.py --teacher r101 --size 1333x800

Creates images of one size, a teacher with random weights, which are as fast as others, and its cache. Each way runs in
its own process, so that memory is separate; they take turns of `--steps` steps, `--rounds` times, after one
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
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from measuring import described_parser, interleaved, median_ratio
from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.of_mmdet.family import define
from mtpd.detectors.of_mmdet.models import build_detector
from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored
from mtpd.detectors.samples import collate
from mtpd.system.environment import choose_device, describe_device
from mtpd_extract.cli import main as mtpd_extract
from mtpd_train.optimization import Optimization
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.stage import build_stages
from mtpd_train.training.step import add_gradient, distillation_losses, loaded, student_pass, teacher_targets, to_device

DEMO = Path(__file__).resolve().parents[1] / 'configs' / 'demo'
DEFAULTS: dict[str, dict[str, Any]] = {
    'cpu': {
        'student': f'{DEMO}/student.py', 'teacher': f'{DEMO}/teachers/strong.py', 'size': '128x128',
        'batch_size': 4, 'precision': 'fp32', 'workers': 0,
    },
    'cuda': {
        'student': 'retinanet_r50_fpn_1x_coco', 'teacher': 'r101', 'size': '1333x800',
        'batch_size': 8, 'precision': 'bf16', 'workers': 8,
    },
}  # fmt: skip
WAYS = ('plain', 'cached', 'online')


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--device', default='auto', choices=['auto', 'cpu', 'cuda'])
    add('--student', help="zoo name, config or stage file (default: the demo's, on a GPU RetinaNet-R50)")
    add('--teacher', help="zoo name, config or stage file (default: the demo's strong one, on a GPU r101)")
    add('--loss', default='masked_mse', help='distillation loss, on all common levels (default %(default)s)')
    add('--codec', default='lean', choices=['fp16', 'int8', 'lean'], help='codec of the cache (default %(default)s)')
    add('--size', metavar='WxH', help='size of the images, px (default %(default)s)')
    add('--images', type=int, default=64, help='number of images in the created set (default %(default)s)')
    add('--precision', choices=['fp32', 'fp16', 'bf16'], help='(default %(default)s)')
    add('--workers', type=int, help='processes that read images (default %(default)s)')


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with the defaults of the device, which is in `chosen`."""
    own = [one for one in sys.argv[1:] if one not in ('-h', '--help')]
    device = choose_device(parser.parse_known_args(own)[0].device)
    parser.set_defaults(**DEFAULTS[device.type], chosen=device)
    return parser.parse_args()


def make_source(folder: Path, reference: str, *, size: str, num_images: int) -> dict[str, str]:
    """Images of one size, and a teacher with random weights: options of mtpd-extract."""
    coco, teacher, checkpoint = (folder / name for name in ('coco', 'teacher.py', 'teacher.pth'))
    width, height = map(int, size.split('x'))
    print(f'making {num_images} images of {size}', flush=True)
    make_synthetic_set(coco, SyntheticSpec(num_images, num_val=1, num_empty=0, sizes=((height, width),)))
    config = _config(reference)
    config.dump(teacher)
    torch.manual_seed(0)
    torch.save(build_detector(config, init_weights=True).state_dict(), checkpoint)
    return {'--teacher': str(teacher), '--checkpoint': str(checkpoint), '--coco': str(coco)}


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Makes images, teacher and cache, and a stage file for each way."""
    cache_folder = folder / 'cache'
    source = make_source(folder, options.teacher, size=options.size, num_images=options.images)
    _config(options.student).dump(folder / 'student.py')
    print('extracting its cache', flush=True)
    how = {'--out': str(cache_folder), '--codec': options.codec, '--scale': options.size, '--device': options.device}
    mtpd_extract.main([word for pair in (source | how).items() for word in pair], standalone_mode=False)
    data = {'coco': source['--coco'], 'val': None, 'batch_size': options.batch_size, 'workers': options.workers}
    base = {
        'student': str(folder / 'student.py'),
        'init': {'backbone': 'none'},
        'data': data,
        'optim': {'lr': 1e-4, 'epochs': 1, 'grad_clip': 10.0, 'precision': options.precision},
    }
    sized = base | {'data': data | {'geometry': {'scale': options.size}}}
    distill = {'distill': [{'loss': options.loss}]}
    ways = {
        'plain': sized,
        'cached': base | distill | {'cache': str(cache_folder)},
        'online': sized | distill | {'teacher': source['--teacher'], 'checkpoint': source['--checkpoint']},
    }
    for way, stage in ways.items():
        (folder / f'{way}.yaml').write_text(json.dumps(stage))
    return {way: folder / f'{way}.yaml' for way in WAYS}


def _config(reference: str) -> Any:
    """The mmdet config of a zoo name, a config file, or a stage file's student."""
    if not reference.endswith(('.yaml', '.yml')):
        return define(reference, {}).config
    (stage,) = load_stages([Path(reference)])
    return define(stage.student, stage.model).config


PARTS = ('wait', 'copy', 'teacher', 'forward', 'loss', 'backward', 'update')
# More than the batches that are read ahead while another way has its turn.
UNTIMED_STEPS = 4


@dataclass(frozen=True)
class Turn:
    """How some steps went: images/s, the most memory in bytes, and milliseconds of each part of a step."""

    rate: float
    memory: int
    parts: dict[str, float]


class Trainer:
    """One way of training, in a process of its own: the steps of `mtpd_train.training.loop` without its log."""

    def __init__(self, stage_file: Path, device: torch.device, *, overrides: Sequence[str] = ()) -> None:
        with known_warnings_ignored():
            build_stages(load_stages([stage_file.with_name('plain.yaml')]))  # imports all that is needed
            self._before = kilobytes('VmRSS')
            (self._stage,) = build_stages(load_stages([stage_file], overrides=overrides))
        self._device = device
        self._stage.to(device)
        self._stage.student.module.train()
        self._optimization = Optimization(
            self._stage.student,
            self._stage.distiller,
            self._stage.settings.optim,
            steps_per_epoch=self._stage.steps_per_epoch,
            device=device,
        )
        self._epoch = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def turn(self, num_steps: int) -> Turn:
        """Trains for some steps; for half as many more, part by part."""
        batches = self._batches(UNTIMED_STEPS + num_steps + num_steps // 2)
        for samples, ahead in islice(batches, UNTIMED_STEPS):
            self._step(samples, ahead)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        start, num_images = self._now(), 0
        for samples, ahead in islice(batches, num_steps):
            self._step(samples, ahead)
            num_images += len(samples)
        rate, memory = num_images / (self._now() - start), self._memory()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        for _ in range(num_steps // 2):
            self._step_in_parts(batches)
        return Turn(rate, memory, {part: 2000 * seconds / num_steps for part, seconds in self._seconds.items()})

    def _batches(self, number: int) -> Iterator[Any]:
        wanted: list[Any] = []
        while len(wanted) < number:
            wanted += self._stage.epoch_batches(self._epoch)
            self._epoch += 1
        return loaded(self._stage, wanted[:number])

    def _step(self, samples: Any, ahead: Any) -> None:
        add_gradient(self._stage, samples, ahead, share=1.0, progress=0.0, scaler=self._optimization.scaler)
        self._optimization.step(1)

    def _step_in_parts(self, batches: Iterator[Any]) -> None:
        stage = self._stage
        with self._part('wait'):
            samples, ahead = next(batches)
        with self._part('copy'):
            samples = to_device(samples, self._device)
            images = collate(samples, preprocessing=stage.student.preprocessing, device=self._device)
        with self._part('teacher'):
            targets = teacher_targets(stage, samples, ahead, images)
        with self._part('forward'):
            outputs = student_pass(stage, samples, images)
        with self._part('loss'):
            losses = outputs.losses | distillation_losses(stage, samples, outputs, targets, progress=0.0)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        with self._part('backward'):
            torch.autograd.backward(self._optimization.scaler.scale(total))
        with self._part('update'):
            self._optimization.step(1)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self._seconds[name] += self._now() - start

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _memory(self) -> int:
        if self._device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self._device)
        return 1024 * (kilobytes('VmHWM') - self._before)


def kilobytes(name: str) -> int:
    """VmRSS: what this process holds now; VmHWM: the most that it has held."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def main() -> None:
    options = _options()
    device: torch.device = options.chosen
    overrides = ('optim.channels_last=true',) if options.channels_last else ()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        files = prepare(Path(name), options)
        spawn = multiprocessing.get_context('spawn')
        pools = {way: stack.enter_context(ProcessPoolExecutor(1, spawn)) for way in WAYS}

        def turn(way: str) -> Turn:
            return pools[way].submit(_turn, files[way], device, options.steps, overrides).result()

        print(
            f'{options.student} from {options.teacher} on {describe_device(device)}: {options.images} images at '
            f'{options.size}, batches of {options.batch_size}, {options.precision}, {options.loss}, codec '
            f'{options.codec}, {options.workers} workers{", channels-last" if options.channels_last else ""}'
        )
        _report(interleaved({way: partial(turn, way) for way in WAYS}, options.rounds))


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


_trainer = cache(Trainer)  # A process of a pool has one.


def _turn(stage_file: Path, device: torch.device, num_steps: int, overrides: tuple[str, ...]) -> Turn:
    return _trainer(stage_file, device, overrides=overrides).turn(num_steps)


def _options() -> argparse.Namespace:
    parser = described_parser(__doc__)
    add_setting_options(parser)
    add = parser.add_argument
    add('--batch-size', type=int, help='(default %(default)s)')
    add('--channels-last', action='store_true', help='train with optim.channels_last')
    add('--steps', type=int, default=8, help='timed steps per turn, an even number (default %(default)s)')
    add('--rounds', type=int, default=10, help='measured rounds (default %(default)s)')
    return parse_options(parser)


if __name__ == '__main__':
    main()
