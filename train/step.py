"""One batch of a stage: its images with the teacher's codes, its losses, its gradient."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from mtpd.detectors.detection import captured_maps, collate, detection_losses
from mtpd.detectors.transforms import Sample
from mtpd.prefetch import prefetched
from mtpd_train.dataset import load_batches
from mtpd_train.sampling import Request
from mtpd_train.stage import Stage
from mtpd_train.teacher_maps import Encoded, batch_maps, batch_masks, read_batch

PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def loaded(stage: Stage, batches: list[list[Request]]) -> Iterator[tuple[list[Sample], Sequence[Encoded]]]:
    """Samples from worker processes and the teacher's codes from a thread, both read ahead."""
    # In this order: the processes are forked before the thread starts.
    samples = load_batches(stage.train_set, batches, num_workers=stage.num_workers)
    codes: Iterable[Sequence[Encoded]] = itertools.repeat((), len(batches))
    cache, names = stage.cache, [level.name for level in stage.teacher_levels]
    if cache is not None and names:
        codes = prefetched(lambda batch: read_batch(cache, batch, levels=names), batches, num_threads=1, depth=2)
    for batch, images, encoded in zip(batches, samples, codes, strict=True):
        # A teacher's maps of another image would train without an error, to no use.
        assert [(image.image_id, image.view) for image in images] == batch
        yield images, encoded


def step_losses(
    stage: Stage,
    samples: Sequence[Sample],
    encoded: Sequence[Encoded],
    *,
    device: torch.device,
    progress: float = 0.0,
) -> dict[str, Tensor]:
    """The detector's own losses and the distillation losses of one batch, by name, weighted and decayed.

    Args:
        stage: what is trained.
        samples: images of the batch.
        encoded: the teacher's maps of these images.
        device: where to compute.
        progress: share of the stage's optimizer steps that are done, for the decay of weights.
    """
    student = stage.student
    images = collate(samples, preprocessing=student.preprocessing, device=device)
    if not stage.teacher_levels:
        return detection_losses(student.model, images, samples)
    with captured_maps(student.model) as maps:
        losses = detection_losses(student.model, images, samples)
    padded = images.shape[2], images.shape[3]
    teacher = batch_maps(encoded, levels=stage.teacher_levels, padded=padded, device=device)
    masks = batch_masks([one.resized for one in samples], levels=stage.teacher_levels, padded=padded, device=device)
    named = {level.name: one for level, one in zip(student.levels, maps, strict=True)}
    distillation: dict[str, Tensor] = stage.distiller(named, teacher, masks, progress=progress)
    return losses | distillation


def add_gradient(
    stage: Stage,
    samples: Sequence[Sample],
    encoded: Sequence[Encoded],
    *,
    share: float,
    progress: float,
    scaler: GradScaler,
    device: torch.device,
) -> dict[str, Tensor]:
    """Adds `share` times the gradient of a batch to what the parameters hold; returns the losses of the batch."""
    precision = stage.recipe.precision
    with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != 'fp32'):
        losses = step_losses(stage, samples, encoded, device=device, progress=progress)
    total = torch.stack([loss.float() for loss in losses.values()]).sum()
    torch.autograd.backward(scaler.scale(total * share))
    return losses
