"""One batch of a stage: its images with the teacher's maps, its losses, its gradient, by one process or several."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.detectors.detector import CapturedRois, Detector
from mtpd.detectors.map_statistics import MapStatistics
from mtpd.detectors.samples import Sample, collate
from mtpd.detectors.teacher_maps import require_repeated
from mtpd.errors import InputError
from mtpd.geometry import Level, Size
from mtpd.heads.rois import ImageRois
from mtpd.losses.maps import on_full_grid, valid_cells
from mtpd_train.data.dataset import load_batches
from mtpd_train.data.photometric import distorted
from mtpd_train.data.sampling import Request
from mtpd_train.processes import World
from mtpd_train.stage import Stage
from mtpd_train.student import named_failures
from mtpd_train.teachers.responses import response_losses
from mtpd_train.teachers.teacher_source import ReadAhead

# Of a teacher that are looked at before the training starts.
CHECKED_IMAGES = 4
PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def loaded(
    stage: Stage, batches: list[list[Request]], *, num_workers: int | None = None
) -> Iterator[tuple[list[Sample], ReadAhead]]:
    """Samples from worker processes, and what threads read of the teacher, both ahead of time.

    What is read of the teacher for a batch is valid until the next is requested; `num_workers` replaces the stage's.
    """
    # In this order: the processes are forked before the threads start.
    num_workers = stage.settings.data.workers if num_workers is None else num_workers
    samples = load_batches(stage.train_set, batches, num_workers=num_workers, pin_memory=stage.device.type == 'cuda')
    source, names, with_rois = stage.source, [level.name for level in stage.teacher_levels], stage.uses_stored_rois
    ahead: Iterable[ReadAhead] = itertools.repeat(ReadAhead(), len(batches))
    if source is not None and (names or with_rois):
        ahead = source.read_ahead(batches, levels=names, with_rois=with_rois, device=stage.device)
    for batch, images, one in zip(batches, samples, ahead, strict=True):
        # Training with a teacher's maps of another image would raise no error.
        assert [(image.image_id, image.view) for image in images] == batch
        yield images, one


@dataclass(frozen=True)
class Targets:
    """The teacher's side of a batch."""

    maps: Mapping[str, EncodedMaps]  # level name -> the teacher's maps (B, C, H, W)
    masks: Mapping[str, Tensor]  # of both sides' levels: bool (B, 1, H, W), true at cells that see the image
    boxes: Sequence[Tensor]  # the objects of each image, (N, 4) xyxy in px of the network input
    rois: Sequence[ImageRois]  # the teacher's stored proposals, in px of the original image; none where no loss asks


@dataclass(frozen=True)
class StudentOutputs:
    """What the student made of a batch."""

    losses: dict[str, Tensor]  # the detector's own, by name
    maps: Mapping[str, Tensor]  # level name -> (B, C, H, W); empty in plain training
    rois: CapturedRois | None  # its proposals and what it says about them, where a teacher's head is to judge them


def step_losses(
    stage: Stage, samples: Sequence[Sample], ahead: ReadAhead, *, progress: float = 0.0, epoch: int = 0
) -> dict[str, Tensor]:
    """The detector's own losses and the distillation losses of one batch, by name, weighted and decayed.

    `progress` is the share of the stage's optimizer steps that are done, `epoch` (from 0) seeds what is drawn.
    """
    samples = to_device(samples, stage.device)
    seen = seen_by_student(stage, samples, epoch=epoch)
    images = collate(seen, preprocessing=stage.student.preprocessing, device=stage.device)
    # Before the student's forward pass, whose activations then do not add to what a teacher's own pass takes.
    targets = teacher_targets(stage, samples, ahead, images)
    outputs = student_pass(stage, samples, images)
    return outputs.losses | distillation_losses(stage, samples, outputs, targets, progress=progress)


def teacher_targets(stage: Stage, samples: Sequence[Sample], ahead: ReadAhead, images: Tensor) -> Targets | None:
    """What the student is compared with on `images` (B, 3, H, W), those of `collate`; None in plain training."""
    if stage.source is None or not stage.is_taught:
        return None
    padded, device = (images.shape[2], images.shape[3]), images.device
    levels = {level.name: level for level in (*stage.student.levels, *stage.teacher_levels)}.values()
    return Targets(
        maps=stage.source.maps(samples, ahead, levels=stage.teacher_levels, device=device),
        masks=batch_masks([one.resized for one in samples], levels=levels, padded=padded, device=device),
        boxes=[one.objects.boxes.to(device, non_blocking=True) for one in samples],
        rois=ahead.rois,
    )


def batch_masks(
    resized: Sequence[Size], *, levels: Iterable[Level], padded: Size, device: torch.device
) -> dict[str, Tensor]:
    """Level name -> bool (B, 1, H, W), true at cells that see the image."""
    masks = {}
    for level in levels:
        masks[level.name] = valid_cells(resized, stride=level.stride, grid=level.grid(*padded), device=device)
    return masks


def to_device(samples: Sequence[Sample], device: torch.device) -> list[Sample]:
    """The samples with their pixels on `device`, where student and teacher take them from."""
    return [replace(one, image=one.image.to(device, non_blocking=True)) for one in samples]


def seen_by_student(stage: Stage, samples: Sequence[Sample], *, epoch: int) -> Sequence[Sample]:
    """The samples as the student is to see them; a teacher in the loop gets the clean ones, as a cache's has."""
    photometric = stage.settings.data.photometric
    if photometric is None:
        return samples
    return distorted(samples, photometric, seed=stage.epoch_seed(epoch))


