"""A run on disk: its settings and its measurements, stage by stage."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd.errors import InputError
from mtpd_train.records.metrics import EvaluationRecord, TrainRecord
from mtpd_train.report.records import Record, read_records
from mtpd_train.run_folder import DIVERGED_FILE, METRICS_FILE, RUN_FILE, STUDENT_FILE, stage_folder


@dataclass(frozen=True)
class StageLog:
    """One stage of a run.

    Attributes:
        number: counts from 1.
        settings: its stage file with all defaults, as in run.json.
        teaching: description of its cache or teacher, as in run.json; None in plain training.
        train, evaluations: what was recorded, in order.
        first_step: optimizer steps of all stages before.
        is_finished: whether its student is there.
        has_diverged: whether it was stopped by losses that are not finite or have exploded.
    """

    number: int
    settings: Mapping[str, Any]
    teaching: Mapping[str, Any] | None
    train: tuple[TrainRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    first_step: int
    is_finished: bool
    has_diverged: bool

    @property
    def num_steps(self) -> int:
        """Optimizer steps so far."""
        return max([0, *(one.step for one in self.train), *(one.step for one in self.evaluations)])

    @property
    def epoch(self) -> int:
        """The epoch that was last recorded, from 1; 0 before any."""
        return max([0, *(one.epoch for one in self.train), *(one.epoch for one in self.evaluations)])

    @property
    def epochs(self) -> int | None:
        """Epochs planned; None if run.json does not have them."""
        found = section(self.settings, 'optim').get('epochs')
        return found if type(found) is int else None


@dataclass(frozen=True)
class RunLog:
    """A run.

    Attributes:
        folder: where it is.
        facts: run.json.
        stages: those planned, in order, begun or not.
    """

    folder: Path
    facts: Mapping[str, Any]
    stages: tuple[StageLog, ...]

    @property
    def begun(self) -> tuple[StageLog, ...]:
        """The stages that recorded something."""
        return tuple(stage for stage in self.stages if stage.train or stage.evaluations)

    @property
    def is_finished(self) -> bool:
        """Whether its last student is there."""
        return bool(self.stages) and all(stage.is_finished for stage in self.stages)


def read_run(folder: Path) -> RunLog:
    """Reads a run, finished or not.

    Raises:
        InputError: the folder holds no run, or its files are damaged.
    """
    if not (folder / RUN_FILE).is_file():
        raise InputError(f'{folder}: is not a run folder ({RUN_FILE} is missing); give the --out of mtpd-train')
    try:
        facts = json.loads((folder / RUN_FILE).read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f'{folder / RUN_FILE}: is not valid JSON ({error}); restore it') from None
    planned = section(facts, 'stages')
    if not planned or not all(name.isdecimal() for name in planned):
        raise InputError(f'{folder / RUN_FILE}: lists no stages; restore it')
    records = read_records(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
    stages: list[StageLog] = []
    for number in sorted(map(int, planned)):
        first_step = stages[-1].first_step + stages[-1].num_steps if stages else 0
        stages.append(_stage(folder, facts, records, number=number, first_step=first_step))
    return RunLog(folder, facts, tuple(stages))


def section(content: Any, name: str) -> Mapping[str, Any]:
    """An object inside a JSON object; empty where there is none."""
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def entries(content: Any, name: str) -> list[Any]:
    """A list inside a JSON object; empty where there is none."""
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, list) else []


def _stage(folder: Path, facts: Mapping[str, Any], records: list[Record], *, number: int, first_step: int) -> StageLog:
    settings = section(section(facts, 'stages'), str(number))
    own = [record for record in records if record.stage == number]
    files = stage_folder(folder, number)
    is_finished = (files / STUDENT_FILE).is_file()
    return StageLog(
        number=number,
        settings=settings,
        teaching=_teaching(facts, settings),
        train=tuple(record for record in own if isinstance(record, TrainRecord)),
        evaluations=tuple(record for record in own if isinstance(record, EvaluationRecord)),
        first_step=first_step,
        is_finished=is_finished,
        has_diverged=not is_finished and (files / DIVERGED_FILE).is_file(),
    )


def _teaching(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if settings.get('cache') is not None:
        return section(section(facts, 'caches'), str(settings['cache']))
    if settings.get('teacher') is None:
        return None
    # The name of a live teacher holds its checkpoint, where it has one.
    teachers = section(facts, 'teachers')
    name, checkpoint = str(settings['teacher']), settings.get('checkpoint')
    return section(teachers, name if checkpoint is None else f'{name} from {checkpoint}')
