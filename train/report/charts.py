"""The charts of a run, and charts as SVG: lines over steps with the borders of stages, and groups of bars.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; dashes tell lines apart without any.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

from mtpd_train.records.metrics import TrainRecord
from mtpd_train.report.run_log import RunLog, StageSummary, in_percent, known

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000', '#8c6d1f')
DASHES = ('-', '--', '-.', ':')
GRID, INK = '#d9d9d9', '#1a1a1a'
WIDTH, HEIGHT = 6.6, 3.6  # inches of 72 units
# More than the eye can see on such a width, and a page stays small after any number of steps.
MAX_POINTS = 300
UNPRINTABLE, INVISIBLE = '\ufffd', '\u200b'
STYLE: Any = {
    'svg.fonttype': 'none',  # text stays text
    'svg.hashsalt': 'mtpd',  # equal charts are equal files
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans', 'Arial', 'Helvetica'],
    'font.size': 10,
    'text.parse_math': False,  # names may hold dollars
    'axes.edgecolor': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': GRID,
    'legend.frameon': False,
}
AP_LINES = {'box/AP': 'box AP', 'box/AP50': 'box AP50', 'mask/AP': 'mask AP', 'mask/AP50': 'mask AP50'}
SIZES = {'APs': 'small', 'APm': 'medium', 'APl': 'large'}
MAX_LOSSES = 8

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A named line of (x, y); with marks when there are few points. What is not finite is a gap."""

    name: str
    points: Points
    has_marks: bool = False


def run_charts(run: RunLog, summaries: Sequence[StageSummary]) -> dict[str, bytes]:
    """The charts of a run by name, over the steps of all stages or by size of objects, as SVG; without empty ones."""
    charts = {}
    borders = {f'stage {stage.number}': stage.first_step for stage in run.begun}
    for name, lines, y_label in (
        ('ap', [ap_line(run, metric, name=label) for metric, label in AP_LINES.items()], 'AP, %'),
        ('loss', loss_lines(run), 'loss'),
        ('lr', [Line('lr', _over_steps(run, lambda one: one.lr))], 'learning rate'),
        ('speed', [Line('images/s', _over_steps(run, lambda one: one.images_per_second))], 'images/s'),
        ('wait', [Line('wait', _over_steps(run, lambda one: 100 * one.data_wait))], 'waiting for data, %'),
    ):
        drawn = [line for line in lines if line.points]
        if drawn:
            charts[name] = line_chart(drawn, y_label=y_label, borders=borders, is_log=name == 'loss')
    for kind in ('box', 'mask'):
        sizes = [name for name in SIZES if any(one.metrics.get(f'{kind}/{name}') is not None for one in summaries)]
        if sizes:
            groups = {}
            for one in summaries:
                groups[f'stage {one.number}'] = [in_percent(one.metrics.get(f'{kind}/{name}')) for name in sizes]
            names = [SIZES[name] for name in sizes]
            charts[f'size_{kind}'] = bar_chart(groups, names=names, y_label=f'{kind} AP, %')
    return charts


def ap_line(run: RunLog, metric: str, *, name: str) -> Line:
    """An AP over the steps of all stages, in percent, from each evaluation that knows it."""
    points = [
        (stage.first_step + one.step, 100 * value)
        for stage in run.begun
        for one in stage.evaluations
        if (value := known(one.metrics.get(metric))) is not None
    ]
    return Line(name, points, has_marks=True)


def loss_lines(run: RunLog) -> list[Line]:
    """Every loss as it entered the sum; where there are many losses, the sum over levels of each."""
    names = list(dict.fromkeys(name for stage in run.begun for one in stage.train for name in one.losses))
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split('/')
        is_of_level = len(parts) == 3  # `distill/mgd/p3`
        label = '/'.join(parts[:2]) if is_of_level and len(names) > MAX_LOSSES else name
        groups.setdefault(label, []).append(name)
    return [Line(label, _over_steps(run, partial(_sum_of, group))) for label, group in groups.items()]


