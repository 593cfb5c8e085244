"""From the command line's options to the plain values that the work needs."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mtpd.cache.format.arrays import RoisRecord
from mtpd.cache.format.codecs import DEFAULT_TARGET, CodecName, expected_bytes
from mtpd.cache.format.manifest import Description, ViewName, describe
from mtpd.cache.format.plan import CachePlan, SourceImage, plan_cache
from mtpd.cache.format.teacher_tensors import save_teacher
from mtpd.data.account import suspicions
from mtpd.data.coco import CocoSet, coco_paths, image_path, missing_images, read_annotations, require_pixels
from mtpd.detectors.teacher_heads import proposing_head
from mtpd.detectors.teachers import InputOptions, Teacher, load_teacher, neck_and_head_weights
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.heads.roi_head import RoiHead
from mtpd.system.console import warn
from mtpd.system.environment import choose_device
from mtpd_extract.fingerprint import fingerprint, provenance


@dataclass(frozen=True)
class Extraction:
    """One extraction, fully decided.

    Attributes:
        teacher: the network.
        device: what it runs on.
        levels: the levels to store, a subset of the teacher's.
        codec, target_error, views: how and what is stored.
        plan: which image goes where.
        description: what the manifest will say.
        proposing_head: the teacher's RoI head, on the device, where its proposals are stored too; else None.
        teacher_weights: neck and head, and a record of the RoI head, as a safetensors file.
        paths: image id -> file.
    """

    teacher: Teacher
    device: torch.device
    levels: tuple[Level, ...]
    codec: CodecName
    target_error: float | None
    views: tuple[ViewName, ...]
    plan: CachePlan
    description: Description
    proposing_head: RoiHead | None
    teacher_weights: bytes
    paths: Mapping[int, Path]


def build_extraction(options: Mapping[str, Any]) -> Extraction:
    """Reads the annotations, loads the teacher and plans the cache.

    Raises:
        InputError: an option, the annotation file, an image path or the teacher is wrong.
        UnavailableError: the weights or the device cannot be had.
    """
    folder, annotation_file = data_set(options)
    coco = read_annotations(annotation_file)
    selected = coco.images[: options['limit']]
    if not selected:
        raise InputError(f'{annotation_file}: lists no images')
    if options['part'] is None or options['part'][0] == 1:  # only one of several processes reports
        for doubt in suspicions(coco):
            warn(f'{annotation_file}: {doubt}')
    _require_images(replace(coco, images=selected), folder)
    device = choose_device(options['device'], number=options['local_rank'])
    teacher = load_teacher(
        options['teacher'],
        checkpoint=options['checkpoint'],
        options=InputOptions(**{field.name: options[field.name] for field in fields(InputOptions)}),
        device=device,
        trust_checkpoint=options['trust_checkpoint'],
        hook=options['hook'],
    )
    geometry = teacher.preprocessing.geometry
    require_pixels(selected, geometry)
    levels = _select_levels(teacher, options['levels'])
    codec: CodecName = options['codec']
    paths = {image.id: image_path(folder, image.file_name) for image in selected}
    target_error = _target_error(codec, options['error'])
    plan = plan_cache(
        [SourceImage(image.id, (image.height, image.width)) for image in selected],
        geometry=geometry,
        levels=levels,
        bytes_per_element=expected_bytes(codec),
        shard_bytes=int(options['shard_mb'] * 2**20),
    )
    head = _proposing_head(teacher, options, device)
    description = describe(
        fingerprint=fingerprint(teacher, coco, selected),
        provenance=provenance(teacher, coco, paths, device),
        levels=levels,
        codec=codec,
        target_error=target_error,
        views=options['views'],
        geometry=geometry,
        rois=None if head is None else RoisRecord(num_rois=options['rois'], num_classes=head.record.num_classes),
    )
    return Extraction(
        teacher=teacher,
        device=device,
        levels=levels,
        codec=codec,
        target_error=target_error,
        views=options['views'],
        plan=plan,
        description=description,
        proposing_head=head,
        teacher_weights=save_teacher(neck_and_head_weights(teacher), roi_head=teacher.roi_head),
        paths=paths,
    )


def _target_error(codec: CodecName, given: float | None) -> float | None:
    if codec == 'lean':
        return DEFAULT_TARGET if given is None else given
    if given is not None:
        raise InputError(f'--error {given:g}: applies to --codec lean only, but the codec is {codec}; remove it')
    return None


def data_set(options: Mapping[str, Any]) -> tuple[Path, Path]:
    """The image folder and the annotation file that the options name."""
    if options['images'] is not None:
        return options['images'], options['annotations']
    return coco_paths(options['coco'], options['split'])


def _require_images(coco: CocoSet, folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f'{folder}: there is no such image folder; give --coco DIR, or --images and --annotations')
    missing = missing_images(coco, folder)
    if missing:
        raise InputError(
            f'{folder}: {len(missing)} of {len(coco.images)} images are missing, the first is {missing[0]}; '
            'restore them, or remove them from the annotation file'
        )


def _proposing_head(teacher: Teacher, options: Mapping[str, Any], device: torch.device) -> RoiHead | None:
    """The head that judges the proposals to be stored; None where none are."""
    if options['rois'] == 0:
        return None
    if 'plain' not in options['views']:
        raise InputError('--rois: proposals are stored with the plain view; extract it too with --views plain,flip')
    return proposing_head(teacher).to(device)


def _select_levels(teacher: Teacher, wanted: tuple[str, ...] | None) -> tuple[Level, ...]:
    names = [level.name for level in teacher.levels]
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise InputError(f'--levels: teacher {teacher.name} has {", ".join(names)}, not {unknown[0]}')
    return tuple(level for level in teacher.levels if wanted is None or level.name in wanted)
