"""Runs side by side: a row for each stage."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mtpd_train.report.charts import Line, line_chart
from mtpd_train.report.curves import ap_points
from mtpd_train.report.images import data_uri
from mtpd_train.report.page import UNKNOWN, duration, known, render
from mtpd_train.report.run_log import RunLog
from mtpd_train.report.summary import StageSummary, summarise
from mtpd_train.run_folder import METRICS_FILE

METRICS = ('AP', 'AP50', 'APs', 'APm', 'APl')
HEADINGS = (
    'run', 'stage', 'teacher', 'codec', 'losses', 'epochs', *METRICS, 'mask AP', 'best AP', 'time', 'images/s', 'wait',
    'memory',
)  # fmt: skip
NUM_TEXTS = 5  # columns on the left that are not numbers


def compare_columns(runs: Sequence[RunLog]) -> list[list[str]]:
    """Columns with their headings, without empty ones. The name of a run appears once.

    AP is in percent, and so is wait, the share of time spent waiting for data.
    """
    rows = [list(HEADINGS)]
    for run in runs:
        name = str(run.folder)
        for one in summarise(run):
            rows.append([name, *_cells(one)])
            name = ''
        if name:
            rows.append([name, UNKNOWN, _without_records(run), *[''] * (len(HEADINGS) - 3)])
    return [list(one) for one in zip(*rows, strict=True) if not set(one[1:]) <= {'', UNKNOWN}]


def compare_text(runs: Sequence[RunLog]) -> str:
    """The table for a terminal."""
    padded = []
    for column in compare_columns(runs):
        width = max(map(len, column))
        is_text = column[0] in HEADINGS[:NUM_TEXTS]
        padded.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in column])
    return '\n'.join('  '.join(cells).rstrip() for cells in zip(*padded, strict=True))


def compare_records(runs: Sequence[RunLog]) -> list[dict[str, Any]]:
    """The same as plain values: AP from 0 to 1, bytes, seconds, null for what is not known."""
    return [
        {
            'run': str(run.folder),
            'finished': run.is_finished,
            'device': run.facts.get('device'),
            'stages': [asdict(one) for one in summarise(run)],
        }
        for run in runs
    ]


def compare_page(runs: Sequence[RunLog]) -> str:
    """The table and the AP curves of all runs as one HTML page."""
    lines = [Line(str(run.folder), ap_points(run, 'box/AP'), has_marks=True) for run in runs]
    lines = [line for line in lines if line.points]
    chart = data_uri(line_chart(lines, y_label='box AP, %', from_zero=True), 'image/svg+xml') if lines else None
    headings, *rows = zip(*compare_columns(runs), strict=True)
    context = {'headings': headings, 'texts': HEADINGS[:NUM_TEXTS], 'rows': rows, 'chart': chart, 'runs': runs}
    return render('compare.html', context)


def _without_records(run: RunLog) -> str:
    if run.is_finished:
        return f'finished, but its {METRICS_FILE} is missing or empty'
    return 'diverged before its first record' if any(one.has_diverged for one in run.stages) else 'nothing recorded yet'


def _cells(one: StageSummary) -> list[str]:
    epochs = str(one.epoch) if one.is_finished or one.epochs is None else f'{one.epoch} of {one.epochs}'
    if one.has_diverged:
        epochs += ', diverged'
    return [
        str(one.number),
        one.teacher,
        one.codec,
        ', '.join(one.losses) or 'none',
        epochs,
        *(_percent(one.metrics.get(f'box/{name}')) for name in METRICS),
        _percent(one.metrics.get('mask/AP')),
        _percent(one.best_ap),
        known(one.seconds, duration),
        known(one.images_per_second, lambda value: f'{value:.1f}'),
        _percent(one.data_wait),
        known(one.peak_memory, lambda value: f'{value / 1e9:.2f} GB'),
    ]


def _percent(value: float | None) -> str:
    return known(value, lambda share: f'{100 * share:.1f}')
