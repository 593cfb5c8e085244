"""Builds the parts of a stage: its images, its teacher, their common input, its loss on responses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mtpd.cache
from mtpd.cache.format.plan import ShardKey
from mtpd.data.account import nothing_to_train_on
from mtpd.data.coco import CocoSet, coco_paths
from mtpd.detectors.class_names import require_same_labels
from mtpd.detectors.config_input import read_normalisation, read_preprocessing
from mtpd.detectors.detector_heads import student_box_coder, student_num_classes
from mtpd.detectors.features import NECK
from mtpd.detectors.preprocessing import Preprocessing, at_geometry
from mtpd.detectors.teachers import InputOptions, load_teacher
from mtpd.errors import InputError
from mtpd.geometry import Geometry, Level
from mtpd.heads.roi_head import RoiHeadRecord
from mtpd.losses.options import Options
from mtpd.losses.tar_head import TarHeadOptions
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.settings.stage_settings import DataSettings, FilesSettings, StageSettings
from mtpd_train.teachers.cached_teacher import CachedTeacher, cached_teacher
from mtpd_train.teachers.live_teacher import live_teacher, teacher_name
from mtpd_train.teachers.responses import Responses
from mtpd_train.teachers.teacher_source import TeacherSource


def split_paths(data: DataSettings, split: str | FilesSettings) -> tuple[Path, Path]:
    """Image folder and annotation file of a split."""
    if isinstance(split, str):
        return coco_paths(data.coco, split)
    return split.images, split.annotations


def read_train_annotations(data: DataSettings, *, read: Callable[[Path], CocoSet]) -> CocoSet:
    """The annotations of the images to train on, by `read`; their categories make the student's classes.

    Raises:
        InputError: there are no categories, or two have the same name.
    """
    coco = read(split_paths(data, data.train)[1])
    if not coco.categories:
        raise InputError(f"{coco.path}: 'categories' is empty, so there are no classes to learn; list the categories")
    ids: dict[str, int] = {}
    for category in coco.categories:
        if category.name in ids:
            raise InputError(
                f'{coco.path}: categories {ids[category.name]} and {category.id} are both named {category.name!r:.80}; '
                'class names must be unique, rename one'
            )
        ids[category.name] = category.id
    return coco


def build_train_set(data: DataSettings, coco: CocoSet, *, geometry: Geometry, with_masks: bool) -> DetectionDataset:
    """The images of `coco` to train on, resized by `geometry`.

    Raises:
        InputError: images are missing, or there is nothing to train on.
    """
    folder, annotations = split_paths(data, data.train)
    train_set = DetectionDataset(coco, folder, geometry=geometry, for_training=True, with_masks=with_masks)
    if not train_set.sizes(with_objects=True):
        raise InputError(
            f'{annotations}: no image has a usable object: {nothing_to_train_on(coco)}; correct the file or '
            'choose another training set'
        )
    return train_set


def build_val_set(
    data: DataSettings, train_coco: CocoSet, *, geometry: Geometry, read: Callable[[Path], CocoSet]
) -> DetectionDataset | None:
    """The images to evaluate on, if any, resized by `geometry`; their annotations by `read`.

    Raises:
        InputError: there are no images, or some are missing, or the categories are not those of the training set.
    """
    if data.val is None:
        return None
    folder, annotations = split_paths(data, data.val)
    coco = read(annotations)
    if coco.categories != train_coco.categories:
        raise InputError(
            f'{annotations}: its categories differ from those of {train_coco.path}: '
            f'{_first_difference(coco, train_coco)}; choose another data.val, or set it to null'
        )
    if not coco.images:
        raise InputError(f'{annotations}: lists no images; choose another data.val, or set it to null')
    return DetectionDataset(coco, folder, geometry=geometry, for_training=False, with_masks=False)


def _first_difference(coco: CocoSet, train_coco: CocoSet) -> str:
    """The first category that differs, with both names."""
    here, there = ({one.id: one.name for one in several.categories} for several in (coco, train_coco))
    number = next(one for one in sorted(here | there) if here.get(one) != there.get(one))
    names = (f'{one[number]!r:.80}' if number in one else 'missing' for one in (here, there))
    return 'id {} is {} here and {} there'.format(number, *names)


def build_source(settings: StageSettings) -> TeacherSource | None:
    """The teacher of a stage; None for plain training.

    Raises:
        CacheError: its cache cannot be used.
        InputError: the teacher cannot be built.
        UnavailableError: its weights cannot be fetched.
    """
    if settings.cache is not None:
        return cached_teacher(mtpd.cache.open(settings.cache))
    if settings.teacher is None:
        return None
    asked = settings.data.geometry
    teacher = load_teacher(
        settings.teacher,
        checkpoint=settings.checkpoint,
        options=InputOptions(scale=None if asked is None else asked.scale),
        device=torch.device('cpu'),
        trust_checkpoint=settings.trust_checkpoint,
        hook=settings.hook,
    )
    if asked is not None:
        # Only the sizes are overridden, not the way of resizing.
        own = teacher.preprocessing
        geometry = replace(own.geometry, **asked.model_dump(), pad_square=False)
        teacher = replace(teacher, preprocessing=replace(own, geometry=geometry))
    return live_teacher(teacher, name=teacher_name(settings.teacher, settings.checkpoint) or settings.teacher)


def shards_to_shuffle(
    data: DataSettings, source: TeacherSource | None, train_set: DetectionDataset
) -> dict[int, ShardKey] | None:
    """Image id -> shard of the cache, when the stage file asks for a shuffle by shards.

    Raises:
        CacheMismatchError: an image is not in the cache.
    """
    if data.shuffle == 'full' or not isinstance(source, CachedTeacher):
        return None
    return {one: source.reader.shard(one) for one in train_set.sizes(with_objects=True)}


def student_preprocessing(
    config: Any, data: DataSettings, source: TeacherSource | None
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The student's preprocessing at the geometry of the teacher, of the stage file, or else its own.

    Returns:
        the preprocessing, and a line for each part of the config's test pipeline that is not taken over.

    Raises:
        InputError: the config has something that is not supported, and that the geometry does not replace.
    """
    if source is not None:
        geometry = source.geometry
    elif data.geometry is not None:
        geometry = Geometry(**data.geometry.model_dump())
    else:
        own = read_preprocessing(config)
        return at_geometry(own, own.geometry), ()
    normalisation, notes = read_normalisation(config, geometry=geometry)
    return at_geometry(Preprocessing(geometry, normalisation), geometry), notes


