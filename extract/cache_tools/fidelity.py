"""`mtpd-cache fidelity`: compares a cache's maps with the live teacher's."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.cache.format.codecs import Comparison, encode, require_finite
from mtpd.cache.format.manifest import ViewName
from mtpd.data.account import suspicions
from mtpd.data.annotation_table import CocoImage
from mtpd.data.coco import CocoSet, read_annotations, spread
from mtpd.data.images import read_image
from mtpd.detectors.hook_points import choice_of
from mtpd.detectors.references import load_teacher
from mtpd.detectors.samples import Sample, collate, make_sample
from mtpd.detectors.teacher_heads import head_detections, require_head
from mtpd.detectors.teachers import Teacher, state_sha256
from mtpd.errors import CacheMismatchError, InputError
from mtpd.evaluation import evaluate
from mtpd.system.console import progress_bar, warn
from mtpd.system.environment import choose_device
from mtpd.system.text import table
from mtpd_extract.options import SourceOptions

Maps = dict[str, Tensor]
# (image id, view, live maps (1, C, H, W)) -> the maps (C, H, W) that the cache gives for them.
Stored = Callable[[int, ViewName, Maps], Maps]


@dataclass(frozen=True, kw_only=True)
class FidelityOptions(SourceOptions):
    cache: Path | str
    teacher: str | None
    num_images: int
    ap: bool
    as_json: bool


def view_of(
    teacher: Teacher, image: CocoImage, *, folder: Path, view: ViewName, device: torch.device
) -> tuple[Sample, Tensor]:
    """An image of the set in `folder` as a sample, and as the teacher's input (1, 3, H, W) on the device."""
    path = folder / image.file_name
    sample = make_sample(
        read_image(path, size=(image.height, image.width)),
        image_id=image.id,
        geometry=teacher.preprocessing.geometry,
        view=view,
    )
    return sample, collate([sample], preprocessing=teacher.preprocessing, device=device)


def run(options: FidelityOptions) -> None:
    cache = mtpd.cache.open(options.cache)
    device = choose_device(options.device)
    teacher = _teacher(cache, options, device)
    folder, annotation_file = options.data_paths
    coco = read_annotations(annotation_file)
    for doubt in suspicions(coco):
        warn(f'{annotation_file}: {doubt}')
    record = _measure(cache, teacher, coco, folder, options=options, device=device)
    print(json.dumps(record, indent=1) if options.as_json else '\n'.join(_lines(record)))


def _teacher(cache: CacheReader, options: FidelityOptions, device: torch.device) -> Teacher:
    """The live teacher, which must be the one that the cache was made by."""
    teacher = load_teacher(
        options.teacher or str(cache.manifest.description.provenance.get('teacher')),
        checkpoint=options.checkpoint,
        options=replace(options.input_options, scale=cache.geometry.scale),
        device=device,
        trust_checkpoint=options.trust_checkpoint,
        hook=choice_of(str(_recorded(cache, 'teacher', 'hook_point'))),
    )
    found = _recorded(cache, 'teacher', 'weights')
    weights = state_sha256(teacher.module.state_dict())
    if weights != found:
        raise CacheMismatchError(
            f'{cache.name}: was made by a teacher with different weights than {teacher.name} (sha256 '
            f'{str(found)[:12]}... there, {weights[:12]}... here); give its --teacher and --checkpoint'
        )
    if teacher.preprocessing.geometry != cache.geometry:
        raise CacheMismatchError(
            f'{cache.name}: its geometry is {cache.geometry}, but {teacher.name} has {teacher.preprocessing.geometry}; '
            'give the input options of the extraction'
        )
    if options.ap:
        require_head(teacher)
    return teacher


def _measure(
    cache: CacheReader,
    teacher: Teacher,
    coco: CocoSet,
    folder: Path,
    *,
    options: FidelityOptions,
    device: torch.device,
) -> dict[str, Any]:
    """What `--json` prints.

    `views` compares stored maps with live ones, `mirrored` the stored plain map, mirrored, with the stored map of the
    mirrored image; `ap` is the box AP, 0 to 100, of the teacher's own head on both.
    """
    images, source, stored = _stored_maps(cache, coco)
    images = spread(images, options.num_images)
    views = {(view, level.name): Comparison() for view in cache.views for level in cache.levels}
    mirrored = {level.name: Comparison() for level in cache.levels} if len(cache.views) == 2 else {}
    category_ids = [category.id for category in coco.categories]
    detections: tuple[list[Any], list[Any]] = ([], [])
    for image in progress_bar(images, unit='image', desc='fidelity', in_logs=False):
        found = {}
        for view in cache.views:
            sample, inputs = view_of(teacher, image, folder=folder, view=view, device=device)
            live = teacher.maps(inputs)
            for level in cache.levels:
                require_finite(live[level.name], level=level.name, view=view, image_ids=[image.id])
            found[view] = stored(image.id, view, live)
            for name, one in found[view].items():
                views[view, name].add(one, live[name][0].cpu())
            if options.ap and view == cache.views[0]:
                replaced = live | {name: one[None].to(device) for name, one in found[view].items()}
                for given, results in zip((live, replaced), detections, strict=True):
                    maps = [given[level.name] for level in teacher.levels]
                    results += head_detections(
                        teacher, maps, inputs=inputs, samples=[sample], category_ids=category_ids
                    )
        for name, comparison in mirrored.items():
            comparison.add(found['plain'][name].flip(-1), found['flip'][name])
    ap = None
    if options.ap:
        ids = [image.id for image in images]
        live_ap, stored_ap = (100 * evaluate(coco, found, image_ids=ids).metrics['AP'] for found in detections)
        ap = {'live': live_ap, 'stored': stored_ap}
    return {
        'images': len(images),
        'source': source,
        'views': [{'view': view, 'level': level, **one.summary()} for (view, level), one in views.items()],
        'mirrored': [{'level': level, **one.summary()} for level, one in mirrored.items()],
        'ap': ap,
    }


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
    source = f"the cache's codec ({description.codec}) on images that are not in the cache"
    return coco.images, source, through_the_codec


def _recorded(cache: CacheReader, group: str, field: str) -> Any:
    """A field of the fingerprint, which may have any form."""
    fields_of_group = cache.manifest.description.fingerprint.get(group)
    return fields_of_group.get(field) if isinstance(fields_of_group, dict) else None


def _lines(record: dict[str, Any]) -> list[str]:
    rows = [
        [
            *(one[name] for name in ('view', 'level')),
            *(f'{one[name]:.2e}' for name in ('mean_error', 'worst_error')),
            *(f'{one[name]:.6f}' for name in ('mean_cosine', 'worst_cosine')),
        ]
        for one in record['views']
    ]
    lines = [
        f'{record["images"]} images, {record["source"]}, against the live teacher',
        *table(['view', 'level', 'error', 'worst', 'cosine', 'worst'], rows),
    ]
    if record['mirrored']:
        rows = [
            [one['level'], f'{one["mean_error"]:.2e}', f'{one["mean_cosine"]:.3f}', f'{one["worst_cosine"]:.3f}']
            for one in record['mirrored']
        ]
        lines += [
            '',
            'plain map, mirrored, against the map of the mirrored image: the error of mirroring maps',
            *table(['level', 'error', 'cosine', 'worst'], rows),
        ]
    if record['ap']:
        live, found = record['ap']['live'], record['ap']['stored']
        lines += ['', f"box AP of the teacher's head: live {live:.2f}, stored {found:.2f}, drop {live - found:.2f}"]
    return lines
