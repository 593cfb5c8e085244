"""The charts of a run."""

import math
from collections.abc import Callable, Mapping, Sequence

from mtpd_train.records.metrics import TrainRecord
from mtpd_train.report.charts import Line, bar_chart, line_chart
from mtpd_train.report.run_log import RunLog
from mtpd_train.report.summary import StageSummary, known

SIZES = {'APs': 'small', 'APm': 'medium', 'APl': 'large'}
AP_LINES = {'box/AP': 'box AP', 'box/AP50': 'box AP50', 'mask/AP': 'mask AP', 'mask/AP50': 'mask AP50'}
MAX_LOSSES = 8


def ap_chart(run: RunLog) -> bytes | None:
    """AP of boxes and masks over all stages, in percent; None before the first evaluation."""
    lines = ap_lines(run)
    return line_chart(lines, y_label='AP, %', borders=stage_borders(run), from_zero=True) if lines else None


def ap_lines(run: RunLog) -> list[Line]:
    """What `ap_chart` draws."""
    lines = [Line(label, ap_points(run, name), has_marks=True) for name, label in AP_LINES.items()]
    return [line for line in lines if line.points]


def ap_points(run: RunLog, name: str) -> list[tuple[float, float]]:
    """(step over all stages, value in percent) of each evaluation."""
    return [
        (stage.first_step + one.step, 100 * value)
        for stage in run.begun
        for one in stage.evaluations
        if (value := known(one.metrics.get(name))) is not None
    ]


def loss_chart(run: RunLog) -> bytes | None:
    """Every loss as it entered the sum, over all stages, on a logarithmic scale."""
    lines = loss_lines(run)
    return line_chart(lines, y_label='loss', borders=stage_borders(run), is_log=True) if lines else None


def loss_lines(run: RunLog) -> list[Line]:
    """What `loss_chart` draws; where there are many losses, the sum over levels of each."""
    names = list(dict.fromkeys(name for stage in run.begun for one in stage.train for name in one.losses))
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_without_level(name) if len(names) > MAX_LOSSES else name, []).append(name)
    return [Line(label, _over_steps(run, _loss(parts))) for label, parts in groups.items()]


def learning_rate_chart(run: RunLog) -> bytes | None:
    """The learning rate over all stages."""
    points = _over_steps(run, lambda record: record.lr)
    if not points:
        return None
    return line_chart([Line('lr', points)], y_label='learning rate', borders=stage_borders(run), from_zero=True)


def speed_chart(run: RunLog) -> bytes | None:
    """Training images a second over all stages."""
    points = _over_steps(run, lambda record: record.images_per_second)
    if not points:
        return None
    return line_chart([Line('images/s', points)], y_label='images/s', borders=stage_borders(run), from_zero=True)


def wait_chart(run: RunLog) -> bytes | None:
    """The share of time spent waiting for data over all stages."""
    points = _over_steps(run, lambda record: 100 * record.data_wait)
    if not points:
        return None
    return line_chart([Line('wait', points)], y_label='waiting for data, %', borders=stage_borders(run), from_zero=True)


def size_chart(summaries: Sequence[StageSummary], *, kind: str) -> bytes | None:
    """AP of small, medium and large objects at the end of each stage."""
    groups = {f'stage {one.number}': [one.metrics.get(f'{kind}/{name}') for name in SIZES] for one in summaries}
    present = [index for index in range(len(SIZES)) if any(values[index] is not None for values in groups.values())]
    if not present:
        return None
    percent: Mapping[str, list[float | None]] = {
        name: [None if (value := values[index]) is None else 100 * value for index in present]
        for name, values in groups.items()
    }
    names = [list(SIZES.values())[index] for index in present]
    return bar_chart(percent, names=names, y_label=f'{kind} AP, %')


def stage_borders(run: RunLog) -> dict[str, float]:
    """The step over all stages at which each stage begins."""
    return {f'stage {stage.number}': stage.first_step for stage in run.begun}


def _over_steps(run: RunLog, value: Callable[[TrainRecord], float]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for stage in run.begun:
        if points:
            points.append((stage.first_step, math.nan))  # no line from stage to stage
        points += [(stage.first_step + record.step, value(record)) for record in stage.train]
    return points


def _loss(parts: Sequence[str]) -> Callable[[TrainRecord], float]:
    def value(record: TrainRecord) -> float:
        found = [record.losses[name] for name in parts if name in record.losses]
        return math.fsum(found) if found else math.nan

    return value


def _without_level(name: str) -> str:
    """`distill/mgd/p3` as `distill/mgd`."""
    parts = name.split('/')
    return '/'.join(parts[:2]) if len(parts) == 3 else name
