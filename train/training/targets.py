"""What the distillation losses of a batch compare the student with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpd.detectors.transforms import Sample
from mtpd.geometry import Level, Size
from mtpd.heads.rois import ImageRois
from mtpd.losses.teacher_map import TeacherMap
from mtpd.losses.valid_mask import valid_cells
from mtpd_train.stage import Stage
from mtpd_train.teachers.teacher_source import ReadAhead


@dataclass(frozen=True)
class Targets:
    """The teacher's side of a batch.

    Attributes:
        maps: level name -> the teacher's maps (B, C, H, W).
        masks: level name -> bool (B, 1, H, W), true at cells that see the image; of the student's levels too.
        boxes: the objects of each image, (N, 4) xyxy in px of the network input.
        rois: the teacher's stored proposals on each image, in px of the original image; none where no loss asks.
    """

    maps: Mapping[str, TeacherMap]
    masks: Mapping[str, Tensor]
    boxes: Sequence[Tensor]
    rois: Sequence[ImageRois]


def teacher_targets(stage: Stage, samples: Sequence[Sample], ahead: ReadAhead, images: Tensor) -> Targets | None:
    """What the student is compared with; None in plain training.

    Args:
        stage: what is trained.
        samples: images of the batch, after `collate`.
        ahead: what was read of the teacher for them.
        images: the student's inputs (B, 3, H, W).
    """
    if stage.source is None or not stage.is_taught:
        return None
    padded, device = (images.shape[2], images.shape[3]), images.device
    levels = {level.name: level for level in (*stage.student.levels, *stage.teacher_levels)}.values()
    return Targets(
        maps=stage.source.maps(samples, ahead, levels=stage.teacher_levels, padded=padded, device=device),
        masks=batch_masks([one.resized for one in samples], levels=levels, padded=padded, device=device),
        boxes=[one.data_sample.gt_instances.bboxes.to(device, non_blocking=True) for one in samples],
        rois=ahead.rois,
    )


def batch_masks(
    resized: Sequence[Size], *, levels: Iterable[Level], padded: Size, device: torch.device
) -> dict[str, Tensor]:
    """Level name -> bool (B, 1, H, W), true at cells that see the image."""
    return {
        level.name: valid_cells(resized, stride=level.stride, grid=level.grid(*padded), device=device)
        for level in levels
    }
