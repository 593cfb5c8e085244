"""`mtpd-cache order`: in which order teachers should teach."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.errors import InputError
from mtpd.ordering.agreement import require_same_images
from mtpd.ordering.measure import AdaptationCosts, Sampling, adaptation_costs, shared_levels
from mtpd.ordering.selection import Costs, Selection, backward_greedy
from mtpd_extract.annotated_images import spread
from mtpd_extract.cache_tools.cost_picture import require_png, save_picture
from mtpd_extract.cache_tools.text import table

# With fewer cells for each weight of a channel's regression the fit explains noise.
CELLS_PER_CHANNEL = 10


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


def run(options: Mapping[str, Any]) -> None:
    """Measures the costs, selects an order, and prints and draws both."""
    if options['plot'] is not None:
        require_png(options['plot'])
    paths = [*options['caches']]
    if options['student_cache'] is not None:
        paths.insert(0, options['student_cache'])
    report = _measure([mtpd.cache.open(path) for path in paths], options)
    if options['plot'] is not None:
        save_picture(
            options['plot'],
            names=report.names,
            costs=report.found.costs,
            deviations=report.found.deviations,
            student=report.student,
            order=report.selection.teachers,
        )
    print(json.dumps(_record(report), indent=1) if options['as_json'] else '\n'.join(_lines(report)))


def _measure(caches: Sequence[CacheReader], options: Mapping[str, Any]) -> Report:
    names = _names([cache.path for cache in caches])
    student = names[0] if options['student_cache'] is not None else None
    teachers = names[1:] if student is not None else names
    accuracies = _accuracies(options['ap'], names)
    last = _last(options['last'], teachers, accuracies)
    require_same_images(caches)
    image_ids = spread(caches[0].image_ids, options['num_images'])
    sampling = Sampling(num_cells=options['num_cells'], num_resamples=options['resamples'], ridge=options['ridge'])
    total = len(image_ids) * len(shared_levels(caches))
    with tqdm(total=total, unit='map', desc='order', disable=not sys.stderr.isatty()) as bar:
        found = adaptation_costs(caches, image_ids, sampling=sampling, advance=bar.update)

    def select(costs: Tensor) -> Selection:
        return backward_greedy(
            _by_name(costs, names),
            teachers,
            last=last,
            student=student,
            accuracies=accuracies,
            rule=options['rule'],
            max_teachers=options['max_teachers'],
        )

    selection = select(found.costs)
    same = [select(costs).teachers == selection.teachers for costs in found.resampled]
    return Report(
        names=names,
        student=student,
        num_images=len(image_ids),
        found=found,
        selection=selection,
        agreement=sum(same) / len(same) if same else None,
        thin_levels=_thin_levels(caches, found),
    )


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """What the caches are called: by their folders, or by their paths where two folders have one name."""
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError(f'a cache is named twice among {", ".join(map(str, paths))}; name each once')
    names = tuple(Path(os.path.abspath(path)).name for path in paths)
    return names if len(set(names)) == len(names) else tuple(map(str, paths))


def _accuracies(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """What `--ap NAME=AP` says."""
    accuracies = {}
    for text in given:
        name, _, value = text.rpartition('=')
        if name not in names:
            raise InputError(f'--ap {text}: names none of the caches; give NAME=AP with one of {", ".join(names)}')
        try:
            accuracies[name] = float(value)
        except ValueError:
            accuracies[name] = math.nan
        if not math.isfinite(accuracies[name]):
            raise InputError(f'--ap {text}: {value!r} is no number; give for instance {name}=41.5')
    return accuracies


def _last(given: str | None, teachers: Sequence[str], accuracies: Mapping[str, float]) -> str:
    """The strongest teacher."""
    if given is not None:
        if given not in teachers:
            raise InputError(f'--last {given}: is none of the teachers; give one of {", ".join(teachers)}')
        return given
    known = [name for name in teachers if name in accuracies]
    if not known:
        return teachers[-1]
    if len(known) < len(teachers):
        missing = next(name for name in teachers if name not in accuracies)
        raise InputError(
            f'--ap: {missing} has none, so the strongest is not known; give --ap {missing}=AP or --last NAME'
        )
    return max(known, key=lambda name: accuracies[name])


def _by_name(costs: Tensor, names: Sequence[str]) -> Costs:
    values = costs.tolist()
    return {
        (source, target): values[row][column]
        for row, source in enumerate(names)
        for column, target in enumerate(names)
        if row != column
    }


def _thin_levels(caches: Sequence[CacheReader], found: AdaptationCosts) -> tuple[str, ...]:
    channels = {
        name: max(level.channels for cache in caches for level in cache.levels if level.name == name)
        for name in found.levels
    }
    return tuple(name for name, count in found.num_cells.items() if count < CELLS_PER_CHANNEL * channels[name])


def _lines(report: Report) -> list[str]:
    found = report.found
    lines = [
        f'{report.num_images} images, views {", ".join(found.views)}, levels {", ".join(found.levels)}',
        '',
        'adaptation cost: share of the variance that a linear map from the row to the column leaves unexplained'
        + (', and its bootstrap error' if found.deviations is not None else ''),
        *_matrix(report, found.costs, found.deviations),
    ]
    if len(found.levels) > 1:
        lines += ['', 'by level']
        rows = [
            [f'{source} -> {target}', *[f'{costs[row, column]:.3f}' for costs in found.levels.values()]]
            for row, source in enumerate(report.names)
            for column, target in enumerate(report.names)
            if row != column and target != report.student
        ]
        lines += table(['', *found.levels], rows)
    if report.thin_levels:
        lines += [
            '',
            f'note: few cells for the channels of {", ".join(report.thin_levels)}, costs come out too low there; '
            'make --num-images larger',
        ]
    lines += ['', *report.selection.reasons, '']
    if report.agreement is not None:
        lines.append(f'{report.agreement:.0%} of {len(found.resampled)} bootstrap resamples give this order')
    lines.append('order: ' + ' -> '.join(_path(report)))
    return lines


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


def _record(report: Report) -> dict[str, Any]:
    """What `--json` gives."""
    found = report.found
    deviations = None if found.deviations is None else _by_name(found.deviations, report.names)
    levels = {name: _by_name(costs, report.names) for name, costs in found.levels.items()}
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
            for (source, target), cost in _by_name(found.costs, report.names).items()
        ],
        'order': report.selection.teachers,
        'reasons': report.selection.reasons,
        'resamples': len(found.resampled),
        'same_order': report.agreement,
        'thin_levels': report.thin_levels,
    }
