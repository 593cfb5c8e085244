"""What happened since the last record: mean losses, speed, waiting, memory."""

import math
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mtpd.errors import MtpdError
from mtpd_train.metrics import TrainRecord

Item = TypeVar('Item')


class Meter:
    """Adds up what the steps report. Reading it is the only moment that waits for the GPU.

    Attributes:
        grad_norm: norm of the last gradient before clipping; None where it was not computed.
    """

    def __init__(self, *, stage: int, device: torch.device) -> None:
        self._stage = stage
        self._device = device
        self.grad_norm: Tensor | None = None
        self._reset()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Passes items on and counts the time spent waiting for them."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - started
            yield item

    def add(self, losses: Mapping[str, Tensor], *, num_images: int) -> None:
        """Adds the losses of a batch."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._num_batches += 1
        self._num_images += num_images

    def record(
        self, *, step: int, epoch: int, lr: float, decay: Mapping[str, float], image_ids: Sequence[int]
    ) -> TrainRecord:
        """The record since the last one; starts the next.

        Raises:
            MtpdError: a loss is not finite; it names the loss, the step and the images of the last batch.
        """
        losses = {name: float(value) / self._num_batches for name, value in self._sums.items()}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise MtpdError(
                    f'stage {self._stage}: {name} is {value} by step {step} (last images {list(image_ids)}); '
                    'lower optim.lr or the weight of the loss, or clip gradients with optim.grad_clip'
                )
        elapsed = time.perf_counter() - self._started
        result = TrainRecord(
            stage=self._stage,
            step=step,
            epoch=epoch,
            losses=losses | {'total': sum(losses.values())},
            lr=lr,
            decay=decay,
            images_per_second=self._num_images / elapsed,
            data_wait=self._waited / elapsed,
            peak_memory=self._peak_memory(),
            grad_norm=None if self.grad_norm is None else float(self.grad_norm),
        )
        self._reset()
        return result

    def _peak_memory(self) -> int:
        if self._device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _reset(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._num_batches = 0
        self._num_images = 0
        self._waited = 0.0
        self._started = time.perf_counter()
