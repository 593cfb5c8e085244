"""Measures the training since the last record (mean losses, speed, waiting, memory), and detects diverged losses."""

import json
import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtpd.errors import MtpdError
from mtpd.system.files import write_atomically
from mtpd_train.processes import ALONE, World
from mtpd_train.records.metrics import TrainRecord

Item = TypeVar('Item')

# The training has exploded when the mean total loss since the last record exceeds the total loss of the stage's first
# batch, at least 1, by this factor.
EXPLODED = 100.0
# Total loss of the first batch that no detector and no sensibly weighted loss reaches.
UNSOUND_START = 1e6
# Number of images named in an error; the file lists all.
NAMED_IMAGES = 16


@dataclass(frozen=True)
class SeenBatch:
    """The losses of one batch."""

    step: int  # optimizer step that it belongs to, from 1
    image_ids: tuple[int, ...]
    losses: Mapping[str, float]  # by name, weighted and decayed

    @property
    def total(self) -> float:
        return sum(self.losses.values())


def merged(shares: Sequence[tuple[float, SeenBatch]]) -> SeenBatch:
    """Merges the weighted shares that several processes had of one batch."""
    losses: dict[str, float] = {}
    image_ids: list[int] = []
    for weight, share in shares:
        if not weight:  # It only fills up a process.
            continue
        image_ids += share.image_ids
        for name, value in share.losses.items():
            losses[name] = losses.get(name, 0.0) + weight * value
    return SeenBatch(shares[0][1].step, tuple(image_ids), losses)


class DivergedError(MtpdError):
    """A loss is not finite, or has exploded; `batches` are those since the last record."""

    def __init__(self, text: str, batches: Sequence[SeenBatch] = ()) -> None:
        super().__init__(text)
        self.batches = batches


def require_sound(batches: Sequence[SeenBatch], *, first_total: float, stage: int) -> None:
    """Raises a DivergedError, with loss, step and batch, if a loss is not finite or the losses have exploded."""
    for batch in batches:
        for name in batch.losses:
            if not math.isfinite(batch.losses[name]):
                raise DivergedError(f'stage {stage}: {_where(name, batch)}', batches)
    mean = sum(batch.total for batch in batches) / max(1, len(batches))
    if first_total > UNSOUND_START:
        what = f'the loss is {first_total:.3g} at its start, too large to train'
        advice = '; check the weight of this loss and the weights of the teacher'
    elif mean > EXPLODED * max(1.0, first_total):
        what, advice = f'the loss has exploded, from {first_total:.3g} at the start to {mean:.3g}', ''
    else:
        return
    worst = max(batches, key=lambda batch: batch.total)
    name = max(worst.losses, key=lambda one: worst.losses[one])
    raise DivergedError(f'stage {stage}: {what}; the largest term is {_where(name, worst)}{advice}', batches)


def describe(error: DivergedError, *, losses_file: Path, progress_file: Path) -> MtpdError:
    """Writes the losses of each batch since the last record to `losses_file`; the error with what to do next.

    `progress_file` is the last good state, if the stage has saved one.
    """
    seen = ''
    if error.batches:
        lines = []
        for batch in error.batches:
            # JSON has no NaN: such a number is written as its name.
            losses = {name: one if math.isfinite(one) else str(one) for name, one in batch.losses.items()}
            lines.append(json.dumps(asdict(batch) | {'losses': losses}, allow_nan=False) + '\n')
        with suppress(OSError):  # a full disk must not hide the error
            write_atomically(losses_file, ''.join(lines).encode())
            seen = f'; {losses_file} lists the losses of the batches around it'
    good = f'from init.checkpoint={progress_file}, the last good state,' if progress_file.exists() else 'from its start'
    return MtpdError(
        f'{error}{seen}; train again {good} in another --out, with a lower optim.lr, a lower weight of the loss, or '
        'gradients clipped by optim.grad_clip'
    )


