"""One stage of a run, as plain values."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mtpd.detectors.inheritance import Inheritance
from mtpd.evaluation import Backend
from mtpd.geometry import Level
from mtpd.losses.distiller import Distiller
from mtpd.losses.tar_head import decay_factors
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.photometric import Photometric
from mtpd_train.data.sampling import Request, training_batches
from mtpd_train.optimization.optimizer import Recipe
from mtpd_train.student import Student
from mtpd_train.teachers.responses import Responses
from mtpd_train.teachers.teacher_source import TeacherSource


@dataclass(frozen=True)
class Stage:
    """One stage, checked and built.

    Attributes:
        number: counts from 1.
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
        flip: probability of the mirrored view.
        photometric: how the student's training images are recoloured; None: not at all.
        shards: image id -> shard of the cache, to shuffle by; None: all images are shuffled together.
        batch_size, num_workers, evaluate_every, evaluation_backend, seed: as in the stage file.
        save_minutes, keep_epochs: as `save.every_minutes` and `save.keep` in the stage file.
        recipe: how to train.
        unfrozen: keys of the student's config that were changed because what it freezes has random weights.
        frozen_at_random: parameters that stay as random as they are.
        not_taken_over: what the recipe in the student's config sets beyond this stage, as text.
        notes: what of the student's config is not taken over, in lines for the user.
    """

    number: int
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
    flip: float
    photometric: Photometric | None
    shards: Mapping[int, Hashable] | None
    batch_size: int
    num_workers: int
    evaluate_every: int
    evaluation_backend: Backend
    seed: int
    save_minutes: float | None
    keep_epochs: int
    recipe: Recipe
    unfrozen: Mapping[str, Any]
    frozen_at_random: tuple[str, ...]
    not_taken_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        return self.seed, self.number, epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.epoch_batches(0)) // self.recipe.accumulate)

    def epoch_batches(self, epoch: int) -> list[list[Request]]:
        """The batches of an epoch, from 0."""
        sizes = self.train_set.sizes(with_objects=True)
        return training_batches(
            sizes, batch_size=self.batch_size, flip=self.flip, seed=self.epoch_seed(epoch), shards=self.shards
        )
