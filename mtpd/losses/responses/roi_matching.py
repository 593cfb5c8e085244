"""Which object a RoI belongs to, decided by overlap.

Letters: B images, K RoIs, N objects of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou


class LabelledBoxes(NamedTuple):
    """The annotated objects of one image.

    Attributes:
        boxes: (N, 4) absolute xyxy in px of the input.
        labels: (N,) class indices.
    """

    boxes: Tensor
    labels: Tensor


class Matches(NamedTuple):
    """What RoIs are by the annotations.

    Attributes:
        labels: (K,) class of the object, or the number of classes for background.
        boxes: (K, 4) the object's box; zeros for background.
        positive: (K,) bool, whether it has an object.
    """

    labels: Tensor
    boxes: Tensor
    positive: Tensor


@torch.no_grad()
def match_rois(rois: Tensor, objects: Sequence[LabelledBoxes], *, num_classes: int, positive_iou: float) -> Matches:
    """Gives each RoI the object of its image with the highest IoU, if that is at least `positive_iou`.

    Args:
        rois: (K, 5): image in the batch, absolute xyxy in px of the input.
        objects: of each image.
        num_classes: object classes.
        positive_iou: a detector's own threshold for training is 0.5.
    """
    labels = torch.full((len(rois),), num_classes, dtype=torch.long, device=rois.device)
    boxes = rois.new_zeros(len(rois), 4)
    positive = torch.zeros(len(rois), dtype=torch.bool, device=rois.device)
    for number, one in enumerate(objects):
        if not len(one.boxes):
            continue
        overlap, best = box_iou(rois[:, 1:], one.boxes.to(rois.dtype)).max(1)
        here = (rois[:, 0] == number) & (overlap >= positive_iou)
        labels = torch.where(here, one.labels[best], labels)
        boxes = torch.where(here[:, None], one.boxes[best].to(rois.dtype), boxes)
        positive |= here
    return Matches(labels, boxes, positive)
