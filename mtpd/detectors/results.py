"""Detections as COCO results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask

from mtpd.detectors.detector import Detections
from mtpd.errors import InputError


def coco_results(
    found: Sequence[Detections], image_ids: Sequence[int], *, category_ids: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Boxes and masks of each image as COCO results in px of the original image; no masks where it has none.

    `category_ids` are those of the labels. `bbox` is x, y, width, height; `segmentation` is run-length code.
    """
    boxes: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    for one, image_id in zip(found, image_ids, strict=True):
        scores, labels = one.scores.tolist(), one.labels.tolist()
        shared = [
            {'image_id': image_id, 'category_id': category_of(label, category_ids), 'score': score}
            for score, label in zip(scores, labels, strict=True)
        ]
        for record, (x1, y1, x2, y2) in zip(shared, one.boxes.tolist(), strict=True):
            boxes.append(record | {'bbox': [x1, y1, x2 - x1, y2 - y1]})
        if one.masks is not None:
            for record, mask in zip(shared, one.masks.cpu().numpy(), strict=True):
                code = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
                masks.append(record | {'segmentation': {'size': code['size'], 'counts': code['counts'].decode()}})
    return boxes, masks


def category_of(label: int, category_ids: Sequence[int]) -> int:
    """COCO category id of a detector's label. InputError where the annotations have fewer classes."""
    if label >= len(category_ids):
        raise InputError(
            f'the detector predicted its class number {label + 1}, but the annotations have only '
            f'{len(category_ids)} categories; give annotations with the classes it was trained on'
        )
    return category_ids[label]
