"""`mtpd-cache order`: in which order teachers should teach."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.data.coco import spread
from mtpd.errors import InputError
from mtpd.ordering import AdaptationCosts, Sampling, Selection, adaptation_costs, backward_greedy
from mtpd.ordering.costs import shared_levels
from mtpd.system.console import progress_bar
from mtpd_extract.cache_tools.cost_picture import require_png, save_picture
from mtpd_extract.cache_tools.order_report import Report, by_name, lines, record

# With fewer cells for each weight of a channel's regression the fit explains noise.
CELLS_PER_CHANNEL = 10


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
    print(json.dumps(record(report), indent=1) if options['as_json'] else '\n'.join(lines(report)))


def _measure(caches: Sequence[CacheReader], options: Mapping[str, Any]) -> Report:
    names = _names([cache.path for cache in caches])
    student = names[0] if options['student_cache'] is not None else None
    teachers = names[1:] if student is not None else names
    accuracies = _accuracies(options['ap'], names)
    last = _last(options['last'], teachers, accuracies)
    image_ids = spread(caches[0].image_ids, options['num_images'])
    sampling = Sampling(num_cells=options['num_cells'], num_resamples=options['resamples'], ridge=options['ridge'])
    total = len(image_ids) * len(shared_levels(caches))
    with progress_bar(total=total, unit='map', desc='order', in_logs=False) as bar:
        found = adaptation_costs(caches, image_ids, sampling=sampling, advance=bar.update)

    def select(costs: Tensor) -> Selection:
        return backward_greedy(
            by_name(costs, names),
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
        raise InputError(f'a cache is given twice: {", ".join(map(str, paths))}; give each once')
    names = tuple(Path(os.path.abspath(path)).name for path in paths)
    return names if len(set(names)) == len(names) else tuple(map(str, paths))


def _accuracies(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """The values of `--ap NAME=AP`."""
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
    """The strongest teacher."""
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
