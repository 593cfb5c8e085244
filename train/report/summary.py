"""What a stage comes to: its numbers for tables, derived from its records."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mtpd_train.report.run_log import RunLog, StageLog, entries, section

SHOWN = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')


@dataclass(frozen=True)
class StageSummary:
    """A stage in numbers; AP from 0 to 1. None: not known, not yet, or nothing of that kind to find.

    Attributes:
        number: of the stage.
        teacher, codec: what it learned from, and how that was stored; 'none' and '-' in plain training.
        losses: its distillation losses.
        epoch, epochs: the one that it is in or ended with, and all that are planned.
        is_finished, has_diverged: whether it ended, and whether its losses stopped it before.
        metrics: COCO's numbers of its last evaluation, by name such as `box/AP`.
        best_ap, best_epoch: the highest box AP of its evaluations, and after how many epochs.
        class_ap: AP by kind and class of its last evaluation that recorded it.
        images_per_second: median over its records.
        data_wait: share of the time in which it waited for data, mean over its records.
        peak_memory: bytes.
        seconds: time in training steps and evaluations; runs of earlier versions do not say.
        final_losses: each loss in the last record.
    """

    number: int
    teacher: str
    codec: str
    losses: tuple[str, ...]
    epoch: int
    epochs: int | None
    is_finished: bool
    has_diverged: bool
    metrics: Mapping[str, float | None]
    best_ap: float | None
    best_epoch: int | None
    class_ap: Mapping[str, Mapping[str, float | None]]
    images_per_second: float | None
    data_wait: float | None
    peak_memory: int | None
    seconds: float | None
    final_losses: Mapping[str, float]


def summarise(run: RunLog) -> list[StageSummary]:
    """The stages of a run that have begun, in numbers."""
    return [_summarise(stage) for stage in run.begun]


def known(value: float | None) -> float | None:
    """The value, or None for what is not finite and for -1, COCO's word for nothing to find."""
    return None if value is None or not math.isfinite(value) or value < 0 else value


def teacher_name(stage: StageLog) -> str:
    """What a stage learns from, for people."""
    named = section(stage.teaching, 'provenance').get('teacher') or stage.settings.get('teacher')
    return str(named or stage.settings.get('cache') or 'none')


def _summarise(stage: StageLog) -> StageSummary:
    last = stage.evaluations[-1] if stage.evaluations else None
    aps = [(known(one.metrics.get('box/AP')), one.epoch) for one in stage.evaluations]
    best_ap, best_epoch = max(((ap, -epoch) for ap, epoch in aps if ap is not None), default=(None, 0))
    recorded = next((one.class_ap for one in reversed(stage.evaluations) if one.class_ap), {})
    return StageSummary(
        number=stage.number,
        teacher=teacher_name(stage),
        codec=_codec(stage.teaching),
        losses=_losses(stage.settings),
        epoch=stage.epoch,
        epochs=stage.epochs,
        is_finished=stage.is_finished,
        has_diverged=stage.has_diverged,
        metrics={} if last is None else {name: known(value) for name, value in last.metrics.items()},
        best_ap=best_ap,
        best_epoch=None if best_ap is None else -best_epoch,
        class_ap={kind: {name: known(ap) for name, ap in classes.items()} for kind, classes in recorded.items()},
        images_per_second=_over(statistics.median, (one.images_per_second for one in stage.train)),
        data_wait=_over(statistics.fmean, (one.data_wait for one in stage.train)),
        peak_memory=max((int(one.peak_memory) for one in stage.train), default=None),
        seconds=_seconds(stage),
        final_losses=dict(stage.train[-1].losses) if stage.train else {},
    )


def _over(mean: Any, values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return mean(finite) if finite else None


def _seconds(stage: StageLog) -> float | None:
    times = [*(one.seconds for one in stage.train), *(one.seconds for one in stage.evaluations)]
    known_times = [one for one in times if one is not None]
    return math.fsum(known_times) if stage.train and len(known_times) == len(times) else None


def _codec(teaching: Mapping[str, Any] | None) -> str:
    if teaching is None:
        return '-'
    codec, error = teaching.get('codec'), teaching.get('target_error')
    if codec is None:
        return 'in the loop'
    return f'{codec} {error:g}' if isinstance(error, float) else str(codec)


def _losses(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(one.get('loss')) for one in entries(settings, 'distill') if isinstance(one, dict))
