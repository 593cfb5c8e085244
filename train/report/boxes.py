"""Boxes of objects and of detections: which belong together, and how they look on a photograph."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchvision.ops import box_iou

from mtpd.data.coco import CocoAnnotation, CocoSet
from mtpd_train.report.images import DrawnBox

FOUND, MISTAKEN, TRUE = '#0072b2', '#b34700', '#00664a'  # dark enough for white letters
MIN_IOU = 0.5


def surest_first(detections: Sequence[dict[str, Any]], *, min_score: float) -> list[dict[str, Any]]:
    """The detections of at least this score in the order in which they are matched."""
    shown = [one for one in detections if one['score'] >= min_score]
    return sorted(shown, key=lambda one: -float(one['score']))


def match_detections(
    detections: Sequence[Mapping[str, Any]], truth: Sequence[CocoAnnotation], coco: CocoSet
) -> list[bool]:
    """Whether each detection, the surest first, is that of an object of its class that no surer one has."""
    if not detections or not truth:
        return [False] * len(detections)
    overlaps = box_iou(
        torch.tensor([_corners(one['bbox']) for one in detections]), torch.tensor([one.box for one in truth])
    )
    free, result = set(range(len(truth))), []
    for one, ious in zip(detections, overlaps.tolist(), strict=True):
        own = [index for index in free if coco.categories[truth[index].category].id == one['category_id']]
        best = max(own, key=lambda index: ious[index], default=None)
        is_object = best is not None and ious[best] >= MIN_IOU
        if best is not None and is_object:
            free.remove(best)
        result.append(is_object)
    return result


def true_boxes(truth: Sequence[CocoAnnotation], coco: CocoSet) -> list[DrawnBox]:
    """The objects with their classes."""
    return [DrawnBox(one.box, coco.categories[one.category].name, TRUE) for one in truth]


def found_boxes(detections: Sequence[Mapping[str, Any]], matched: Sequence[bool], coco: CocoSet) -> list[DrawnBox]:
    """The detections, in COCO's result format, with their classes and scores; dashed if they match no object."""
    names = {category.id: category.name for category in coco.categories}
    return [
        DrawnBox(
            _corners(one['bbox']),
            f'{names[one["category_id"]]} {one["score"]:.2f}',
            FOUND if is_object else MISTAKEN,
            is_dashed=not is_object,
        )
        for one, is_object in zip(detections, matched, strict=True)
    ]


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height
