"""One stage of a run: its parts, and how they are built from its settings."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache as cached
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mtpd.cache
from mtpd.data.coco import CocoSet, read_annotations
from mtpd.detectors.backbones import checkpoint_activations
from mtpd.detectors.class_names import require_same_labels
from mtpd.detectors.detector import Definition, Detector
from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.ingredients import GEOMETRY, PAD_DIVISOR, PAD_SIZE, WEIGHTS, Ingredient
from mtpd.detectors.inheritance import Inheritance
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.preprocessing import Preprocessing
from mtpd.detectors.references import define_detector, load_teacher
from mtpd.errors import InputError
from mtpd.evaluation import require_backend
from mtpd.geometry import Geometry, Level
from mtpd.losses.distiller import Distiller
from mtpd.losses.options import LevelOptions
from mtpd.losses.tar_head import decay_factors
from mtpd_train.data.dataset import DetectionDataset, build_train_set, build_val_set, read_train_annotations
from mtpd_train.data.sampling import Request, num_batches, training_batches
from mtpd_train.optimization import layer_factors, require_warmup_ends, warmup_of
from mtpd_train.settings.problems import Problem, Problems, Unbuildable, raise_problems
from mtpd_train.settings.stage_settings import DataSettings, StageSettings, cache_name
from mtpd_train.student import (
    changed_keys,
    first_weights,
    frozen_parameters,
    inherit,
    loaded_parts,
    named_failures,
    require_batches,
    require_same_network,
)
from mtpd_train.teachers.cached_teacher import cached_teacher
from mtpd_train.teachers.live_teacher import live_teacher, teacher_name
from mtpd_train.teachers.responses import Responses, build_responses
from mtpd_train.teachers.several_caches import several_caches
from mtpd_train.teachers.teacher_source import TeacherSource


@dataclass(frozen=True)
class Stage:
    """One stage, checked and built."""

    number: int  # from 1
    settings: StageSettings
    student: Detector  # with the weights it starts from, unless these are those of the stage before
    origin: str | None  # where these weights come from, as text; None: from the stage before
    inheritance: tuple[Inheritance, ...]  # what was then copied from the teacher; empty if not requested
    config_name: str  # of the file that the student is built from again, beside its weights
    config_text: str  # the content of that file
    definition_sha256: str  # of the network
    recipe: tuple[Ingredient, ...]  # what its authors train it with
    hook_point: str  # where the student's maps are taken, see `mtpd.detectors.hook_points`
    source: TeacherSource | None  # the teacher; None: plain training
    train_set: DetectionDataset
    val_set: DetectionDataset | None  # None: no evaluation
    distiller: Distiller  # the losses on maps; without any in plain training
    responses: Responses | None  # the loss on the outputs of a RoI head
    teacher_levels: tuple[Level, ...]  # those of the source that the losses read
    shards: Mapping[int, Hashable] | None  # image id -> shard of the cache, to shuffle by; None: shuffle all images
    unfrozen: Mapping[str, Any]  # keys of the config that were changed because what it freezes has random weights
    frozen_at_random: tuple[str, ...]  # names of frozen parameters with random weights
    notes: tuple[str, ...]  # what of the config's test pipeline is not taken over, in lines for the user

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the student's outputs."""
        return tuple(category.name for category in self.train_set.coco.categories)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.student.device

    def to(self, device: torch.device) -> None:
        """Moves the networks that the stage runs, in place."""
        self.student.module.to(device)
        self.distiller.to(device)
        if self.responses is not None and self.responses.head is not None:
            self.responses.head.to(device)
        if self.source is not None and self.teacher_levels:
            self.source.to(device)

    @property
    def is_taught(self) -> bool:
        """Whether any loss compares the student with a teacher."""
        return self.source is not None and (bool(self.teacher_levels) or self.responses is not None)

    @property
    def uses_stored_rois(self) -> bool:
        """Whether a loss needs the teacher's stored proposals; with a head of the teacher it needs the student's."""
        return self.responses is not None and self.responses.head is None

    def decay_factors(self, *, progress: float) -> dict[str, float]:
        """Name of each decaying loss -> the factor of its weight."""
        factors = self.distiller.decay_factors(progress=progress)
        return factors if self.responses is None else factors | decay_factors(self.responses.options, progress=progress)

    def epoch_seed(self, epoch: int) -> tuple[int, int, int]:
        """Seed of everything random in an epoch, from 0: what is drawn does not depend on the epochs before."""
        return self.settings.seed, self.number, epoch

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return num_batches(len(self.train_set.sizes(with_objects=True)), self.settings.data.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_batches // self.settings.optim.accumulate)

    def epoch_batches(self, epoch: int) -> list[list[Request]]:
        """The batches of an epoch, from 0."""
        geometry, data, seed = self.student.preprocessing.geometry, self.settings.data, self.epoch_seed(epoch)
        of_size = cached(geometry.padded)  # a data set has far fewer sizes than images
        padded = {image_id: of_size(size) for image_id, size in self.train_set.sizes(with_objects=True).items()}
        return training_batches(padded, batch_size=data.batch_size, flip=data.flip, seed=seed, shards=self.shards)

    @property
    def not_taken_over(self) -> tuple[str, ...]:
        """What the student's recipe asks for and the stage does not do, with the setting that would, if any."""
        optim, data, init = self.settings.optim, self.settings.data, self.settings.init
        geometry = self.student.preprocessing.geometry
        given = {f'optim.{key}': value for key, value in optim.model_dump().items()}
        if optim.schedule != 'onecycle':
            num_steps = optim.epochs * self.steps_per_epoch
            given['optim.warmup_iters'], given['optim.warmup_ratio'] = warmup_of(optim, num_steps=num_steps)
        given |= {
            'data.batch_size': data.batch_size,
            'data.flip': data.flip,
            'data.photometric': data.photometric,
            GEOMETRY: (*geometry.scale, geometry.keep_ratio),
            PAD_SIZE: geometry.pad_size,
            PAD_DIVISOR: geometry.pad_divisor,
            # A student that already has weights needs no others.
            WEIGHTS: 'from the previous stage' if self.origin is None else init.fine_tune or init.checkpoint,
            'seed': self.settings.seed,
        }
        return tuple(str(one) for one in self.recipe if not one.is_given(given))


def build_stages(
    settings: Sequence[StageSettings],
    *,
    place_of: Callable[[int, str], str] = 'stage {}'.format,
    num_processes: int = 1,
) -> list[Stage]:
    """Opens the caches, reads the data sets, builds the students, and checks that everything fits.

    All errors of all stages are reported together, before the first is trained, in one MtpdError; `place_of` is (number
    of a stage, key) -> where the key is set. `num_processes` divide each batch.
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
        # Errors without a key are mostly about the student.
        with problems.at('student'), suppress(Unbuildable):
            stage = _build_stage(
                one, number=number, loaded=loaded, read=read, problems=problems, num_processes=num_processes
            )
        previous = stages[-1] if stages else None
        with problems.at('student'):
            if stage is not None and previous is not None and stage.origin is None:
                require_same_network(stage.student.module, previous.student.module, number=number)
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
    num_processes: int,
) -> Stage:
    data = settings.data
    with problems.at('evaluate.backend'):
        require_backend(settings.evaluate.backend)
    with problems.at('cache' if settings.teacher is None else 'teacher'):
        source = _open_source(settings)
    with problems.at('data.train'):
        train_coco = read_train_annotations(data, read=read)
    with problems.at('student'):
        definition = define_detector(settings.student, settings.model)
        definition.require_trainable()
        unfrozen = definition.unfreeze(loaded=loaded, kept=changed_keys(settings.model))
    problems.require_none()

    classes = [category.name for category in train_coco.categories]
    with problems.at('student'):
        preprocessing, notes = _student_preprocessing(definition, data, source)
        torch.manual_seed(settings.seed)
        student = definition.build(preprocessing, num_classes=len(classes), loaded=loaded)
    problems.require_none()

    with problems.at('optim.activation_checkpointing'):
        if settings.optim.channels_last:
            student.module.to(memory_format=torch.channels_last)
        if settings.optim.activation_checkpointing:
            checkpoint_activations(student.module.get_submodule(student.backbone))
    with problems.at('optim.layer_decay'):
        if settings.optim.layer_decay != 1:
            layer_factors(student.module, student.backbone, decay=settings.optim.layer_decay)
    with problems.at('data.train'):
        train_set = build_train_set(data, train_coco, geometry=preprocessing.geometry, with_masks=student.has_masks)
    with problems.at('data.val'):
        val_set = build_val_set(data, train_coco, geometry=preprocessing.geometry, read=read)
    with problems.at('distill'):
        responses = build_responses(settings.distill, student=student, classes=classes, source=source)
        distiller = _build_distiller(settings, student, source)
    with problems.at('init'):
        origin = first_weights(student, settings.init, definition=definition, is_first=number == 1)
    inheritance: tuple[Inheritance, ...] = ()
    with problems.at('init.inherit'):
        if settings.init.inherit and source is not None:
            student.require_inheritance()
            if 'head' in settings.init.inherit:
                require_same_labels(classes, source.classes, name=f'the teacher of {source.name}')
            inheritance = inherit(student.module, source.weights(), settings.init.inherit)
    problems.require_none()

    teacher_levels = source.levels if source else ()
    needed = {*distiller.teacher_levels, *(responses.levels if responses else ())}
    with problems.at('cache'):
        if source is not None and settings.distill:
            # Stored proposals are mirrored exactly, so without maps the plain view will do.
            source.require_fit(train_set, flip=data.flip if needed else 0.0)
            if isinstance(settings.cache, tuple):
                unused = [one.name for one, names in source.caches([level.name for level in needed]) if not names]
                if unused:
                    raise InputError(f'no loss learns from {unused[0]}; remove it, or name it as `teacher` of a loss')
    with problems.at('student'):
        sizes = {size for one in (train_set, val_set) if one is not None for size in one.sizes().values()}
        padded = {preprocessing.geometry.padded(size) for size in sizes}
        with named_failures(student.name, 'take these inputs'):
            student.require_inputs(padded)
    with problems.at('data.batch_size'):
        num_images = len(train_set.sizes(with_objects=True))
        require_batches(student, num_images=num_images, batch_size=data.batch_size, num_processes=num_processes)
    problems.require_none()
    shards = None
    if data.shuffle == 'shards' and source is not None:
        # Of several caches the first: their shards hold the same images where their levels are alike.
        reader = source.caches(())[0][0]
        shards = {image_id: reader.shard(image_id) for image_id in train_set.sizes(with_objects=True)}
    evaluated_on = None if val_set is None else (val_set.folder, val_set.coco.path)
    config_name, config_text = definition.description(student, classes=classes, evaluated_on=evaluated_on)
    stage = Stage(
        number=number,
        settings=settings,
        student=student,
        origin=origin,
        inheritance=inheritance,
        config_name=config_name,
        config_text=config_text,
        definition_sha256=definition.sha256,
        recipe=tuple(definition.recipe()),
        hook_point=NECK_MAPS if source is None else student.hook_point(source.hook_point),
        source=source,
        train_set=train_set,
        val_set=val_set,
        distiller=distiller,
        responses=responses,
        teacher_levels=tuple(level for level in teacher_levels if level in needed),
        shards=shards,
        unfrozen=unfrozen,
        frozen_at_random=frozen_parameters(student, loaded=loaded),
        notes=notes,
    )
    with problems.at('optim.warmup_iters'):
        require_warmup_ends(settings.optim, steps_per_epoch=stage.steps_per_epoch)
    return stage


def _open_source(settings: StageSettings) -> TeacherSource | None:
    """The teacher of a stage; None for plain training."""
    if settings.cache is not None:
        data, places = settings.data, settings.cache if isinstance(settings.cache, tuple) else (settings.cache,)
        sources = {}
        for place in places:
            reader = mtpd.cache.open(place, mirror=data.mirror, mirror_bytes=round(1e9 * data.mirror_gb))
            sources[cache_name(place)] = cached_teacher(
                reader, num_threads=data.read_threads, num_ahead=data.read_ahead
            )
        return several_caches(sources) if len(sources) > 1 else next(iter(sources.values()))
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
    return live_teacher(teacher, name=teacher_name(settings.teacher, settings.checkpoint))


def _student_preprocessing(
    definition: Definition, data: DataSettings, source: TeacherSource | None
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The input at the geometry of the teacher, of the stage file, or else the student's own; notes for the user."""
    geometry = None if data.geometry is None else Geometry(**data.geometry.model_dump())
    return definition.preprocessing(geometry if source is None else source.geometry)


def _build_distiller(settings: StageSettings, student: Detector, source: TeacherSource | None) -> Distiller:
    """The losses on maps, matched to the levels of both sides."""
    if source is not None and settings.distill:
        student.require_neck()
    losses = [one for one in settings.distill if isinstance(one, LevelOptions)]
    anchors = student.base_anchors() if any(one.looks_at_anchors for one in losses) else None
    teachers = source.teachers if source else {'': ()}
    return Distiller(losses, student=student.levels, teacher=teachers, anchors=anchors)
