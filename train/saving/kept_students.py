"""The additional students that a stage keeps: those of its last epochs, and the best."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

BEST_FILE = 'best.pth'
# What decides which student is best.
BEST_BY = 'box/AP'
_EPOCH_FILE = re.compile(r'epoch_([1-9]\d*)\.pth')


def epoch_file(folder: Path, epoch: int) -> Path:
    """The student after an epoch, from 1."""
    return folder / f'epoch_{epoch}.pth'


def last_epoch(folder: Path) -> int | None:
    """The last epoch whose student is kept, from 1; None: none is."""
    return max(_epochs(folder), default=None)


def is_best(folder: Path, metrics: Mapping[str, float]) -> bool:
    """Whether a student with these metrics is better than the best so far; of equals the earlier is kept.

    One that was evaluated on nothing (AP -1) is never the best.
    """
    value = metrics.get(BEST_BY, -1.0)
    return value >= 0 and value > _best_so_far(folder / BEST_FILE)


def drop_old(folder: Path, *, epoch: int, keep: int) -> None:
    """Leaves the students of the last `keep` epochs up to `epoch`; later ones are of a training that was cut off."""
    for one in _epochs(folder):
        if not epoch - keep < one <= epoch:
            epoch_file(folder, one).unlink()


def drop_all(folder: Path) -> None:
    """Deletes all of them: the stage starts over."""
    drop_old(folder, epoch=0, keep=0)
    (folder / BEST_FILE).unlink(missing_ok=True)


def _epochs(folder: Path) -> list[int]:
    matches = (_EPOCH_FILE.fullmatch(path.name) for path in folder.glob('epoch_*.pth'))
    return [int(match[1]) for match in matches if match]


def _best_so_far(path: Path) -> float:
    if not path.exists():
        return -math.inf
    # Mapped, so that only what is looked at is read.
    content: Mapping[str, Any] = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    return float(content['meta']['metrics'][BEST_BY])