def _where(name: str, batch: SeenBatch) -> str:
    images = ', '.join(map(str, batch.image_ids[:NAMED_IMAGES]))
    more = ', ...' if len(batch.image_ids) > NAMED_IMAGES else ''
    return f'{name}, {batch.losses[name]:.3g} in step {batch.step} on the images {images}{more}'


class Meter:
    """Collects the losses of the steps. Only `look` waits for the GPU."""

    def __init__(
        self, *, stage: int, device: torch.device, world: World = ALONE, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Starts measuring stage number `stage` on `device`; `clock` gives seconds since any moment."""
        self._stage, self._device, self._world, self._clock = stage, device, world, clock
        self._first_total: float | None = None
        self.grad_norm: Tensor | None = None  # of the last gradient before clipping; None: not computed
        self._unseen: list[tuple[float, int, tuple[int, ...], Mapping[str, Tensor]]] = []
        self._seen: list[SeenBatch] = []
        self._waited = self._elapsed = 0.0
        self._started: float | None = None
        if device.type == 'cuda':
            # Each stage has a peak of its own.
            torch.cuda.reset_peak_memory_stats(device)

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items and measures the time of the loop, and its share spent waiting for items.

        Time between two epochs, mainly evaluation, is not counted.
        """
        self._started = asked = self._clock()
        for item in items:
            self._waited += self._clock() - asked
            yield item
            asked = self._clock()
        self._elapsed, self._started = self._elapsed_now(), None

    def add(self, losses: Mapping[str, Tensor], *, step: int, image_ids: Sequence[int], weight: float = 1.0) -> None:
        """Adds the losses of a batch, `weight` of the global one, of `step` from 1; on the device until `look`."""
        values = {name: value.detach().float() for name, value in losses.items()}
        self._unseen.append((weight, step, tuple(image_ids), values))

    def look(self) -> None:
        """Gathers the losses of all processes, which must all call it, and checks them by `require_sound`."""
        if not self._unseen:
            return
        values = iter(torch.stack([one for *_, losses in self._unseen for one in losses.values()]).tolist())
        own = [
            (weight, SeenBatch(step, image_ids, {name: next(values) for name in losses}))
            for weight, step, image_ids, losses in self._unseen
        ]
        self._unseen = []
        self._seen += [merged(shares) for shares in zip(*self._world.gathered(own), strict=True)]
        if self._first_total is None:
            self._first_total = self._seen[0].total
        require_sound(self._seen, first_total=self._first_total, stage=self._stage)

    def record(self, *, step: int, epoch: int, lr: float, decay: Mapping[str, float]) -> TrainRecord:
        """Returns the record since the last one and starts the next; raises as `look`."""
        self.look()
        sums = merged([(1.0, batch) for batch in self._seen]).losses
        losses = {name: value / len(self._seen) for name, value in sums.items()}
        elapsed, peak_memory = self._elapsed_now(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self._device.type == 'cuda':
            peak_memory = torch.cuda.max_memory_allocated(self._device)
        result = TrainRecord(
            stage=self._stage,
            step=step,
            epoch=epoch,
            losses=losses | {'total': sum(losses.values())},
            lr=lr,
            decay=decay,
            images_per_second=sum(len(batch.image_ids) for batch in self._seen) / elapsed,
            data_wait=self._waited / elapsed,
            peak_memory=peak_memory,
            seconds=elapsed,
            grad_norm=None if self.grad_norm is None else float(self.grad_norm),
        )
        self._seen, self._waited, self._elapsed = [], 0.0, 0.0
        self._started = self._clock()
        return result

    def state_dict(self) -> dict[str, Any]:
        """The state since the last record as plain values, for an exact resume; call `look` first."""
        assert not self._unseen, 'unchecked losses must not be saved'
        return {
            'first_total': self._first_total,
            'seen': [asdict(batch) for batch in self._seen],
            'waited': self._waited,
            'elapsed': self._elapsed_now(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._first_total = state['first_total']
        self._seen = [SeenBatch(**batch) for batch in state['seen']]
        self._waited, self._elapsed = state['waited'], state['elapsed']

    def _elapsed_now(self) -> float:
        return self._elapsed + (0.0 if self._started is None else self._clock() - self._started)
