"""Detection of diverged losses, with the message and records for the user."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mtpd.errors import MtpdError
from mtpd.system.files import write_atomically

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
