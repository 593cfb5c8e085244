"""Detection of diverged losses, with the message and records for the user."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mtpd.errors import MtpdError
from mtpd.system.files import write_atomically

# The training has exploded when the mean total loss since the last record is over so many times the total loss of the
# stage's first batch (or of 1, if that was smaller): far worse than what has learned nothing.
EXPLODED = 100.0
# A total loss of the first batch that no detector and no teacher with a sensible weight has.
UNSOUND_START = 1e6
# At most so many images are named in the one line of an error; the file has all.
NAMED_IMAGES = 16


@dataclass(frozen=True)
class SeenBatch:
    """The losses of one batch.

    Attributes:
        step: optimizer step that it belongs to, from 1.
        image_ids: its images.
        losses: by name, weighted and decayed.
    """

    step: int
    image_ids: tuple[int, ...]
    losses: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.losses.values())


def merged(shares: Sequence[tuple[float, SeenBatch]]) -> SeenBatch:
    """One batch of the shares that several processes had of it, each with its weight."""
    losses: dict[str, float] = {}
    image_ids: list[int] = []
    for weight, share in shares:
        # What has no weight was computed for nothing.
        if weight:
            image_ids += share.image_ids
            for name, value in share.losses.items():
                losses[name] = losses.get(name, 0.0) + weight * value
    return SeenBatch(shares[0][1].step, tuple(image_ids), losses)


class DivergedError(MtpdError):
    """A loss is not finite, or has exploded.

    Attributes:
        batches: those since the last record.
    """

    def __init__(self, text: str, batches: Sequence[SeenBatch] = ()) -> None:
        super().__init__(text)
        self.batches = batches


def require_sound(batches: Sequence[SeenBatch], *, first_total: float, stage: int) -> None:
    """Checks the batches since the last record.

    Raises:
        DivergedError: a loss is not finite, or the losses have exploded; it names the loss, its step and the batch.
    """
    for batch in batches:
        for name, value in batch.losses.items():
            if not math.isfinite(value):
                raise DivergedError(f'stage {stage}: {_where(name, batch)}', batches)
    if first_total > UNSOUND_START:
        worst = max(batches, key=lambda batch: batch.total)
        name = max(worst.losses, key=lambda one: worst.losses[one])
        raise DivergedError(
            f'stage {stage}: the loss is {first_total:.3g} at its start, too large to train; the largest term is '
            f'{_where(name, worst)}; check the weight of this loss and the weights of the teacher',
            batches,
        )
    limit = EXPLODED * max(1.0, first_total)
    mean = sum(batch.total for batch in batches) / max(1, len(batches))
    if mean > limit:
        worst = max(batches, key=lambda batch: batch.total)
        name = max(worst.losses, key=lambda one: worst.losses[one])
        raise DivergedError(
            f'stage {stage}: the loss has exploded, from {first_total:.3g} at the start to {mean:.3g}; '
            f'the largest term is {_where(name, worst)}',
            batches,
        )


def describe(error: DivergedError, *, losses_file: Path, progress_file: Path) -> MtpdError:
    """The error with where to look and what to do, after writing `losses_file`.

    Args:
        error: what happened.
        losses_file: gets the losses of every batch since the last record.
        progress_file: the last good state, if there is one.
    """
    seen = ''
    if error.batches:
        lines = [json.dumps(_plain(batch), allow_nan=False) + '\n' for batch in error.batches]
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


def _plain(batch: SeenBatch) -> dict[str, object]:
    """JSON has no NaN: such a number is its name."""
    losses = {name: value if math.isfinite(value) else str(value) for name, value in batch.losses.items()}
    return asdict(batch) | {'losses': losses}