def build_responses(
    distill: Sequence[Options], *, student: nn.Module, classes: Sequence[str], source: TeacherSource | None
) -> Responses | None:
    """The loss on responses in `distill`, if there is one; `classes` are the names of the student's labels.

    Raises:
        InputError: the student has no RoI head that can be trained so, or the teacher's does not fit it.
        CacheError: the cache holds no RoI head, or lacks levels that it needs.
    """
    entries = [one for one in distill if isinstance(one, TarHeadOptions)]
    if not entries or source is None:
        return None
    if len(entries) > 1:
        raise InputError('distill lists tar_head twice; remove one')
    (options,) = entries
    coder, num_classes = student_box_coder(student), student_num_classes(student)
    if options.mode == 'head_on_gpu' and source.hook_point != NECK:
        raise InputError(
            f'tar_head: the maps of {source.name} are taken before the norms of its neck, but its RoI head needs '
            'those after; extract the cache with --hook neck (with a `teacher`: set hook to neck)'
        )
    head = source.roi_head() if options.mode == 'head_on_gpu' else None
    of_teacher = source.num_roi_classes() if head is None else head.record.num_classes
    if of_teacher != num_classes:
        raise InputError(
            f'tar_head: the teacher of {source.name} has {of_teacher} classes, the student {num_classes}; '
            'use a teacher trained on the classes of data.train'
        )
    require_same_labels(classes, source.classes, name=f'the teacher of {source.name}')
    return Responses(
        options=options,
        coder=coder,
        num_classes=num_classes,
        head=head,
        levels=() if head is None else _levels(head.record, source),
    )


def _levels(record: RoiHeadRecord, source: TeacherSource) -> tuple[Level, ...]:
    """The levels that a head takes RoIs from, in its order."""
    # Of several maps of one stride the first has the stride's name.
    by_stride = {level.stride: level for level in reversed(source.levels)}
    missing = [stride for stride in record.strides if stride not in by_stride]
    if missing:
        raise InputError(
            f'tar_head: the RoI head of {source.name} needs levels of strides '
            f'{", ".join(map(str, record.strides))}, but it has {", ".join(level.name for level in source.levels)}, '
            f'none of stride {missing[0]}; add that level with --levels when extracting'
        )
    levels = tuple(by_stride[stride] for stride in record.strides)
    wrong = [level for level in levels if level.channels != record.in_channels]
    if wrong:
        raise InputError(
            f'tar_head: the RoI head of {source.name} needs {record.in_channels} channels, but its {wrong[0].name} '
            f'has {wrong[0].channels}; extract the cache again'
        )
    return levels
