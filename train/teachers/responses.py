"""Distillation of responses in a stage: what two RoI heads say about the same RoIs, beside the maps.

Letters: B images, C channels, H W grid of a level, K RoIs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.detectors.detector_heads import CapturedRois, predict_rois
from mtpd.detectors.transforms import Sample
from mtpd.geometry import Level
from mtpd.heads.roi_head import RoiHead, RoiPredictions
from mtpd.heads.rois import BoxCoder, ImageRois, mirrored, scaled
from mtpd.losses.tar_head import (
    LabelledBoxes,
    TarHeadOptions,
    answers_of_cache,
    answers_of_head,
    match_rois,
    tar_head_losses,
)


@dataclass(frozen=True)
class Responses:
    """The loss on responses of a stage.

    Attributes:
        options: configuration of the loss.
        coder: the student's box coder.
        num_classes: object classes of student and teacher.
        head: the teacher's RoI head; None where its stored answers are used. It is part of no other module, so nothing
            trains or saves it.
        levels: the teacher's levels that the head takes RoIs from, in its order; none without a head.
    """

    options: TarHeadOptions
    coder: BoxCoder
    num_classes: int
    head: RoiHead | None
    levels: tuple[Level, ...]


class SharedRois(NamedTuple):
    """The RoIs of a batch that both detectors judge.

    Attributes:
        rois: (K, 5): image in the batch, absolute xyxy in px of the padded input.
        student: what the student says about them.
        stored: the teacher's stored predictions for them; None if its head is to be run.
    """

    rois: Tensor
    student: RoiPredictions
    stored: ImageRois | None


def shared_rois(
    samples: Sequence[Sample],
    *,
    captured: CapturedRois | None,
    model: nn.Module,
    maps: Sequence[Tensor],
    stored: Sequence[ImageRois],
) -> SharedRois:
    """The student's own proposals, or the teacher's, on which the student's RoI head is run.

    Args:
        samples: the images of the batch.
        captured: what the student did in its forward pass; None for the teacher's proposals.
        model: the student.
        maps: (B, C, H, W) of all levels of the student's neck.
        stored: the teacher's proposals on each image, in px of the original image.
    """
    if captured is not None:
        rois, predictions = captured.require()
        return SharedRois(rois.float(), predictions, None)
    # On the host, and then copied once for the batch.
    images = [_on_sample(one, sample) for one, sample in zip(stored, samples, strict=True)]
    together = ImageRois(*(torch.cat(column) for column in zip(*images, strict=True))).to(maps[0].device)
    # Numbered image by image: `repeat_interleave` with counts on the device would make the host wait for it.
    numbers = [together.boxes.new_full((len(one.boxes), 1), number) for number, one in enumerate(images)]
    rois = torch.cat([torch.cat(numbers), together.boxes], dim=1)
    return SharedRois(rois, predict_rois(model, maps, rois), together)


def response_losses(
    responses: Responses,
    shared: SharedRois,
    teacher: Mapping[str, EncodedMaps],
    samples: Sequence[Sample],
    *,
    progress: float,
) -> dict[str, Tensor]:
    """The losses of a batch by name, weighted and decayed.

    Args:
        responses: configuration.
        shared: the RoIs and what the student says about them.
        teacher: level name -> the teacher's maps (B, C, H, W), for its head.
        samples: the images of the batch, after `collate`.
        progress: share of the stage that is done.
    """
    rois, head = shared.rois, responses.head
    objects = [_objects(sample, rois.device) for sample in samples]
    matches = match_rois(rois, objects, num_classes=responses.num_classes, positive_iou=responses.options.positive_iou)
    if shared.stored is not None:
        answers = answers_of_cache(shared.stored, matches)
    else:
        assert head is not None, 'neither a head nor stored predictions'
        predictions = head([teacher[level.name].values() for level in responses.levels], rois)
        answers = answers_of_head(predictions, matches, coder=BoxCoder(head.record.means, head.record.stds))
    return tar_head_losses(
        responses.options,
        rois=rois,
        matches=matches,
        student=shared.student,
        teacher=answers,
        coder=responses.coder,
        progress=progress,
    )


def _on_sample(rois: ImageRois, sample: Sample) -> ImageRois:
    """RoIs in px of the original image, on its resized and perhaps mirrored view."""
    placed = scaled(rois, source=sample.data_sample.ori_shape, target=sample.resized)
    return mirrored(placed, width=sample.resized[1]) if sample.view == 'flip' else placed


def _objects(sample: Sample, device: torch.device) -> LabelledBoxes:
    instances = sample.data_sample.gt_instances
    # Without waiting for what the device is at.
    return LabelledBoxes(*(one.to(device, non_blocking=True) for one in (instances.bboxes, instances.labels)))
