"""`mtpd-cache fidelity`: compares a cache's maps with the live teacher's."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import encode, require_finite
from mtpd.cache.format.comparison import Comparison
from mtpd.cache.format.manifest import ViewName
from mtpd.data.account import suspicions
from mtpd.data.coco import CocoImage, CocoSet, read_annotations, spread
from mtpd.detectors.features import choice_of
from mtpd.detectors.teacher_heads import head_detections, require_head
from mtpd.detectors.teachers import InputOptions, Teacher, load_teacher, state_sha256
from mtpd.errors import CacheMismatchError, InputError
from mtpd.evaluation import evaluate
from mtpd.system.console import progress_bar, warn
from mtpd.system.environment import choose_device
from mtpd.system.text import table
from mtpd_extract.annotated_images import AnnotatedImage, view_of
from mtpd_extract.build import data_set

Maps = dict[str, Tensor]
# (image id, view, live maps (1, C, H, W)) -> the maps (C, H, W) that the cache gives for them.
Stored = Callable[[int, ViewName, Maps], Maps]


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        source: description of where the stored maps came from.
        num_images: measured images.
        views: (view, level name) -> stored maps against live ones.
        mirrored: level name -> the stored plain map, mirrored, against the stored map of the mirrored image.
        ap: box AP, 0 to 100, of the teacher's own head on live and on stored maps; None if not requested.
    """

    source: str
    num_images: int
    views: Mapping[tuple[ViewName, str], Comparison]
    mirrored: Mapping[str, Comparison]
    ap: tuple[float, float] | None


def run(options: Mapping[str, Any]) -> None:
    """Measures one cache and prints what came out."""
    cache = mtpd.cache.open(options['cache'])
    device = choose_device(options['device'])
    teacher = _teacher(cache, options, device)
    folder, annotation_file = data_set(options)
    coco = read_annotations(annotation_file)
    for doubt in suspicions(coco):
        warn(f'{annotation_file}: {doubt}')
    report = _measure(cache, teacher, coco, folder, options=options, device=device)
    print(json.dumps(_record(report), indent=1) if options['as_json'] else '\n'.join(_lines(report)))


def _teacher(cache: CacheReader, options: Mapping[str, Any], device: torch.device) -> Teacher:
    """The live teacher, which must be the one that the cache was made by."""
    given = {field.name: options[field.name] for field in fields(InputOptions) if field.name != 'scale'}
    teacher = load_teacher(
        options['teacher'] or str(cache.manifest.description.provenance.get('teacher')),
        checkpoint=options['checkpoint'],
        options=InputOptions(**given, scale=cache.geometry.scale),
        device=device,
        trust_checkpoint=options['trust_checkpoint'],
        hook=choice_of(str(_recorded(cache, 'teacher', 'hook_point'))),
    )
    found = _recorded(cache, 'teacher', 'weights')
    weights = state_sha256(teacher.module.state_dict())
    if weights != found:
        raise CacheMismatchError(
            f'{cache.path}: was made by a teacher with different weights than {teacher.name} (sha256 '
            f'{str(found)[:12]}... '
            f'there, {weights[:12]}... here); give its --teacher and --checkpoint'
        )
    if teacher.preprocessing.geometry != cache.geometry:
        raise CacheMismatchError(
            f'{cache.path}: its geometry is {cache.geometry}, but {teacher.name} has {teacher.preprocessing.geometry}; '
            'give the input options of the extraction'
        )
    if options['ap']:
        require_head(teacher)
    return teacher


def _measure(
    cache: CacheReader,
    teacher: Teacher,
    coco: CocoSet,
    folder: Path,
    *,
    options: Mapping[str, Any],
    device: torch.device,
) -> Report:
    images, source, stored = _stored_maps(cache, coco)
    images = spread(images, options['num_images'])
    views = {(view, level.name): Comparison() for view in cache.views for level in cache.levels}
    mirrored = {level.name: Comparison() for level in cache.levels} if len(cache.views) == 2 else {}
    detections: tuple[list[Any], list[Any]] = ([], [])
    for image in progress_bar(images, unit='image', desc='fidelity', in_logs=False):
        found = {}
        for view in cache.views:
            seen = view_of(teacher, image, folder=folder, view=view, device=device)
            live = teacher.maps(seen.inputs)
            for level in cache.levels:
                require_finite(live[level.name], level=level.name, view=view, image_ids=[image.id])
            found[view] = stored(image.id, view, live)
            for name, maps in found[view].items():
                views[view, name].add(maps, live[name][0].cpu())
            if options['ap'] and view == cache.views[0]:
                for given, results in zip((live, _replaced(live, found[view])), detections, strict=True):
                    results += _detect(teacher, seen, given, coco)
        for name, comparison in mirrored.items():
            comparison.add(found['plain'][name].flip(-1), found['flip'][name])
    ap = None
    if options['ap']:
        ids = [image.id for image in images]
        live_ap, stored_ap = (100 * evaluate(coco, found, image_ids=ids).metrics['AP'] for found in detections)
        ap = live_ap, stored_ap
    return Report(source, len(images), views, mirrored, ap)