def _sum_of(names: Sequence[str], record: TrainRecord) -> float:
    found = [record.losses[name] for name in names if name in record.losses]
    return math.fsum(found) if found else math.nan


def _over_steps(run: RunLog, value: Callable[[TrainRecord], float]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for stage in run.begun:
        if points:
            points.append((stage.first_step, math.nan))  # no line from stage to stage
        points += [(stage.first_step + record.step, value(record)) for record in stage.train]
    return points


def line_chart(
    lines: Sequence[Line], *, y_label: str, borders: Mapping[str, float] | None = None, is_log: bool = False
) -> bytes:
    """Lines in one chart, as SVG; from zero, or on a logarithmic scale, where what is not above zero is a gap.

    `borders` is name of a stage -> x at which it begins.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    with _figure() as (figure, axes):
        styles = cycle((colour, dash) for dash in DASHES for colour in COLOURS)
        for line, (colour, dash) in zip(lines, styles, strict=False):
            points = thinned(line.points)
            xs = [x for x, _ in points]
            ys = [y if math.isfinite(y) and (y > 0 or not is_log) else math.nan for _, y in points]
            axes.plot(
                xs, ys, dash, color=colour, linewidth=1.6, marker='o' if line.has_marks else None, markersize=4,
                label=_label(line.name),
            )  # fmt: skip
        if is_log:
            axes.set_yscale('log')
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        for name, x in (borders or {}).items():
            axes.axvline(x, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
            at: Any = {'xycoords': ('data', 'axes fraction'), 'xytext': (4, 1), 'textcoords': 'offset points'}
            axes.annotate(_label(name), (x, 1), fontsize=9, **at)
        axes.set_xlabel('optimizer steps')
        axes.set_ylabel(y_label)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        # Plain numbers: a power of ten in a corner is easily overlooked.
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        if len(lines) > 1:
            figure.legend(loc='outside upper left', ncols=min(3, len(lines)), handlelength=2.6, fontsize=9)
        return _svg(figure)


def bar_chart(groups: Mapping[str, Sequence[float | None]], *, names: Sequence[str], y_label: str) -> bytes:
    """Groups of bars, as SVG: name of a group -> a value for each of `names`; None leaves a gap."""
    hatches = ('', '///', '...', 'xx')
    with _figure() as (figure, axes):
        width = 0.8 / max(len(names), 1)
        for index, name in enumerate(names):
            xs = [position + (index - (len(names) - 1) / 2) * width for position in range(len(groups))]
            heights = [math.nan if (value := values[index]) is None else value for values in groups.values()]
            bars = axes.bar(
                xs, heights, width * 0.92, color=COLOURS[index % len(COLOURS)], label=_label(name), edgecolor='white',
                hatch=hatches[index % len(hatches)],
            )  # fmt: skip
            axes.bar_label(bars, [f'{one:.1f}' if math.isfinite(one) else '' for one in heights], fontsize=8, padding=1)
        axes.set_xticks(range(len(groups)), list(map(_label, groups)))
        axes.margins(y=0.1)
        axes.grid(visible=False, axis='x')
        axes.set_ylabel(y_label)
        figure.legend(loc='outside upper left', ncols=max(len(names), 1), fontsize=9)
        return _svg(figure)


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: means over runs of neighbours. A run that holds a gap is a gap."""
    size = -(-len(points) // MAX_POINTS) if points else 1
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in runs]


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    """A figure with axes; the style must hold while it is drawn and saved."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout='constrained')
        yield figure, figure.add_subplot()


def _label(name: str) -> str:
    """A name that XML can hold, and that a legend does not take for one to leave out: those begin with `_`."""
    plain = ''.join(one if one.isprintable() else UNPRINTABLE for one in name)
    return f'{INVISIBLE}{plain}' if plain.startswith('_') else plain


def _svg(figure: Any) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        # It is the reader's fonts that show the texts; ours only measure them.
        warnings.filterwarnings('ignore', message='Glyph .* missing from font')
        figure.savefig(content, format='svg', metadata={'Date': None, 'Creator': None})
    return content.getvalue()
