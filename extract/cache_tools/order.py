"""`mtpd-cache order`: in which order teachers should teach."""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.data.coco import spread
from mtpd.errors import InputError
from mtpd.ordering import AdaptationCosts, Sampling, Selection, adaptation_costs, backward_greedy
from mtpd.ordering.costs import shared_levels
from mtpd.ordering.selection import Costs, Rule
from mtpd.system.console import progress_bar
from mtpd.system.files import write_output
from mtpd.system.text import table
from mtpd_extract.cache_tools.picture import require_png

# With fewer cells for each weight of a channel's regression the fit explains noise.
CELLS_PER_CHANNEL = 10
COLOURS, PATH_COLOUR = 'viridis_r', '#e4572e'


@dataclass(frozen=True)
class OrderOptions:
    caches: tuple[Path | str, ...]
    student_cache: Path | str | None
    last: str | None
    ap: tuple[str, ...]
    rule: Rule
    max_teachers: int | None
    num_images: int
    num_cells: int
    ridge: float
    resamples: int
    plot: Path | None
    as_json: bool


def run(options: OrderOptions) -> None:
    if options.plot is not None:
        require_png(options.plot, option='--plot')
    paths = [*([] if options.student_cache is None else [options.student_cache]), *options.caches]
    record = _measure([mtpd.cache.open(path) for path in paths], options)
    if options.plot is not None:
        _save_picture(options.plot, record)
    print(json.dumps(record, indent=1) if options.as_json else '\n'.join(_lines(record)))


def _measure(caches: Sequence[CacheReader], options: OrderOptions) -> dict[str, Any]:
    """What `--json` prints; a student is the first of the caches."""
    names = _names([Path(cache.name) for cache in caches])
    student = names[0] if options.student_cache is not None else None
    teachers = names[1:] if student is not None else names
    accuracies = _accuracies(options.ap, names)
    last = _last(options.last, teachers, accuracies)
    image_ids = spread(caches[0].image_ids, options.num_images)
    sampling = Sampling(num_cells=options.num_cells, num_resamples=options.resamples, ridge=options.ridge)
    total = len(image_ids) * len(shared_levels(caches))
    with progress_bar(total=total, unit='map', desc='order', in_logs=False) as bar:
        found = adaptation_costs(caches, image_ids, sampling=sampling, advance=bar.update)

    def select(costs: Tensor) -> Selection:
        return backward_greedy(
            _by_name(costs, names),
            teachers,
            last=last,
            student=student,
            accuracies=accuracies,
            rule=options.rule,
            max_teachers=options.max_teachers,
        )

    selection = select(found.costs)
    same = [select(costs).teachers == selection.teachers for costs in found.resampled]
    errors = {} if found.deviations is None else _by_name(found.deviations, names)
    levels = {name: _by_name(costs, names) for name, costs in found.levels.items()}
    return {
        'images': len(image_ids),
        'views': found.views,
        'levels': [{'level': name, 'cells': count} for name, count in found.num_cells.items()],
        'student': student,
        'teachers': teachers,
        'costs': [
            {
                'from': source,
                'to': target,
                'cost': cost,
                'error': errors.get((source, target)),
                'levels': {name: costs[source, target] for name, costs in levels.items()},
            }
            for (source, target), cost in _by_name(found.costs, names).items()
        ],
        'order': selection.teachers,
        'reasons': selection.reasons,
        'resamples': len(found.resampled),
        # The share of resamples that give this order.
        'same_order': sum(same) / len(same) if same else None,
        'thin_levels': _thin_levels(caches, found),
    }


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """What the caches are called: by their folders, or by their paths where two folders have one name."""
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError(f'a cache is given twice: {", ".join(map(str, paths))}; give each once')
    names = tuple(Path(os.path.abspath(path)).name for path in paths)
    return names if len(set(names)) == len(names) else tuple(map(str, paths))


