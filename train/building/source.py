"""What a stage learns from, and the input that student and teacher share."""

from dataclasses import replace
from typing import Any

import torch

import mtpd.cache
from mtpd.cache.format.plan import ShardKey
from mtpd.detectors.config_input import read_normalisation, read_preprocessing
from mtpd.detectors.preprocessing import Preprocessing, at_geometry
from mtpd.detectors.teachers import InputOptions, load_teacher
from mtpd.geometry import Geometry
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.settings.stage_settings import DataSettings, GeometrySettings, StageSettings
from mtpd_train.teachers.cached_teacher import CachedTeacher, cached_teacher
from mtpd_train.teachers.live_teacher import live_teacher, teacher_name
from mtpd_train.teachers.teacher_source import TeacherSource


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
        # How it resizes stays its own; to which size is what is asked.
        own = teacher.preprocessing
        geometry = replace(
            own.geometry,
            scale=asked.scale,
            keep_ratio=asked.keep_ratio,
            pad_divisor=asked.pad_divisor,
            pad_size=asked.pad_size,
            pad_square=False,
        )
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
        geometry = _geometry(data.geometry)
    else:
        own = read_preprocessing(config)
        return at_geometry(own, own.geometry), ()
    normalisation, notes = read_normalisation(config, geometry=geometry)
    return at_geometry(Preprocessing(geometry, normalisation), geometry), notes


def _geometry(asked: GeometrySettings) -> Geometry:
    return Geometry(asked.scale, asked.keep_ratio, asked.pad_divisor, asked.pad_size)
