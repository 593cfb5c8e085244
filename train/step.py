"""One batch of a stage: its images with the teacher's maps, its losses, its gradient."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from mtpd.detectors.detection import collate, detection_losses
from mtpd.detectors.hook_point import captured_maps
from mtpd.detectors.roi_capture import CapturedRois, captured_rois
from mtpd.detectors.transforms import Sample
from mtpd.geometry import Size
from mtpd.losses.valid_mask import valid_cells
from mtpd.pyramid import Level
from mtpd_train.dataset import load_batches
from mtpd_train.responses import response_losses
from mtpd_train.sampling import Request
from mtpd_train.stage import Stage
from mtpd_train.teacher_source import ReadAhead

PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def loaded(stage: Stage, batches: list[list[Request]]) -> Iterator[tuple[list[Sample], ReadAhead]]:
    """Samples from worker processes, and what a thread reads of the teacher, both ahead of time."""
    # In this order: the processes are forked before the thread starts.
    samples = load_batches(stage.train_set, batches, num_workers=stage.num_workers)
    source, names = stage.source, [level.name for level in stage.teacher_levels]
    ahead: Iterable[ReadAhead] = itertools.repeat((), len(batches))
    if source is not None and names:
        ahead = source.read_ahead(batches, levels=names)
    for batch, images, one in zip(batches, samples, ahead, strict=True):
        # A teacher's maps of another image would train without an error, to no use.
        assert [(image.image_id, image.view) for image in images] == batch
        yield images, one


def step_losses(
    stage: Stage,
    samples: Sequence[Sample],
    ahead: ReadAhead,
    *,
    device: torch.device,
    progress: float = 0.0,
) -> dict[str, Tensor]:
    """The detector's own losses and the distillation losses of one batch, by name, weighted and decayed.

    Args:
        stage: what is trained.
        samples: images of the batch.
        ahead: what was read of the teacher for these images.
        device: where to compute.
        progress: share of the stage's optimizer steps that are done, for the decay of weights.
    """
    student, precision = stage.student, stage.recipe.precision
    autocast = torch.autocast(device.type, PRECISIONS[precision], enabled=precision != 'fp32')
    images = collate(samples, preprocessing=student.preprocessing, device=device)
    if stage.source is None or not stage.teacher_levels:
        with autocast:
            return detection_losses(student.model, images, samples)
    padded = images.shape[2], images.shape[3]
    # Before the student's forward pass, whose activations then do not add to what a teacher's own pass takes.
    teacher = stage.source.maps(samples, ahead, levels=stage.teacher_levels, padded=padded, device=device)
    levels = {level.name: level for level in (*student.levels, *stage.teacher_levels)}.values()
    masks = batch_masks([one.resized for one in samples], levels=levels, padded=padded, device=device)
    with autocast:
        with captured_maps(student.model, hook_point=stage.hook_point) as maps, _captured_rois(stage) as rois:
            losses = detection_losses(student.model, images, samples)
        named = {level.name: one for level, one in zip(student.levels, maps, strict=True)}
        boxes = [one.data_sample.gt_instances.bboxes.to(device) for one in samples]
        distillation: dict[str, Tensor] = stage.distiller(named, teacher, masks, boxes=boxes, progress=progress)
        if stage.responses is not None and rois is not None:
            distillation |= response_losses(stage.responses, rois, teacher, samples, progress=progress)
    return losses | distillation


def _captured_rois(stage: Stage) -> AbstractContextManager[CapturedRois | None]:
    return nullcontext() if stage.responses is None else captured_rois(stage.student.model)


def batch_masks(
    resized: Sequence[Size], *, levels: Iterable[Level], padded: Size, device: torch.device
) -> dict[str, Tensor]:
    """Level name -> bool (B, 1, H, W), true at cells that see the image."""
    return {
        level.name: valid_cells(resized, stride=level.stride, grid=level.grid(*padded), device=device)
        for level in levels
    }


def add_gradient(
    stage: Stage,
    samples: Sequence[Sample],
    ahead: ReadAhead,
    *,
    share: float,
    progress: float,
    scaler: GradScaler,
    device: torch.device,
) -> dict[str, Tensor]:
    """Adds `share` times the gradient of a batch to what the parameters hold; returns the losses of the batch."""
    losses = step_losses(stage, samples, ahead, device=device, progress=progress)
    total = torch.stack([loss.float() for loss in losses.values()]).sum()
    torch.autograd.backward(scaler.scale(total * share))
    return losses