def _accuracies(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    accuracies = {}
    for text in given:
        name, _, value = text.rpartition('=')
        if name not in names:
            raise InputError(
                f'--ap {text}: does not name any of the caches; give NAME=AP with one of {", ".join(names)}'
            )
        try:
            accuracies[name] = float(value)
        except ValueError:
            accuracies[name] = math.nan
        if not math.isfinite(accuracies[name]):
            raise InputError(f'--ap {text}: {value!r} is not a number; give for instance {name}=41.5')
    return accuracies


def _last(given: str | None, teachers: Sequence[str], accuracies: Mapping[str, float]) -> str:
    if given is not None:
        if given not in teachers:
            raise InputError(f'--last {given}: is not one of the teachers; give one of {", ".join(teachers)}')
        return given
    known = [name for name in teachers if name in accuracies]
    if not known:
        return teachers[-1]
    if len(known) < len(teachers):
        missing = next(name for name in teachers if name not in accuracies)
        raise InputError(
            f'--ap: missing for {missing}, so the strongest teacher is not known; give --ap {missing}=AP or --last NAME'
        )
    return max(known, key=lambda name: accuracies[name])


def _thin_levels(caches: Sequence[CacheReader], found: AdaptationCosts) -> tuple[str, ...]:
    channels = {
        name: max(level.channels for cache in caches for level in cache.levels if level.name == name)
        for name in found.levels
    }
    return tuple(name for name, count in found.num_cells.items() if count < CELLS_PER_CHANNEL * channels[name])


def _by_name(costs: Tensor, names: Sequence[str]) -> Costs:
    """The entries of a matrix (M, M) off the diagonal: (from, to) -> cost."""
    values = costs.tolist()
    return {
        (source, target): values[row][column]
        for row, source in enumerate(names)
        for column, target in enumerate(names)
        if row != column
    }


def _with_student(record: dict[str, Any], names: Sequence[str]) -> list[str]:
    """The student, if there is one, before others."""
    return [*([] if record['student'] is None else [record['student']]), *names]


def _costs(record: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(from, to) -> costs; nothing is adapted to the student."""
    return {(one['from'], one['to']): one for one in record['costs'] if one['to'] != record['student']}


def _lines(record: dict[str, Any]) -> list[str]:
    levels, costs = [one['level'] for one in record['levels']], _costs(record)
    has_errors = any(one['error'] is not None for one in costs.values())
    text = [
        f'{record["images"]} images, views {", ".join(record["views"])}, levels {", ".join(levels)}',
        '',
        'adaptation cost: fraction of the variance that a linear map from the row to the column does not explain'
        + (', and its bootstrap error' if has_errors else ''),
        *table(
            ['from / to', *record['teachers']],
            [
                [name, *(_cell(costs.get((name, target))) for target in record['teachers'])]
                for name in _with_student(record, record['teachers'])
            ],
        ),
    ]
    if len(levels) > 1:
        rows = [
            [f'{source} -> {target}', *(f'{one["levels"][name]:.3f}' for name in levels)]
            for (source, target), one in costs.items()
        ]
        text += ['', 'by level', *table(['', *levels], rows)]
    if record['thin_levels']:
        text += [
            '',
            f'note: too few cells for the channels of {", ".join(record["thin_levels"])}, their costs are '
            'underestimated; increase --num-images',
        ]
    text += ['', *record['reasons'], '']
    if record['same_order'] is not None:
        text.append(f'{record["same_order"]:.0%} of {record["resamples"]} bootstrap resamples give this order')
    if len(record['order']) > 1:
        last = record['order'][-1]
        text.append(f'note: costs do not predict AP; also train from {last} alone for as many epochs and compare')
    text.append('order: ' + ' -> '.join(_with_student(record, record['order'])))
    return text


def _cell(one: dict[str, Any] | None, *, sign: str = ' +- ') -> str:
    if one is None:
        return '-'
    return f'{one["cost"]:.3f}' + ('' if one['error'] is None else f'{sign}{one["error"]:.3f}')


def _save_picture(out: Path, record: dict[str, Any]) -> None:
    """Draws the matrix of costs with the steps of the order framed and numbered."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    targets, costs = record['teachers'], _costs(record)
    names, path = _with_student(record, targets), _with_student(record, record['order'])
    highest = max(one['cost'] for one in costs.values())
    values = np.full((len(names), len(targets)), np.nan)
    figure = Figure(figsize=(3.2 + 1.25 * len(targets), 2.4 + 0.8 * len(names)), layout='constrained')
    axes = figure.add_subplot()
    for (source, target), one in costs.items():
        row, column = names.index(source), targets.index(target)
        values[row, column] = one['cost']
        colour = 'white' if one['cost'] > 0.55 * highest else 'black'
        axes.text(column, row, _cell(one, sign='\n± '), ha='center', va='center', fontsize=9, color=colour)
    image = axes.imshow(values, cmap=COLOURS, vmin=0, vmax=max(highest, 1e-6), aspect='auto')
    axes.set_xticks(range(len(targets)), targets, rotation=20, ha='right')
    axes.set_yticks(range(len(names)), [f'{name} (student)' if name == record['student'] else name for name in names])
    axes.set(xlabel='to', ylabel='from')
    for number, (source, target) in enumerate(pairwise(path), start=1):
        row, column = names.index(source), targets.index(target)
        corner = (column - 0.47, row - 0.46)
        axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=PATH_COLOUR, linewidth=3))
        axes.text(column - 0.4, row - 0.4, str(number), va='top', fontsize=9, weight='bold', color=PATH_COLOUR)
    figure.colorbar(image, ax=axes, label='unexplained fraction of variance')
    figure.suptitle('adaptation cost\n' + ' → '.join(path), fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=150)
    write_output(out, content.getvalue(), option='--plot')