def student_pass(stage: Stage, samples: Sequence[Sample], images: Tensor) -> StudentOutputs:
    """The student's forward pass over `images`, which `collate` has made of the samples."""
    student = stage.student
    named = named_failures(student.name, 'compute its losses', image_ids=[one.image_id for one in samples])
    if stage.settings.optim.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with _autocast(stage, images.device):
        if not stage.is_taught:
            with named:
                return StudentOutputs(_own_losses(student, images, samples), {}, None)
        # Its proposals are caught where the teacher's head is to judge them.
        is_judged = stage.responses is not None and stage.responses.head is not None
        catching_rois = student.captured_rois() if is_judged else nullcontext()
        with student.captured_maps(hook_point=stage.hook_point) as maps, catching_rois as rois, named:
            losses = _own_losses(student, images, samples)
    return StudentOutputs(losses, {level.name: one for level, one in zip(student.levels, maps, strict=True)}, rois)


def _own_losses(student: Detector, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """The detector's own losses; detectors may be a user's."""
    losses: dict[str, Any] = student.losses(images, samples)
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f'student {student.name}: its loss {name} is {found}, expected a tensor with one number')
    return losses


def distillation_losses(
    stage: Stage, samples: Sequence[Sample], outputs: StudentOutputs, targets: Targets | None, *, progress: float
) -> dict[str, Tensor]:
    """The distillation losses by name, weighted and decayed; none in plain training."""
    if targets is None:
        return {}
    full = {name: on_full_grid(values, targets.masks[name]) for name, values in outputs.maps.items()}
    maps, seen = ({name: pair[number] for name, pair in full.items()} for number in (0, 1))
    with _autocast(stage, next(iter(outputs.maps.values())).device):
        losses: dict[str, Tensor] = stage.distiller(
            maps, targets.maps, {**targets.masks, **seen}, boxes=targets.boxes, progress=progress
        )
        if stage.responses is not None:
            losses |= response_losses(
                stage.responses,
                samples,
                targets.maps,
                targets.rois,
                student=stage.student,
                maps=list(outputs.maps.values()),
                captured=outputs.rois,
                progress=progress,
            )
    return losses


def _autocast(stage: Stage, device: torch.device) -> torch.autocast:
    precision = stage.settings.optim.precision
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != 'fp32')


def add_gradient(
    stage: Stage,
    samples: Sequence[Sample],
    ahead: ReadAhead,
    *,
    share: float,
    progress: float = 0.0,
    epoch: int = 0,
    scaler: GradScaler,
    network: DistributedDataParallel | None = None,
    ends_step: bool = True,
) -> dict[str, Tensor]:
    """Adds `share` times the gradient of a batch to what the parameters hold; returns the losses of the batch.

    With a `network` all processes do so, each with its own batch; at the end of a step all hold the mean gradient.
    """
    with nullcontext() if network is None or ends_step else network.no_sync():
        if network is None:
            losses = step_losses(stage, samples, ahead, progress=progress, epoch=epoch)
        else:
            losses = network(samples, ahead, progress=progress, epoch=epoch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        torch.autograd.backward(scaler.scale(total * share))
    return losses


class StepLosses(nn.Module):
    """`step_losses` with all that it trains as its parameters."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self.model = stage.student.module
        self.distiller = stage.distiller

    def forward(self, samples: Sequence[Sample], ahead: ReadAhead, **options: Any) -> dict[str, Tensor]:
        """The losses of a batch by name."""
        return step_losses(self._stage, samples, ahead, **options)


def build_network(stage: Stage, world: World) -> DistributedDataParallel | None:
    """The stage's losses for training by several processes, each with its share of every batch; None for one process.

    All processes get the weights and buffers of process 0. Gradients and losses are means over the images of the global
    batch, so they are those of one process wherever a loss is a mean over images of equal weight. A loss that divides
    by what it counts in a batch (objects, cells, a variance) does so in each process by itself, except for those heads
    of mmdet that count in all processes. Batch statistics are of process 0, random draws each process's own.
    """
    if world.size == 1:
        return None
    # Which layers take part depends on the images: a mask head has nothing to do without objects.
    return DistributedDataParallel(StepLosses(stage), find_unused_parameters=True, gradient_as_bucket_view=True)


def check_teacher(stage: Stage) -> None:
    """Looks at the first images of a stage; refuses a teacher whose maps are nearly constant where a loss compares."""
    if stage.source is None or not stage.teacher_levels:
        return
    # The same in all processes, so that they end together; without processes that read, which start with the training.
    requests = stage.epoch_batches(0)[0][:CHECKED_IMAGES]
    for samples, ahead in loaded(stage, [requests], num_workers=0):
        moved = to_device(samples, stage.device)
        images = collate(moved, preprocessing=stage.student.preprocessing, device=stage.device)
        targets = teacher_targets(stage, moved, ahead, images)
        assert targets is not None
        if stage.source.kind == 'teachers':
            again = stage.source.maps(moved, ahead, levels=stage.teacher_levels, device=images.device)
            first, second = ([one.values() for one in maps.values()] for maps in (targets.maps, again))
            require_repeated(first, second, name=stage.source.name)
        for level in stage.teacher_levels:
            statistics = MapStatistics(level.name)
            statistics.add(targets.maps[level.name].values(), targets.masks[level.name])
            statistics.require_varied(name=stage.source.name, advice='exclude the level with `levels`')
