"""What each stage of a run will read, write and hold, from its caches and networks."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from mtpd.cache.format.arrays import file_place
from mtpd_train.optimization.optimizer import Recipe
from mtpd_train.processes import ALONE, World
from mtpd_train.stage import Stage
from mtpd_train.teachers.cached_teacher import CachedTeacher, buffer_bytes

# Batches that a worker process has under way (torch's DataLoader).
PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class StagePlan:
    """What a stage will take.

    Attributes:
        number: of the stage, from 1.
        num_images: images of an epoch.
        epochs: passes over them.
        steps_per_epoch: optimizer steps of an epoch.
        cache_bytes: read of the cache in an epoch, on average over the views that are drawn.
        student_bytes: of a student's checkpoint.
        progress_bytes: of the state that a stage is resumed from.
        num_students: checkpoints of students that a stage leaves.
        host_bytes: of the codes that are read ahead and of the images under way, at most, by all processes of a
            machine; an estimate.
    """

    number: int
    num_images: int
    epochs: int
    steps_per_epoch: int
    cache_bytes: int
    student_bytes: int
    progress_bytes: int
    num_students: int
    host_bytes: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.epochs * self.steps_per_epoch

    @property
    def left_bytes(self) -> int:
        """What the stage leaves on the disk."""
        return self.num_students * self.student_bytes


def plan_stage(stage: Stage, world: World = ALONE) -> StagePlan:
    """The plan of a stage that the processes of `world` train; nothing is read but the records of its cache."""
    sizes = stage.train_set.sizes(with_objects=True)
    student = _num_bytes(stage.student.model.state_dict().values())
    return StagePlan(
        number=stage.number,
        num_images=len(sizes),
        epochs=stage.recipe.epochs,
        steps_per_epoch=stage.steps_per_epoch,
        cache_bytes=_cache_bytes(stage, num_images=len(sizes)),
        student_bytes=student,
        progress_bytes=(2 if stage.recipe.ema else 1) * student
        + _num_bytes(stage.distiller.state_dict().values())
        + _optimizer_bytes(stage),
        # The last one, the best, and those of the last epochs.
        num_students=1 + (stage.val_set is not None) + min(stage.keep_epochs, stage.recipe.epochs),
        host_bytes=world.local_size * _host_bytes(stage, batch_size=-(-stage.batch_size // world.size)),
    )


def disk_bytes(plans: Iterable[StagePlan]) -> int:
    """The most that a run takes on the disk: what its stages leave, and one state beside the next that replaces it."""
    plans = list(plans)
    left = sum(plan.left_bytes for plan in plans) + plans[-1].student_bytes  # The run has a copy of the last student.
    return left + 2 * max(plan.progress_bytes for plan in plans)


def _cache_bytes(stage: Stage, *, num_images: int) -> int:
    source, names = stage.source, {level.name for level in stage.teacher_levels}
    if not isinstance(source, CachedTeacher) or not stage.is_taught:
        return 0
    shares = {'plain': 1 - stage.flip, 'flip': stage.flip}
    with_rois = stage.responses is not None and stage.responses.head is None
    total = 0.0
    for name, record in source.reader.manifest.files.items():
        place = file_place(name)
        if place is None:
            continue
        if not place.view:  # the proposals, which both views share
            total += record.num_bytes * with_rois
        elif place.array.split('.')[0] in names:
            total += record.num_bytes * shares[place.view]
    return round(total * num_images / len(source.reader))


def _optimizer_bytes(stage: Stage) -> int:
    networks = (stage.student.model, stage.distiller)
    trained = _num_bytes(one for network in networks for one in network.parameters() if one.requires_grad)
    return _moments(stage.recipe) * trained


def _moments(recipe: Recipe) -> int:
    """Values that the optimizer keeps for each parameter."""
    return 2 if recipe.optimizer == 'adamw' else int(recipe.momentum > 0)


def _host_bytes(stage: Stage, *, batch_size: int) -> int:
    """What one process holds whose share of a batch has so many images."""
    geometry = stage.student.preprocessing.geometry
    pixels = max(height * width for height, width in map(geometry.padded, set(stage.train_set.sizes().values())))
    images = PREFETCHED_BATCHES * stage.num_workers * batch_size * 3 * pixels
    if not isinstance(stage.source, CachedTeacher) or not stage.teacher_levels:
        return images
    levels = [level.name for level in stage.teacher_levels]
    return images + buffer_bytes(stage.source.reader, levels=levels, batch_size=batch_size)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
