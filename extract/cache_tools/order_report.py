"""What `mtpd-cache order` found, as text and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mtpd.ordering import AdaptationCosts, Selection
from mtpd.ordering.selection import Costs
from mtpd.system.text import table


@dataclass(frozen=True)
class Report:
    """What was measured and chosen.

    Attributes:
        names: of all models, in the order of the matrices; the student, if there is one, is the first.
        student: its name, or None.
        num_images: images looked at.
        found: the costs.
        selection: the order of the teachers.
        agreement: share of the bootstrap resamples that give this order; None without them.
        thin_levels: names of levels with few cells for the number of channels.
    """

    names: tuple[str, ...]
    student: str | None
    num_images: int
    found: AdaptationCosts
    selection: Selection
    agreement: float | None
    thin_levels: tuple[str, ...]

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers, as they were given."""
        return tuple(name for name in self.names if name != self.student)


def by_name(costs: Tensor, names: Sequence[str]) -> Costs:
    """The entries of a matrix (M, M) off the diagonal: (from, to) -> cost."""
    values = costs.tolist()
    return {
        (source, target): values[row][column]
        for row, source in enumerate(names)
        for column, target in enumerate(names)
        if row != column
    }


def lines(report: Report) -> list[str]:
    """What is printed for people."""
    found = report.found
    text = [
        f'{report.num_images} images, views {", ".join(found.views)}, levels {", ".join(found.levels)}',
        '',
        'adaptation cost: fraction of the variance that a linear map from the row to the column does not explain'
        + (', and its bootstrap error' if found.deviations is not None else ''),
        *_matrix(report, found.costs, found.deviations),
    ]
    if len(found.levels) > 1:
        text += ['', 'by level']
        rows = [
            [f'{source} -> {target}', *[f'{costs[row, column]:.3f}' for costs in found.levels.values()]]
            for row, source in enumerate(report.names)
            for column, target in enumerate(report.names)
            if row != column and target != report.student
        ]
        text += table(['', *found.levels], rows)
    if report.thin_levels:
        text += [
            '',
            f'note: too few cells for the channels of {", ".join(report.thin_levels)}, their costs are underestimated; '
            'increase --num-images',
        ]
    text += ['', *report.selection.reasons, '']
    if report.agreement is not None:
        text.append(f'{report.agreement:.0%} of {len(found.resampled)} bootstrap resamples give this order')
    if len(report.selection.teachers) > 1:
        last = report.selection.teachers[-1]
        text.append(f'note: costs do not predict AP; also train from {last} alone for as many epochs and compare')
    text.append('order: ' + ' -> '.join(_path(report)))
    return text


def _path(report: Report) -> list[str]:
    return [*([report.student] if report.student is not None else []), *report.selection.teachers]


def _matrix(report: Report, costs: Tensor, deviations: Tensor | None) -> list[str]:
    rows = []
    for row, source in enumerate(report.names):
        cells = [source]
        for column, target in enumerate(report.names):
            if target == report.student:
                continue
            error = '' if deviations is None else f' +- {deviations[row, column]:.3f}'
            cells.append('-' if row == column else f'{costs[row, column]:.3f}{error}')
        rows.append(cells)
    return table(['from / to', *report.teachers], rows)


def record(report: Report) -> dict[str, Any]:
    """What `--json` gives."""
    found = report.found
    deviations = None if found.deviations is None else by_name(found.deviations, report.names)
    levels = {name: by_name(costs, report.names) for name, costs in found.levels.items()}
    return {
        'images': report.num_images,
        'views': found.views,
        'levels': [{'level': name, 'cells': count} for name, count in found.num_cells.items()],
        'student': report.student,
        'teachers': report.teachers,
        'costs': [
            {
                'from': source,
                'to': target,
                'cost': cost,
                'error': None if deviations is None else deviations[source, target],
                'levels': {name: costs[source, target] for name, costs in levels.items()},
            }
            for (source, target), cost in by_name(found.costs, report.names).items()
        ],
        'order': report.selection.teachers,
        'reasons': report.selection.reasons,
        'resamples': len(found.resampled),
        'same_order': report.agreement,
        'thin_levels': report.thin_levels,
    }
