"""Measures the training since the last record: mean losses, speed, waiting, memory."""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtpd_train.processes import ALONE, World
from mtpd_train.records.divergence import SeenBatch, merged, require_sound
from mtpd_train.records.metrics import TrainRecord

Item = TypeVar('Item')


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
