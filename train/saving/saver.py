"""When and what a stage saves: its state for resuming, its last students, its best one."""

import math
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from mtpd_train.processes import ALONE, World
from mtpd_train.records.metrics import truncate_metrics
from mtpd_train.saving.checkpoint import require_finite, save_student
from mtpd_train.saving.kept_students import BEST_FILE, drop_all, drop_old, epoch_file, is_best
from mtpd_train.saving.progress import Position, read_progress, restore, save_progress
from mtpd_train.saving.trainables import Trainables
from mtpd_train.stage import Stage


class Saver:
    """Saves one stage in the folder of its progress file. Only a state whose losses were looked at is saved."""

    def __init__(self, stage: Stage, trainables: Trainables, *, progress_file: Path, world: World = ALONE) -> None:
        """Writes nothing yet.

        Args:
            stage: what is trained.
            trainables: its state.
            progress_file: where the state is saved.
            world: the processes that train; the first of them alone reads and writes.
        """
        self._stage = stage
        self._trainables = trainables
        self._file = progress_file
        self._world = world
        self._every = math.inf if stage.save_minutes is None else 60 * stage.save_minutes
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last saving is long ago, for the process that writes."""
        return self._world.is_main and time.monotonic() - self._saved >= self._every

    def go_on(self, metrics_file: Path) -> Position:
        """Restores what was saved last, if anything was, and drops the records and students of what came after."""
        saved = read_progress(self._file) if self._world.is_main and self._file.exists() else None
        saved = self._world.from_main(saved)
        position = Position() if saved is None else restore(saved, self._trainables, path=self._file)
        if self._world.is_main:
            if saved is None:
                drop_all(self._file.parent)
            truncate_metrics(metrics_file, stage=self._stage.number, step=position.step, epoch=position.epoch)
        return position

    def save(self, position: Position) -> None:
        """Saves the state between two steps.

        Raises:
            DivergedError: it is not worth saving; the state that was saved before stays.
            UnavailableError: the disk is full; likewise.
        """
        self._trainables.meter.look()
        require_finite(self._trainables.model, stage=self._stage.number, step=position.step)
        if self._world.is_main:
            save_progress(self._file, self._trainables, position)
        self._saved = time.monotonic()

    def finish_epoch(self, position: Position, metrics: Mapping[str, float]) -> None:
        """Saves the state after an epoch, and its student where it is to be kept or the best.

        Args:
            position: the end of the epoch.
            metrics: of its evaluation; none where there was none.

        Raises:
            DivergedError, UnavailableError: as `save`.
        """
        stage, folder, model = self._stage, self._file.parent, self._trainables.student
        require_finite(model, stage=stage.number, step=position.step)
        if not self._world.is_main:
            self.save(position)
            return
        meta = {
            'mtpd_version': version('mtpd'), 'stage': stage.number, 'epoch': position.epoch, 'metrics': dict(metrics)
        }  # fmt: skip
        if stage.keep_epochs:
            save_student(epoch_file(folder, position.epoch), model, classes=stage.classes, meta=meta)
        if is_best(folder, metrics):
            save_student(folder / BEST_FILE, model, classes=stage.classes, meta=meta)
        self.save(position)
        drop_old(folder, epoch=position.epoch, keep=stage.keep_epochs)
