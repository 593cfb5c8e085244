"""A run on disk: its settings and records, stage by stage, and each stage in numbers."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd.errors import InputError
from mtpd_train.records.metrics import EvaluationRecord, Record, TrainRecord, read_records
from mtpd_train.run_folder import DIVERGED_FILE, METRICS_FILE, RUN_FILE, SOURCES, STUDENT_FILE, stage_folder


@dataclass(frozen=True)
class StageLog:
    """One stage of a run, begun or not."""

    number: int  # from 1
    settings: Mapping[str, Any]  # its stage file with all defaults, as in run.json
    teachings: tuple[
        Mapping[str, Any], ...
    ]  # descriptions of its caches or teacher in run.json; none in plain training
    train: tuple[TrainRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    first_step: int  # optimizer steps of all stages before
    is_finished: bool  # its student is there
    has_diverged: bool  # it was stopped by losses that are not finite or have exploded

    @property
    def records(self) -> list[Record]:
        """All records, by their steps."""
        return sorted([*self.train, *self.evaluations], key=lambda one: one.step)


@dataclass(frozen=True)
class RunLog:
    """A run."""

    folder: Path
    facts: Mapping[str, Any]  # run.json
    stages: tuple[StageLog, ...]  # all that are planned, in order

    @property
    def begun(self) -> tuple[StageLog, ...]:
        """The stages that recorded something."""
        return tuple(stage for stage in self.stages if stage.records)

    @property
    def is_finished(self) -> bool:
        """Whether all stages have finished."""
        return all(stage.is_finished for stage in self.stages)


def read_run(folder: Path) -> RunLog:
    """Reads a run, finished or not; refuses a folder that holds no run, and damaged files."""
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
    first_step = 0
    for number in sorted(map(int, planned)):
        own = [record for record in records if record.stage == number]
        files, settings = stage_folder(folder, number), section(planned, str(number))
        kinds = [kind for key, kind in (('cache', 'caches'), ('teacher', 'teachers')) if settings.get(key) is not None]
        is_finished = (files / STUDENT_FILE).is_file()
        stages.append(
            StageLog(
                number=number,
                settings=settings,
                teachings=tuple(
                    section(section(facts, kind), name) for kind in kinds[:1] for name in SOURCES[kind](settings)
                ),
                train=tuple(record for record in own if isinstance(record, TrainRecord)),
                evaluations=tuple(record for record in own if isinstance(record, EvaluationRecord)),
                first_step=first_step,
                is_finished=is_finished,
                has_diverged=not is_finished and (files / DIVERGED_FILE).is_file(),
            )
        )
        first_step += max((record.step for record in own), default=0)
    return RunLog(folder, facts, tuple(stages))


def section(content: Any, name: str) -> Mapping[str, Any]:
    """An object inside a JSON object; empty where there is none."""
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def entries(content: Any, name: str) -> list[Any]:
    """A list inside a JSON object; empty where there is none."""
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, list) else []


@dataclass(frozen=True)
class StageSummary:
    """A stage in numbers; AP from 0 to 1. None: not known, not yet, or nothing of that kind to find."""

    number: int
    teacher: str  # what it learned from; 'none' in plain training
    codec: str  # how that was stored; '-' in plain training
    losses: tuple[str, ...]  # its distillation losses
    epoch: int  # the last one recorded
    epochs: int | None  # all that are planned
    is_finished: bool
    has_diverged: bool
    metrics: Mapping[str, float | None]  # COCO's numbers of its last evaluation, by name such as `box/AP`
    best_ap: float | None  # the highest box AP of its evaluations
    best_epoch: int | None  # the number of epochs before that evaluation
    class_ap: Mapping[str, Mapping[str, float | None]]  # of its last evaluation that recorded it, by kind and class
    images_per_second: float | None  # median over its records
    data_wait: float | None  # share of the time in which it waited for data, mean over its records
    peak_memory: int | None  # bytes
    seconds: float | None  # in training steps and evaluations; runs of earlier versions do not say
    final_losses: Mapping[str, float]  # each loss in the last record


def summarise(run: RunLog) -> list[StageSummary]:
    """The stages of a run that have begun, in numbers."""
    return [_summarise(stage) for stage in run.begun]


def known(value: float | None) -> float | None:
    """The value, or None for what is not finite and for -1, COCO's value for nothing to find."""
    return None if value is None or not math.isfinite(value) or value < 0 else value


def in_percent(value: float | None) -> float | None:
    """0 to 1 as 0 to 100."""
    return None if value is None else 100 * value


def _summarise(stage: StageLog) -> StageSummary:
    metrics = stage.evaluations[-1].metrics if stage.evaluations else {}
    aps = [(known(one.metrics.get('box/AP')), -one.epoch) for one in stage.evaluations]
    best_ap, best_epoch = max(((ap, epoch) for ap, epoch in aps if ap is not None), default=(None, None))
    class_ap = next((one.class_ap for one in reversed(stage.evaluations) if one.class_ap), {})
    teachers = [section(one, 'provenance').get('teacher') for one in stage.teachings]
    teacher = ' + '.join(map(str, filter(None, teachers))) or stage.settings.get('teacher')
    epochs = section(stage.settings, 'optim').get('epochs')
    times = [one.seconds for one in stage.records if one.seconds is not None]
    is_timed = stage.train and len(times) == len(stage.records)
    return StageSummary(
        number=stage.number,
        teacher=str(teacher or stage.settings.get('cache') or 'none'),
        codec=' + '.join(dict.fromkeys(map(_codec, stage.teachings))) or '-',
        losses=tuple(str(one.get('loss')) for one in entries(stage.settings, 'distill') if isinstance(one, dict)),
        epoch=max(one.epoch for one in stage.records),
        epochs=epochs if type(epochs) is int else None,
        is_finished=stage.is_finished,
        has_diverged=stage.has_diverged,
        metrics={name: known(value) for name, value in metrics.items()},
        best_ap=best_ap,
        best_epoch=None if best_epoch is None else -best_epoch,
        class_ap={kind: {name: known(ap) for name, ap in classes.items()} for kind, classes in class_ap.items()},
        images_per_second=_over(statistics.median, (one.images_per_second for one in stage.train)),
        data_wait=_over(statistics.fmean, (one.data_wait for one in stage.train)),
        peak_memory=max((one.peak_memory for one in stage.train), default=None),
        seconds=math.fsum(times) if is_timed else None,
        final_losses=dict(stage.train[-1].losses) if stage.train else {},
    )


def _over(mean: Callable[[list[float]], float], values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return mean(finite) if finite else None


def _codec(teaching: Mapping[str, Any]) -> str:
    codec, error = teaching.get('codec'), teaching.get('target_error')
    if codec is None:
        return 'in the loop'
    return f'{codec} {error:g}' if isinstance(error, float) else str(codec)