def _stored_maps(cache: CacheReader, coco: CocoSet) -> tuple[tuple[CocoImage, ...], str, Stored]:
    """The images to measure, what their stored maps are, and how to get them."""
    if _recorded(cache, 'data', 'annotations') == coco.sha256:
        images = tuple(image for image in coco.images if image.id in cache)
        return images, 'stored maps', lambda image_id, view, _: cache.read(image_id, view)
    description = cache.manifest.description

    def through_the_codec(_: int, __: ViewName, live: Maps) -> Maps:
        found = {}
        for level in cache.levels:
            basis = cache.bases.get(level.name)
            maps = live[level.name].cpu()
            encoded = encode(maps, description.codec, target=description.target_error, basis=basis)
            found[level.name] = encoded.values()[0]
        return found

    if not coco.images:
        raise InputError(f'{coco.path}: lists no images')
    return (
        coco.images,
        f"the cache's codec ({description.codec}) on images that are not in the cache",
        through_the_codec,
    )


def _recorded(cache: CacheReader, group: str, field: str) -> Any:
    """A field of the fingerprint, which may have any form."""
    fields_of_group = cache.manifest.description.fingerprint.get(group)
    return fields_of_group.get(field) if isinstance(fields_of_group, dict) else None


def _replaced(live: Maps, found: Maps) -> Maps:
    """Live maps with those that are stored in their place."""
    return live | {name: maps[None].to(live[name].device) for name, maps in found.items()}


def _detect(teacher: Teacher, seen: AnnotatedImage, maps: Maps, coco: CocoSet) -> list[dict[str, Any]]:
    ids = [category.id for category in coco.categories]
    ordered = [maps[level.name] for level in teacher.levels]
    return head_detections(teacher, ordered, inputs=seen.inputs, samples=[seen.sample], category_ids=ids)


def _lines(report: Report) -> list[str]:
    rows = [
        [
            view,
            level,
            f'{one.mean_error:.2e}',
            f'{one.worst_error:.2e}',
            f'{one.mean_cosine:.6f}',
            f'{one.worst_cosine:.6f}',
        ]
        for (view, level), one in report.views.items()
    ]
    lines = [
        f'{report.num_images} images, {report.source}, against the live teacher',
        *table(['view', 'level', 'error', 'worst', 'cosine', 'worst'], rows),
    ]
    if report.mirrored:
        rows = [
            [level, f'{one.mean_error:.2e}', f'{one.mean_cosine:.3f}', f'{one.worst_cosine:.3f}']
            for level, one in report.mirrored.items()
        ]
        lines += [
            '',
            'plain map, mirrored, against the map of the mirrored image: the error of mirroring maps',
            *table(['level', 'error', 'cosine', 'worst'], rows),
        ]
    if report.ap:
        live, found = report.ap
        lines += ['', f"box AP of the teacher's head: live {live:.2f}, stored {found:.2f}, drop {live - found:.2f}"]
    return lines


def _record(report: Report) -> dict[str, Any]:
    def numbers(one: Comparison) -> dict[str, float]:
        return {
            'mean_error': one.mean_error,
            'worst_error': one.worst_error,
            'mean_cosine': one.mean_cosine,
            'worst_cosine': one.worst_cosine,
        }

    return {
        'images': report.num_images,
        'source': report.source,
        'views': [{'view': view, 'level': level, **numbers(one)} for (view, level), one in report.views.items()],
        'mirrored': [{'level': level, **numbers(one)} for level, one in report.mirrored.items()],
        'ap': report.ap and {'live': report.ap[0], 'stored': report.ap[1]},
    }
