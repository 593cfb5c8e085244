"""What a stage saves, and when: its state for an exact resume, the students of its last epochs, the best one.

Every file is written whole or not at all. Random draws are not part of the state: they depend only on the position in
the run (see `mtpd_train.training.loop.seed_everything`).
"""

import io
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtpd.detectors.checkpoint_file import require_intact
from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import write_atomically
from mtpd_train.optimization import Optimization
from mtpd_train.processes import ALONE, World
from mtpd_train.records.divergence import DivergedError
from mtpd_train.records.meter import Meter
from mtpd_train.records.metrics import truncate_metrics
from mtpd_train.stage import Stage

BEST_FILE = 'best.pth'
# The metric of the best student.
BEST_BY = 'box/AP'
_EPOCH_FILE = re.compile(r'epoch_([1-9]\d*)\.pth')


@dataclass(frozen=True)
class Position:
    """A moment between two optimizer steps of a stage."""

    epoch: int = 0  # finished epochs, their evaluations done
    step: int = 0  # optimizer steps done; at the end of an epoch that is not finished only its evaluation is left


class Saver:
    """Saves one stage in the folder of its progress file. Only a state whose losses were checked is saved."""

    def __init__(
        self, stage: Stage, optimization: Optimization, meter: Meter, *, progress_file: Path, world: World = ALONE
    ) -> None:
        """Writes nothing yet; of the processes of `world` only the first reads and writes."""
        self._stage = stage
        self._student = optimization.student
        self._meter = meter
        # Everything with a state, by its key in the file; with the key `model` init.checkpoint accepts the file.
        self._parts: dict[str, Any] = {'model': stage.student.module, 'distiller': stage.distiller, 'meter': meter}
        for name in ('optimizer', 'schedule', 'scaler', 'average'):
            part = getattr(optimization, name)
            if part is not None:
                self._parts[name] = part
        self._file, self._world = progress_file, world
        self._every = 60 * (stage.settings.save.every_minutes or math.inf)
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether `save.every_minutes` have passed since the last save; only for the process that writes."""
        return self._world.is_main and time.monotonic() - self._saved >= self._every

    def restore(self, metrics_file: Path) -> Position:
        """Restores the last save, if any, and drops later records and students; refuses the save of another stage."""
        is_main, path, position = self._world.is_main, self._file, Position()
        saved = self._world.from_main(_read(path) if is_main and path.exists() else None)
        if saved is not None:
            try:
                for name, part in self._parts.items():
                    part.load_state_dict(saved[name])
                position = Position(saved['epoch'], saved['step'])
            except (RuntimeError, KeyError, ValueError, TypeError) as error:
                raise _unusable(path, error) from error
        if is_main:
            if saved is None:
                drop_all(path.parent)
            truncate_metrics(metrics_file, stage=self._stage.number, step=position.step, epoch=position.epoch)
        return position

    def save(self, position: Position) -> None:
        """Saves the state between two steps. On a DivergedError or a full disk the last save stays."""
        self._meter.look()
        self._require_finite(self._stage.student.module, position)
        if self._world.is_main:
            states = {name: part.state_dict() for name, part in self._parts.items()}
            _write_checkpoint(self._file, {**asdict(position), **states})
        self._saved = time.monotonic()

    def finish_epoch(self, position: Position, metrics: Mapping[str, float]) -> None:
        """Saves the state after an epoch, and its student if it is to be kept or has the best `metrics`; as `save`."""
        folder, keep = self._file.parent, self._stage.settings.save.keep
        self._require_finite(self._student, position)
        if self._world.is_main:
            meta = {'stage': self._stage.number, 'epoch': position.epoch, 'metrics': dict(metrics)}
            if keep:
                save_student(epoch_file(folder, position.epoch), self._student, classes=self._stage.classes, meta=meta)
            if is_best(folder, metrics):
                save_student(folder / BEST_FILE, self._student, classes=self._stage.classes, meta=meta)
        self.save(position)
        if self._world.is_main:
            drop_old(folder, epoch=position.epoch, keep=keep)

    def _require_finite(self, model: nn.Module, position: Position) -> None:
        """Checks the weights, which a gradient can spoil after the last checked loss."""
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise DivergedError(
                    f'stage {self._stage.number}: {name} of the student is not finite after step {position.step}'
                )


def save_student(path: Path, model: nn.Module, *, classes: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """Writes `{'state_dict', 'meta'}` as mmdet reads it: the student's own keys, no adapter, plain values only."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    meta = {'dataset_meta': {'classes': classes}, 'mtpd_version': version('mtpd'), **meta}
    _write_checkpoint(path, {'state_dict': state, 'meta': meta})


def write_file(path: Path, content: bytes) -> None:
    """Writes a file of a run; until it is complete, `path` is what it was. UnavailableError if it cannot be."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UnavailableError(
            f'{path}: cannot be saved ({error.strerror}, {len(content) / 1e6:.1f} MB); earlier saves are '
            'intact: free some space, then run the same command with --resume'
        ) from error


def epoch_file(folder: Path, epoch: int) -> Path:
    """The student after an epoch, from 1."""
    return folder / f'epoch_{epoch}.pth'


def is_best(folder: Path, metrics: Mapping[str, float]) -> bool:
    """Whether a student is better than the best so far; not of an equal AP, nor without objects to find (AP -1)."""
    value, best = metrics.get(BEST_BY, -1.0), -math.inf
    if (folder / BEST_FILE).exists():
        # Memory-mapped, so that only the metrics are read.
        content = torch.load(folder / BEST_FILE, map_location='cpu', weights_only=True, mmap=True)
        best = float(content['meta']['metrics'][BEST_BY])
    return value >= 0 and value > best


def drop_old(folder: Path, *, epoch: int, keep: int) -> None:
    """Keeps the students of the last `keep` epochs up to `epoch`; later ones are from before a resume."""
    for one in kept_epochs(folder):
        if not epoch - keep < one <= epoch:
            epoch_file(folder, one).unlink()


def drop_all(folder: Path) -> None:
    """Deletes all kept students: the stage starts over."""
    drop_old(folder, epoch=0, keep=0)
    (folder / BEST_FILE).unlink(missing_ok=True)


def kept_epochs(folder: Path) -> list[int]:
    """The epochs, from 1, whose students are kept, in any order."""
    matches = (_EPOCH_FILE.fullmatch(path.name) for path in folder.glob('epoch_*.pth'))
    return [int(match[1]) for match in matches if match]


def _write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        require_intact(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    # A damaged file can fail anywhere in the readers.
    except Exception as error:
        raise _unusable(path, error) from error
    if not isinstance(content, dict):
        raise _unusable(path, TypeError(f'holds a {type(content).__name__}'))
    return content


def _unusable(path: Path, error: Exception) -> InputError:
    return InputError(f'{path}: cannot be resumed from ({error}); delete it to restart this stage')
