"""From a stage's settings to the plain values that its training needs. The last place where settings are seen."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.data.coco import read_annotations
from mtpd.detectors.transforms import View
from mtpd.errors import CacheMismatchError, InputError
from mtpd.geometry import Geometry
from mtpd.losses.distiller import Distiller
from mtpd.losses.terms import MaskedMseTerm, MgdTerm, Term
from mtpd.pyramid import Level
from mtpd_train.dataset import DetectionDataset
from mtpd_train.settings import DataSettings, DistillSettings, FilesSettings, MgdSettings, OptimSettings, StageSettings
from mtpd_train.student import Student, build_student


@dataclass(frozen=True)
class Stage:
    """One stage, checked and built.

    Attributes:
        number: counts from 1.
        student: the network with random weights.
        cache: the teacher's, or None for plain training.
        geometry: of every input of the stage.
        train_set, val_set: images and annotations; no val_set, no evaluation.
        distiller: the distillation losses; without any in plain training.
        teacher_levels: the cached levels that the losses read.
        flip: probability of the mirrored view.
        batch_size, num_workers, evaluate_every, seed: as in the stage file.
        optim: how to train.
    """

    number: int
    student: Student
    cache: CacheReader | None
    geometry: Geometry
    train_set: DetectionDataset
    val_set: DetectionDataset | None
    distiller: Distiller
    teacher_levels: tuple[Level, ...]
    flip: float
    batch_size: int
    num_workers: int
    evaluate_every: int
    seed: int
    optim: OptimSettings


def build_stage(settings: StageSettings, *, number: int) -> Stage:
    """Opens the cache, reads the data set, builds the student, and checks that they fit each other.

    Raises:
        InputError: something in the stage file does not fit.
        CacheError: the cache cannot be used, or holds another data set than the stage trains on.
    """
    cache = None if settings.cache is None else mtpd.cache.open(settings.cache)
    data = settings.data
    train_folder, train_annotations = split_paths(data, data.train)
    train_coco = _read_annotations(train_annotations)
    student = build_student(
        settings.student, changes=settings.model, num_classes=len(train_coco.categories), seed=settings.seed
    )
    geometry = _geometry(data, cache, student)
    train_set = DetectionDataset(
        train_coco, train_folder, geometry=geometry, for_training=True, with_masks=student.has_masks
    )
    if not train_set.sizes(with_objects=True):
        raise InputError(f'{train_annotations}: no image has an object to train on')
    val_set = None
    if data.val is not None:
        val_folder, val_annotations = split_paths(data, data.val)
        val_coco = _read_annotations(val_annotations)
        if val_coco.categories != train_coco.categories:
            raise InputError(f'{val_annotations}: its categories differ from those of {train_annotations}')
        val_set = DetectionDataset(val_coco, val_folder, geometry=geometry, for_training=False, with_masks=False)
    terms = [_term(one) for one in settings.distill]
    if cache is not None:
        _require_fit(cache, train_set, flip=data.flip)
    teacher_levels = _teacher_levels(terms, student, cache)
    return Stage(
        number=number,
        student=student,
        cache=cache,
        geometry=geometry,
        train_set=train_set,
        val_set=val_set,
        distiller=Distiller(terms, student=student.levels, teacher=cache.levels if cache else ()),
        teacher_levels=teacher_levels,
        flip=data.flip,
        batch_size=data.batch_size,
        num_workers=data.workers,
        evaluate_every=settings.evaluate.every,
        seed=settings.seed,
        optim=settings.optim,
    )


# The stages of a run share their data; COCO's annotations take seconds to read and gigabytes to hold.
_read_annotations = lru_cache(maxsize=4)(read_annotations)


def split_paths(data: DataSettings, split: str | FilesSettings) -> tuple[Path, Path]:
    """Image folder and annotation file of a split."""
    if isinstance(split, str):
        return data.coco / split, data.coco / 'annotations' / f'instances_{split}.json'
    return split.images, split.annotations


def _geometry(data: DataSettings, cache: CacheReader | None, student: Student) -> Geometry:
    if cache is not None:
        return cache.geometry
    if data.geometry is None:
        return student.preprocessing.geometry
    asked = data.geometry
    return Geometry(asked.scale, asked.keep_ratio, asked.pad_divisor, asked.pad_size)


def _term(settings: DistillSettings) -> Term:
    if isinstance(settings, MgdSettings):
        return MgdTerm(
            levels=settings.levels,
            weight=settings.weight,
            mask_ratio=settings.mask_ratio,
            normalize=settings.normalize,
            scale=settings.scale,
        )
    return MaskedMseTerm(levels=settings.levels, weight=settings.weight, adapter=settings.adapter, scale=settings.scale)


def _teacher_levels(terms: list[Term], student: Student, cache: CacheReader | None) -> tuple[Level, ...]:
    """The cached levels that some loss reads: the others stay on the disk."""
    if cache is None:
        return ()
    shared = {level.stride for level in student.levels}
    return tuple(
        level
        for level in cache.levels
        if any(level.stride in shared if term.levels is None else level.name in term.levels for term in terms)
    )


def _require_fit(cache: CacheReader, train_set: DetectionDataset, *, flip: float) -> None:
    """The cache must hold just this data set, in every view that training draws."""
    coco = train_set.coco
    found = cache.manifest.description.fingerprint.get('data', {}).get('annotations')
    if found != coco.sha256:
        raise CacheMismatchError(
            f'{cache.path}: was made from another annotation file than {coco.path} (sha256 {str(found)[:12]}... there, '
            f'{coco.sha256[:12]}... here); extract a cache of this data set'
        )
    missing = [image_id for image_id in train_set.sizes(with_objects=True) if image_id not in cache]
    if missing:
        raise CacheMismatchError(
            f'{cache.path}: lacks {len(missing)} of the images of {coco.path}, the first is {missing[0]}; '
            'extract it without --limit'
        )
    views: tuple[View, ...] = cache.views
    needed = {'plain'} if flip == 0 else {'flip'} if flip == 1 else {'plain', 'flip'}
    lacking = sorted(needed - set(views))
    if lacking:
        raise CacheMismatchError(
            f'{cache.path}: holds the views {", ".join(views)} and data.flip is {flip}, which needs {lacking[0]}; '
            'extract with --views plain,flip, or set data.flip to 0'
        )
