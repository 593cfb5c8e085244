"""Training steps on the clock."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_

from mtpd.detectors.detection import collate
from mtpd.detectors.runtime import known_warnings_ignored
from mtpd_train.building.stages import build_stages
from mtpd_train.optimization.optimizer import build_optimizer
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.training.step import (
    add_gradient,
    distillation_losses,
    loaded,
    student_pass,
    teacher_targets,
    to_device,
)

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
        self._stage.student.model.train()
        networks = (self._stage.student.model, self._stage.distiller)
        self._parameters = [one for network in networks for one in network.parameters() if one.requires_grad]
        self._optimizer = build_optimizer(self._parameters, kind='sgd', lr=1e-4)
        self._scaler = GradScaler(device.type, enabled=self._stage.recipe.precision == 'fp16')
        self._epoch = self._num_batches = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def turn(self, num_steps: int) -> Turn:
        """Trains for some steps; for half as many more, part by part."""
        batches = self._batches(UNTIMED_STEPS + num_steps + num_steps // 2)
        for samples, ahead in islice(batches, UNTIMED_STEPS):
            self._step(samples, ahead)
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
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
        accumulate = self._stage.recipe.accumulate
        share = 1 / accumulate
        add_gradient(self._stage, samples, ahead, share=share, progress=0.0, scaler=self._scaler, device=self._device)
        self._num_batches += 1
        if self._num_batches % accumulate == 0:
            self._update()

    def _step_in_parts(self, batches: Iterator[Any]) -> None:
        """`add_gradient` and the update, on the clock."""
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
            torch.autograd.backward(self._scaler.scale(total))
        with self._part('update'):
            self._update()

    def _update(self) -> None:
        self._scaler.unscale_(self._optimizer)
        clip_grad_norm_(self._parameters, 10.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

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
