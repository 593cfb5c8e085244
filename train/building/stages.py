"""From a run's settings to the plain values that training needs. The last place where settings are seen."""

from collections.abc import Callable, Sequence
from functools import cache as cached
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtpd.data.coco import CocoSet, read_annotations
from mtpd.detectors.activation_checkpointing import checkpoint_activations
from mtpd.detectors.anchors import base_anchors
from mtpd.detectors.export import export_config
from mtpd.detectors.hook_point import NECK, neck_of, student_hook_point
from mtpd.detectors.preprocessing import read_preprocessing
from mtpd.errors import MtpdError
from mtpd.evaluation import require_backend
from mtpd.inheritance import Inheritance
from mtpd.losses.distiller import Distiller
from mtpd.losses.objects.terms import FineGrainedTerm
from mtpd_train.building.data import build_sets, split_paths
from mtpd_train.building.responses import build_responses
from mtpd_train.building.source import build_source, shards_to_shuffle, student_preprocessing
from mtpd_train.building.terms import build_term
from mtpd_train.optimizer import Recipe
from mtpd_train.photometric import Photometric
from mtpd_train.settings.loss_settings import TarHeadSettings
from mtpd_train.settings.stage_settings import InitSettings, OptimSettings, StageSettings
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
        try:
            stage = _build_stage(one, number=number, read=read)
        except MtpdError as error:
            if len(settings) == 1:
                raise
            raise type(error)(f'stage {number}: {error}') from error
        if stage.origin is None:
            require_same_network(stage.student.model, stages[-1].student.model, number=number)
        stages.append(stage)
    return stages


def _build_stage(settings: StageSettings, *, number: int, read: Callable[[Path], CocoSet]) -> Stage:
    require_backend(settings.evaluate.backend)
    source = build_source(settings)
    data = settings.data
    train_coco = read(split_paths(data, data.train)[1])
    config = student_config(settings.student, changes=settings.model)
    preprocessing = student_preprocessing(read_preprocessing(config), data, source)
    student = build_student(
        config, preprocessing=preprocessing, num_classes=len(train_coco.categories), seed=settings.seed
    )
    _save_memory(student.model, settings.optim)
    train_set, val_set = build_sets(data, geometry=preprocessing.geometry, with_masks=student.has_masks, read=read)
    responses = build_responses(settings.distill, student=student.model, source=source)
    terms = [build_term(one) for one in settings.distill if not isinstance(one, TarHeadSettings)]
    if source is not None and settings.distill:
        neck_of(student.model)
    teacher_levels = source.levels if source else ()
    needs_anchors = any(isinstance(term, FineGrainedTerm) for term in terms)
    anchors = base_anchors(student.model) if needs_anchors else None
    distiller = Distiller(terms, student=student.levels, teacher=teacher_levels, anchors=anchors)
    needed = {*distiller.teacher_levels, *(responses.levels if responses else ())}
    if source is not None and settings.distill:
        # Stored proposals are mirrored exactly, so without maps the plain view will do.
        source.require_fit(train_set, flip=data.flip if needed else 0.0)
    origin = _first_weights(student.model, settings.init, config=config, is_first=number == 1)
    inheritance: tuple[Inheritance, ...] = ()
    if settings.init.inherit and source is not None:
        inheritance = inherit(student.model, source.weights(), settings.init.inherit)
    return Stage(
        number=number,
        student=student,
        origin=origin,
        inheritance=inheritance,
        config_text=export_config(
            config,
            preprocessing=preprocessing,
            classes=[category.name for category in train_coco.categories],
            has_masks=student.has_masks,
            evaluated_on=None if val_set is None else (val_set.folder, val_set.coco.path),
        ),
        hook_point=NECK if source is None else student_hook_point(student.model, source.hook_point),
        source=source,
        train_set=train_set,
        val_set=val_set,
        distiller=distiller,
        responses=responses,
        teacher_levels=tuple(level for level in teacher_levels if level in needed),
        flip=data.flip,
        photometric=None if data.photometric is None else Photometric(**data.photometric.model_dump()),
        shards=shards_to_shuffle(data, source, train_set),
        batch_size=data.batch_size,
        num_workers=data.workers,
        evaluate_every=settings.evaluate.every,
        evaluation_backend=settings.evaluate.backend,
        seed=settings.seed,
        recipe=_recipe(settings.optim),
    )


def _first_weights(model: nn.Module, init: InitSettings, *, config: Any, is_first: bool) -> str | None:
    """Gives a student its first weights and says where they come from; None: they come from the stage before."""
    if init.checkpoint is not None:
        return load_student(model, init.checkpoint, name='init.checkpoint')
    return load_backbone(model, init.backbone, config=config) if is_first else None


def _save_memory(model: nn.Module, optim: OptimSettings) -> None:
    if optim.channels_last:
        model.to(memory_format=torch.channels_last)
    if optim.activation_checkpointing:
        checkpoint_activations(model)


def _recipe(optim: OptimSettings) -> Recipe:
    return Recipe(
        optimizer=optim.type,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        epochs=optim.epochs,
        schedule=optim.schedule,
        milestones=optim.milestones,
        min_lr=optim.min_lr,
        warmup_steps=optim.warmup_iters,
        warmup_ratio=optim.warmup_ratio,
        grad_clip=optim.grad_clip,
        accumulate=optim.accumulate,
        precision=optim.precision,
        channels_last=optim.channels_last,
    )
