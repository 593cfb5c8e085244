"""One stage of a run: what it is made of, and how that is built from its settings."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache as cached
from functools import partial
from pathlib import Path
from typing import Any

import torch

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
from mtpd.geometry import Level
from mtpd.losses.distiller import Distiller
from mtpd.losses.fine_grained import FineGrainedOptions
from mtpd.losses.options import LevelOptions
from mtpd.losses.tar_head import decay_factors
from mtpd_train.building.data import build_train_set, build_val_set, read_train_annotations
from mtpd_train.building.responses import build_responses
from mtpd_train.building.source import build_source, shards_to_shuffle, student_preprocessing
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.photometric import Photometric
from mtpd_train.data.sampling import Request, training_batches
from mtpd_train.optimization import require_warmup_ends, warmup_of
from mtpd_train.settings.problems import Problem, Problems, Unbuildable, raise_problems
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.student import (
    Student,
    build_student,
    changed_keys,
    first_weights,
    inherit,
    loaded_parts,
    require_same_network,
    student_config,
)
from mtpd_train.teachers.responses import Responses
from mtpd_train.teachers.teacher_source import TeacherSource


@dataclass(frozen=True)
class Stage:
    """One stage, checked and built.

    Attributes:
        number: counts from 1.
        settings: what its stage file says.
        student: the network with the weights it starts from, unless these are those of the stage before.
        origin: description of where these weights come from; None: from the previous stage.
        inheritance: what it then took over from its teacher, tensor by tensor; empty if nothing was requested.
        config_text: mmdet config of the student.
        definition_sha256: hash of the network that the student's config defines, wherever the config is.
        hook_point: where the student's maps are taken, see `mtpd.detectors.features`.
        source: what gives the teacher's maps; None for plain training.
        train_set, val_set: images and annotations; no val_set, no evaluation.
        distiller: the distillation losses on maps; without any in plain training.
        responses: the distillation loss on what a RoI head says, or None.
        teacher_levels: the levels of the source that the losses read.
        photometric: how the student's training images are recoloured; None: not at all.
        shards: image id -> shard of the cache, to shuffle by; None: all images are shuffled together.
        unfrozen: keys of the student's config that were changed because what it freezes has random weights.
        frozen_at_random: parameters that stay as random as they are.
        notes: what of the student's config is not taken over, in lines for the user.
        not_taken_over: what the recipe in the student's config sets beyond this stage, as text.
    """

    number: int
    settings: StageSettings
    student: Student
    origin: str | None
    inheritance: tuple[Inheritance, ...]
    config_text: str
    definition_sha256: str
    hook_point: str
    source: TeacherSource | None
    train_set: DetectionDataset
    val_set: DetectionDataset | None
    distiller: Distiller
    responses: Responses | None
    teacher_levels: tuple[Level, ...]
    photometric: Photometric | None
    shards: Mapping[int, Hashable] | None
    unfrozen: Mapping[str, Any]
    frozen_at_random: tuple[str, ...]
    notes: tuple[str, ...]
    not_taken_over: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the student's outputs."""
        return tuple(category.name for category in self.train_set.coco.categories)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.model.parameters()).device

    def to(self, device: torch.device) -> None:
        """Moves the networks that the stage runs, in place."""
        self.student.model.to(device)
        self.distiller.to(device)
        if self.responses is not None and self.responses.head is not None:
            self.responses.head.to(device)
        if self.source is not None and self.teacher_levels:
            self.source.to(device)

    @property
    def is_taught(self) -> bool:
        """Whether a loss compares the student with a teacher."""
        return self.source is not None and (bool(self.teacher_levels) or self.responses is not None)

    def decay_factors(self, *, progress: float) -> dict[str, float]:
        """What the weights of the decaying losses are multiplied by, by the names of the losses."""
        factors = self.distiller.decay_factors(progress=progress)
        return factors if self.responses is None else factors | decay_factors(self.responses.options, progress=progress)

    def epoch_seed(self, epoch: int) -> tuple[int, int, int]:
        """Seed of everything random in an epoch, from 0: what is drawn does not depend on the epochs before."""
        return self.settings.seed, self.number, epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.epoch_batches(0)) // self.settings.optim.accumulate)

    def epoch_batches(self, epoch: int) -> list[list[Request]]:
        """The batches of an epoch, from 0."""
        sizes, data = self.train_set.sizes(with_objects=True), self.settings.data
        return training_batches(
            sizes, batch_size=data.batch_size, flip=data.flip, seed=self.epoch_seed(epoch), shards=self.shards
        )


def build_stages(
    settings: Sequence[StageSettings], *, place_of: Callable[[int, str], str] = 'stage {}'.format
) -> list[Stage]:
    """Opens the caches, reads the data sets, builds the students, and checks that everything fits.

    All stages are built before the first is trained: a slip in the last must not show after two days. What is wrong
    with them comes in one error.

    Args:
        settings: of the stages, in the order of training.
        place_of: (number of a stage, key) -> where the key is set, for the error.

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
        problems = Problems(partial(place_of, number))
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
    raise_problems(found)
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
        if settings.optim.channels_last:
            student.model.to(memory_format=torch.channels_last)
        if settings.optim.activation_checkpointing:
            checkpoint_activations(student.model)
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
        settings=settings,
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
        photometric=None if data.photometric is None else Photometric(**data.photometric.model_dump()),
        shards=shards_to_shuffle(data, source, train_set),
        unfrozen=unfrozen,
        frozen_at_random=frozen_parameters(student.model, loaded=loaded),
        notes=notes,
    )
    with problems.at('optim.warmup_iters'):
        require_warmup_ends(settings.optim, steps_per_epoch=stage.steps_per_epoch)
    return replace(stage, not_taken_over=_not_taken_over(config, stage))


def _build_distiller(settings: StageSettings, student: Student, source: TeacherSource | None) -> Distiller:
    """The losses on maps, matched to the levels of both sides."""
    if source is not None and settings.distill:
        neck_of(student.model)
    losses = [one for one in settings.distill if isinstance(one, LevelOptions)]
    needs_anchors = any(isinstance(one, FineGrainedOptions) for one in losses)
    anchors = base_anchors(student.model) if needs_anchors else None
    return Distiller(losses, student=student.levels, teacher=source.levels if source else (), anchors=anchors)


def _not_taken_over(config: Any, stage: Stage) -> tuple[str, ...]:
    """Names of what the recipe of `config` asks for and the stage does not do, with the setting that would, if any."""
    optim, data, init = stage.settings.optim, stage.settings.data, stage.settings.init
    geometry = stage.student.preprocessing.geometry
    given = {f'optim.{key}': value for key, value in optim.model_dump().items()}
    if optim.schedule != 'onecycle':
        num_steps = optim.epochs * stage.steps_per_epoch
        given['optim.warmup_iters'], given['optim.warmup_ratio'] = warmup_of(optim, num_steps=num_steps)
    given |= {
        'data.batch_size': data.batch_size,
        'data.flip': data.flip,
        'data.photometric': data.photometric,
        GEOMETRY: (*geometry.scale, geometry.keep_ratio),
        PAD_SIZE: geometry.pad_size,
        PAD_DIVISOR: geometry.pad_divisor,
        # A student that already has weights needs no others.
        WEIGHTS: 'from the previous stage' if stage.origin is None else init.fine_tune or init.checkpoint,
        'seed': stage.settings.seed,
    }
    return tuple(str(one) for one in recipe_ingredients(config) if not one.is_given(given))
