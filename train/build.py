"""From a run's settings to the plain values that training needs. The last place where settings are seen."""

from collections.abc import Callable, Sequence
from functools import cache as cached
from pathlib import Path
from typing import Any

from torch import nn

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.data.coco import CocoSet, read_annotations
from mtpd.detectors.detection import neck_of
from mtpd.detectors.export import export_config
from mtpd.detectors.padding import at_geometry
from mtpd.detectors.preprocessing import Preprocessing, read_preprocessing
from mtpd.errors import InputError
from mtpd.geometry import Geometry
from mtpd.losses.decay import Decay
from mtpd.losses.distiller import Distiller
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm, Term
from mtpd_train.cache_fit import require_fit, teacher_levels
from mtpd_train.dataset import DetectionDataset
from mtpd_train.loss_settings import CwdSettings, DistillSettings, MgdSettings, PkdSettings
from mtpd_train.optimizer import Recipe
from mtpd_train.settings import DataSettings, FilesSettings, InitSettings, OptimSettings, StageSettings
from mtpd_train.stage import Stage
from mtpd_train.student import (
    build_student,
    inherit,
    load_backbone,
    load_student,
    require_same_network,
    student_config,
)


def build_stages(settings: Sequence[StageSettings]) -> list[Stage]:
    """Opens the caches, reads the data sets, builds the students, and checks that everything fits.

    All stages are built before the first is trained: a slip in the last must not show after two days.

    Raises:
        InputError: something in a stage file does not fit.
        CacheError: a cache cannot be used, or holds another data set than its stage trains on.
        UnavailableError: pretrained weights cannot be fetched.
    """
    # Stages mostly share their data, and COCO's annotations take seconds to read and gigabytes to hold.
    read = cached(read_annotations)
    stages: list[Stage] = []
    for number, one in enumerate(settings, start=1):
        stage = _build_stage(one, number=number, read=read)
        if stage.origin is None:
            require_same_network(stage.student.model, stages[-1].student.model, number=number)
        stages.append(stage)
    return stages


def _build_stage(settings: StageSettings, *, number: int, read: Callable[[Path], CocoSet]) -> Stage:
    cache = None if settings.cache is None else mtpd.cache.open(settings.cache)
    data = settings.data
    train_folder, train_annotations = _paths(data, data.train)
    train_coco = read(train_annotations)
    config = student_config(settings.student, changes=settings.model)
    preprocessing = _preprocessing(read_preprocessing(config), data, cache)
    student = build_student(
        config, preprocessing=preprocessing, num_classes=len(train_coco.categories), seed=settings.seed
    )
    geometry = preprocessing.geometry
    train_set = DetectionDataset(
        train_coco, train_folder, geometry=geometry, for_training=True, with_masks=student.has_masks
    )
    if not train_set.sizes(with_objects=True):
        raise InputError(f'{train_annotations}: no image has an object to train on; choose another training set')
    val_set = None
    if data.val is not None:
        val_folder, val_annotations = _paths(data, data.val)
        val_coco = read(val_annotations)
        if val_coco.categories != train_coco.categories:
            raise InputError(
                f'{val_annotations}: its categories differ from those of {train_annotations}; '
                'choose another data.val, or null for no evaluation'
            )
        val_set = DetectionDataset(val_coco, val_folder, geometry=geometry, for_training=False, with_masks=False)
    terms = [_term(one) for one in settings.distill]
    if cache is not None and terms:
        neck_of(student.model)
        require_fit(cache, train_set, flip=data.flip)
    distiller = Distiller(terms, student=student.levels, teacher=cache.levels if cache else ())
    return Stage(
        number=number,
        student=student,
        origin=_first_weights(student.model, settings.init, config=config, cache=cache, is_first=number == 1),
        config_text=export_config(
            config,
            preprocessing=preprocessing,
            classes=[category.name for category in train_coco.categories],
            has_masks=student.has_masks,
            evaluated_on=None if val_set is None else (val_set.folder, val_set.coco.path),
        ),
        cache=cache,
        train_set=train_set,
        val_set=val_set,
        distiller=distiller,
        teacher_levels=teacher_levels(terms, student.levels, cache.levels if cache else ()),
        flip=data.flip,
        batch_size=data.batch_size,
        num_workers=data.workers,
        evaluate_every=settings.evaluate.every,
        seed=settings.seed,
        recipe=_recipe(settings.optim),
    )


def _first_weights(
    model: nn.Module, init: InitSettings, *, config: Any, cache: CacheReader | None, is_first: bool
) -> str | None:
    """Gives a student its first weights and says where they come from; None: they come from the stage before."""
    if init.checkpoint is not None:
        origin = load_student(model, init.checkpoint, name='init.checkpoint')
    elif is_first:
        origin = load_backbone(model, init.backbone, config=config)
    else:
        return None
    if init.inherit and cache is not None:
        origin += '; ' + inherit(model, cache.teacher_weights(), init.inherit)
    return origin


def _paths(data: DataSettings, split: str | FilesSettings) -> tuple[Path, Path]:
    """Image folder and annotation file of a split."""
    if isinstance(split, str):
        return data.coco / split, data.coco / 'annotations' / f'instances_{split}.json'
    return split.images, split.annotations


def _preprocessing(own: Preprocessing, data: DataSettings, cache: CacheReader | None) -> Preprocessing:
    """The student's preprocessing at the geometry of the cache, of the stage file, or else its own."""
    if cache is not None:
        return at_geometry(own, cache.geometry)
    if data.geometry is None:
        return at_geometry(own, own.geometry)
    asked = data.geometry
    return at_geometry(own, Geometry(asked.scale, asked.keep_ratio, asked.pad_divisor, asked.pad_size))


def _term(settings: DistillSettings) -> Term:
    decay = Decay(settings.decay.kind, settings.decay.at)
    if isinstance(settings, MgdSettings):
        return MgdTerm(
            levels=settings.levels,
            weight=settings.weight,
            mask_ratio=settings.mask_ratio,
            normalize=settings.normalize,
            scale=settings.scale,
            decay=decay,
        )
    if isinstance(settings, PkdSettings):
        return PkdTerm(levels=settings.levels, weight=settings.weight, adapter=settings.adapter, decay=decay)
    if isinstance(settings, CwdSettings):
        return CwdTerm(
            levels=settings.levels,
            weight=settings.weight,
            temperature=settings.temperature,
            adapter=settings.adapter,
            decay=decay,
        )
    return MaskedMseTerm(
        levels=settings.levels, weight=settings.weight, adapter=settings.adapter, scale=settings.scale, decay=decay
    )


def _recipe(optim: OptimSettings) -> Recipe:
    return Recipe(
        optimizer=optim.type,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        epochs=optim.epochs,
        schedule=optim.schedule,
        milestones=optim.milestones,
        warmup_steps=optim.warmup_iters,
        warmup_ratio=optim.warmup_ratio,
        grad_clip=optim.grad_clip,
        accumulate=optim.accumulate,
        precision=optim.precision,
    )
