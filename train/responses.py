"""Distillation of responses in a stage: what a teacher's RoI head says, beside its maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpd.detectors.roi_capture import CapturedRois
from mtpd.detectors.transforms import Sample
from mtpd.heads.boxes import BoxCoder
from mtpd.heads.roi_head import RoiHead
from mtpd.losses.response_terms import TarHeadTerm
from mtpd.losses.roi_matching import LabelledBoxes, match_rois
from mtpd.losses.tar_head import answers_of_head, tar_head_losses
from mtpd.pyramid import Level


@dataclass(frozen=True)
class Responses:
    """The loss on responses of a stage.

    Attributes:
        term: what is asked for.
        coder: the student's box coder.
        num_classes: object classes of student and teacher.
        head: the teacher's RoI head. It is part of no other module, so nothing trains or saves it.
        levels: the teacher's levels that the head takes RoIs from, in its order.
    """

    term: TarHeadTerm
    coder: BoxCoder
    num_classes: int
    head: RoiHead
    levels: tuple[Level, ...]


def response_losses(
    responses: Responses,
    captured: CapturedRois,
    teacher: Mapping[str, Tensor],
    samples: Sequence[Sample],
    *,
    progress: float,
) -> dict[str, Tensor]:
    """The losses of a batch by name, weighted and decayed.

    Args:
        responses: what is asked for.
        captured: the student's proposals and what it says about them.
        teacher: level name -> (B, C, H, W) the teacher's maps.
        samples: the images of the batch, after `collate`.
        progress: share of the stage that is done.
    """
    rois, student = captured.require()
    rois = rois.float()
    objects = [_objects(sample, rois.device) for sample in samples]
    matches = match_rois(rois, objects, num_classes=responses.num_classes, positive_iou=responses.term.positive_iou)
    head = responses.head
    predictions = head([teacher[level.name] for level in responses.levels], rois)
    answers = answers_of_head(predictions, matches, coder=BoxCoder(head.record.means, head.record.stds))
    return tar_head_losses(
        responses.term,
        rois=rois,
        matches=matches,
        student=student,
        teacher=answers,
        coder=responses.coder,
        progress=progress,
    )


def _objects(sample: Sample, device: torch.device) -> LabelledBoxes:
    instances = sample.data_sample.gt_instances
    return LabelledBoxes(instances.bboxes.to(device), instances.labels.to(device))
