"""From a run's settings to the plain values that training needs. The last place where settings are seen."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache as cached
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtpd.data.coco import CocoSet, read_annotations
from mtpd.detectors.activation_checkpointing import checkpoint_activations
from mtpd.detectors.class_names import require_same_labels
from mtpd.detectors.detector_heads import base_anchors
from mtpd.detectors.export import export_config
from mtpd.detectors.features import NECK, neck_of, student_hook_point
from mtpd.detectors.frozen import frozen_parameters, unfreeze
from mtpd.detectors.inheritance import Inheritance
from mtpd.detectors.model_config import definition_sha256
from mtpd.detectors.recipe import GEOMETRY, PAD_DIVISOR, PAD_SIZE, WEIGHTS, recipe_ingredients
from mtpd.detectors.trainable import require_inputs
from mtpd.evaluation import require_backend
from mtpd.geometry import Geometry
from mtpd.losses.distiller import Distiller
from mtpd.losses.options import LevelOptions
from mtpd_train.building.data import build_train_set, build_val_set, read_train_annotations
from mtpd_train.building.first_weights import changed_keys, first_weights, loaded_parts
from mtpd_train.building.problems import Place, Problem, Problems, Unbuildable, raise_problems
from mtpd_train.building.responses import build_responses
from mtpd_train.building.source import build_source, shards_to_shuffle, student_preprocessing
from mtpd_train.data.photometric import Photometric
from mtpd_train.optimization.optimizer import Recipe, require_warmup_ends
from mtpd_train.settings.stage_settings import OptimSettings, StageSettings
from mtpd_train.stage import Stage
from mtpd_train.student import (
    Student,
    build_student,
    inherit,
    require_same_network,
    student_config,
)
from mtpd_train.teachers.teacher_source import TeacherSource


def build_stages(settings: Sequence[StageSettings], *, place: Place = 'stage {}'.format) -> list[Stage]:
    """Opens the caches, reads the data sets, builds the students, and checks that everything fits.

    All stages are built before the first is trained: a slip in the last must not show after two days. What is wrong
    with them comes in one error.

    Args:
        settings: of the stages, in the order of training.
        place: where a key of a stage is written, for the error.

    Raises:
        InputError: something in a stage file does not fit.
        CacheError: a cache cannot be used, or holds another data set than its stage trains on.
        UnavailableError: pretrained weights cannot be fetched.
    """
    # Stages mostly share their data, and COCO's annotations take seconds to read and gigabytes to hold.
    read = cached(read_annotations)
    stages: list[Stage | None] = []
    found: list[Problem] = []
    loaded: frozenset[str] | None = None
    for number, one in enumerate(settings, start=1):
        loaded = loaded_parts(one.init, before=loaded)
        problems = Problems(number)
        stage = None
        # Errors of the stage without a key are mostly about what the student can and cannot do.
        with problems.at('student'), suppress(Unbuildable):
            stage = _build_stage(one, number=number, loaded=loaded, read=read, problems=problems)
        previous = stages[-1] if stages else None
        if stage is not None and previous is not None and stage.origin is None:
            with problems.at('student'):
                require_same_network(stage.student.model, previous.student.model, number=number)
        stages.append(stage)
        found += problems.found
    raise_problems(found, place)
    return [stage for stage in stages if stage is not None]


def _build_stage(
    settings: StageSettings,
    *,
    number: int,
    loaded: frozenset[str],
    read: Callable[[Path], CocoSet],
    problems: Problems,
) -> Stage:
    data = settings.data
    with problems.at('evaluate.backend'):
        require_backend(settings.evaluate.backend)
    with problems.at('cache' if settings.teacher is None else 'teacher'):
        source = build_source(settings)
    with problems.at('data.train'):
        train_coco = read_train_annotations(data, read=read)
    with problems.at('student'):
        config = student_config(settings.student, changes=settings.model)
        unfrozen = unfreeze(config.model, loaded=loaded, kept=changed_keys(settings.model))
    problems.require_none()

    classes = [category.name for category in train_coco.categories]
    with problems.at('student'):
        preprocessing, notes = student_preprocessing(config, data, source)
        student = build_student(
            config,
            name=settings.student,
            preprocessing=preprocessing,
            num_classes=len(train_coco.categories),
            seed=settings.seed,
        )
    problems.require_none()

    with problems.at('optim.activation_checkpointing'):
        _save_memory(student.model, settings.optim)
    with problems.at('data.train'):
        train_set = build_train_set(data, train_coco, geometry=preprocessing.geometry, with_masks=student.has_masks)
    with problems.at('data.val'):
        val_set = build_val_set(data, train_coco, geometry=preprocessing.geometry, read=read)
    with problems.at('distill'):
        responses = build_responses(settings.distill, student=student.model, classes=classes, source=source)
        distiller = _build_distiller(settings, student, source)
    with problems.at('init'):
        origin = first_weights(student.model, settings.init, config=config, is_first=number == 1)
    inheritance: tuple[Inheritance, ...] = ()
    with problems.at('init.inherit'):
        if settings.init.inherit and source is not None:
            if 'head' in settings.init.inherit:
                require_same_labels(classes, source.classes, name=f'the teacher of {source.name}')
            inheritance = inherit(student.model, source.weights(), settings.init.inherit)
    problems.require_none()

    teacher_levels = source.levels if source else ()
    needed = {*distiller.teacher_levels, *(responses.levels if responses else ())}
    with problems.at('cache'):
        if source is not None and settings.distill:
            # Stored proposals are mirrored exactly, so without maps the plain view will do.
            source.require_fit(train_set, flip=data.flip if needed else 0.0)
    with problems.at('student'):
        sizes = {size for one in (train_set, val_set) if one is not None for size in one.sizes().values()}
        padded = {preprocessing.geometry.padded(size) for size in sizes}
        require_inputs(student.model, levels=student.levels, padded=padded)
    problems.require_none()
    stage = Stage(
        number=number,
        student=student,
        origin=origin,
        inheritance=inheritance,
        config_text=export_config(
            config,
            preprocessing=preprocessing,
            classes=classes,
            has_masks=student.has_masks,
            evaluated_on=None if val_set is None else (val_set.folder, val_set.coco.path),
        ),
        definition_sha256=definition_sha256(config),
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
        save_minutes=settings.save.every_minutes,
        keep_epochs=settings.save.keep,
        recipe=_recipe(settings.optim),
        unfrozen=unfrozen,
        frozen_at_random=frozen_parameters(student.model, loaded=loaded),
        notes=notes,
    )
    recipe = stage.recipe
    with problems.at('optim.warmup_iters'):
        require_warmup_ends(recipe.warmup_steps, epochs=recipe.epochs, steps_per_epoch=stage.steps_per_epoch)
    missing = _not_taken_over(
        config,
        settings,
        geometry=preprocessing.geometry,
        num_steps=recipe.epochs * stage.steps_per_epoch,
        is_first=origin is not None,
    )
    return replace(stage, not_taken_over=missing)


def _build_distiller(settings: StageSettings, student: Student, source: TeacherSource | None) -> Distiller:
    """The losses on maps, matched to the levels of both sides."""
    if source is not None and settings.distill:
        neck_of(student.model)
    losses = [one for one in settings.distill if isinstance(one, LevelOptions)]
    anchors = base_anchors(student.model) if any(one.looks_at_anchors for one in losses) else None
    return Distiller(losses, student=student.levels, teacher=source.levels if source else (), anchors=anchors)


def _save_memory(model: nn.Module, optim: OptimSettings) -> None:
    if optim.channels_last:
        model.to(memory_format=torch.channels_last)
    if optim.activation_checkpointing:
        checkpoint_activations(model)


def _not_taken_over(
    config: Any, settings: StageSettings, *, geometry: Geometry, num_steps: int, is_first: bool
) -> tuple[str, ...]:
    """Names of what the recipe asks for and the stage does not do, each with the setting that would, if one does.

    Args:
        config: the student's mmengine Config.
        settings: of the stage.
        geometry: of the student's inputs.
        num_steps: optimizer steps of the stage.
        is_first: whether the student is a new one, or else that of the stage before.
    """
    optim, data, init = settings.optim, settings.data, settings.init
    given = {f'optim.{key}': value for key, value in optim.model_dump().items()}
    if optim.schedule != 'onecycle':
        given['optim.warmup_iters'] = min(500, num_steps // 10) if optim.warmup_iters is None else optim.warmup_iters
        given['optim.warmup_ratio'] = 0.001 if optim.warmup_ratio is None else optim.warmup_ratio
    given |= {
        'data.batch_size': data.batch_size,
        'data.flip': data.flip,
        'data.photometric': data.photometric,
        GEOMETRY: (*geometry.scale, geometry.keep_ratio),
        PAD_SIZE: geometry.pad_size,
        PAD_DIVISOR: geometry.pad_divisor,
        # A student that already has weights needs no others.
        WEIGHTS: (init.fine_tune or init.checkpoint) if is_first else 'from the previous stage',
        'seed': settings.seed,
    }
    return tuple(str(one) for one in recipe_ingredients(config) if not one.is_given(given))


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
        ema=optim.ema,
        channels_last=optim.channels_last,
    )
