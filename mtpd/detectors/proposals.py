"""A two-stage teacher's own proposals and the predictions of its RoI head for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtpd.detectors.hook_point import NECK
from mtpd.detectors.runtime import prepare
from mtpd.detectors.teachers import Teacher, neck_and_head_weights
from mtpd.errors import InputError
from mtpd.geometry import Size
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import BoxCoder, ImageRois, class_slice, scaled


def proposing_head(teacher: Teacher) -> RoiHead:
    """The RoI head of a teacher that has proposals of its own, on the CPU.

    Raises:
        InputError: it has none that can be stored.
    """
    if teacher.hook_point != NECK:
        raise InputError(
            f'--rois: the maps of {teacher.name} are taken before the norms of its neck, but its RoI head needs '
            'those after; add --hook neck, or remove --rois'
        )
    if teacher.roi_head is None or not hasattr(teacher.module, 'rpn_head'):
        raise InputError(
            f'--rois: teacher {teacher.name} has no proposals, or a RoI head that mtpd cannot run; use a '
            'Faster, Mask or Cascade R-CNN, or remove --rois'
        )
    return RoiHead(teacher.roi_head, neck_and_head_weights(teacher))


@torch.no_grad()
def teacher_rois(
    teacher: Teacher,
    head: RoiHead,
    maps: Mapping[str, Tensor],
    *,
    originals: Sequence[Size],
    num_rois: int,
) -> list[ImageRois]:
    """The best proposals of each image of a batch in px of the original image, on the CPU.

    Args:
        teacher: with an RPN.
        head: from `proposing_head`, on the teacher's device.
        maps: level name -> (B, C, H, W) of all levels of the teacher.
        originals: (height, width) of each image before its resize.
        num_rois: how many are wanted; the RPN may give fewer.
    """
    geometry = teacher.preprocessing.geometry
    resized = [geometry.resized(size) for size in originals]
    ordered = [maps[level.name] for level in teacher.levels]
    proposals = _proposals(teacher.module, ordered, resized=resized, num_rois=num_rois)
    rois = torch.cat(
        [torch.cat([boxes.new_full((len(boxes), 1), number), boxes], dim=1) for number, boxes in enumerate(proposals)]
    )
    logits, deltas = head(ordered[: len(head.record.strides)], rois)
    probabilities = logits.softmax(1)
    labels = probabilities[:, :-1].argmax(1)
    raw = BoxCoder(head.record.means, head.record.stds).to_raw(class_slice(deltas, labels))
    counts = [len(boxes) for boxes in proposals]
    columns = [one.cpu().split(counts) for one in (rois[:, 1:], probabilities, labels, raw)]
    return [
        scaled(ImageRois(*row), source=size, target=original)
        for row, size, original in zip(zip(*columns, strict=True), resized, originals, strict=True)
    ]


def _proposals(module: Any, maps: Sequence[Tensor], *, resized: Sequence[Size], num_rois: int) -> list[Tensor]:
    """The RPN's boxes (K, 4) of each image in px of the resized image, best first."""
    prepare()
    from mmdet.structures import DetDataSample

    samples = [DetDataSample(metainfo={'img_shape': size, 'scale_factor': (1.0, 1.0)}) for size in resized]
    boxes = []
    for result in module.rpn_head.predict(tuple(maps), samples, rescale=False):
        best = result.scores.argsort(descending=True, stable=True)[:num_rois]
        boxes.append(result.bboxes[best].float())
    return boxes
