"""Boxes of objects and detections, and photographs with them."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtpd.data.annotation_table import CocoAnnotation
from mtpd.data.coco import read_annotations
from mtpd_train.report.images import DrawnBox, photo_uri
from mtpd_train.report.predictions import (
    FOUND,
    MISTAKEN,
    TRUE,
    found_boxes,
    match_detections,
    most_certain_first,
    true_boxes,
)


def test_a_detection_is_matched_once_and_with_its_class_only(synthetic_set: Path) -> None:
    coco = read_annotations(synthetic_set / 'annotations' / 'instances_val2017.json')
    truth = [
        CocoAnnotation((10, 10, 40, 40), 0, False, 1600),
        CocoAnnotation((60, 10, 39, 40), 1, False, 1560),
    ]
    first, second = (category.id for category in coco.categories[:2])

    def detection(category_id: int, x: float) -> dict[str, Any]:
        return {'category_id': category_id, 'bbox': [x, 10.0, 40.0, 40.0], 'score': 0.25}

    found = [
        detection(first, 12),  # the first object
        detection(first, 10),  # again
        detection(first, 60),  # where the second is, of another class
        detection(second, 85),  # of its class, but too far off
        detection(second, 60),  # the second object
    ]
    matched = match_detections(found, truth, coco)
    assert matched == [True, False, False, False, True]
    assert match_detections(found, [], coco) == [False] * 5
    assert match_detections([], truth, coco) == []
    circle, square = (category.name for category in coco.categories[:2])
    assert true_boxes(truth, coco) == [
        DrawnBox((10, 10, 50, 50), circle, TRUE),
        DrawnBox((60, 10, 99, 50), square, TRUE),
    ]
    drawn = found_boxes(found, matched, coco)
    assert drawn[0] == DrawnBox((12, 10, 52, 50), f'{circle} 0.25', FOUND)
    assert drawn[3] == DrawnBox((85, 10, 125, 50), f'{square} 0.25', MISTAKEN, is_dashed=True)


def test_the_most_certain_come_first() -> None:
    detections = [{'score': score} for score in (0.3, 0.9, 0.4, 0.2)]
    assert [one['score'] for one in most_certain_first(detections, min_score=0.3)] == [0.9, 0.4, 0.3]


@pytest.mark.parametrize(('iou', 'is_object'), [(0.49, False), (0.51, True)])
def test_half_of_the_area_must_be_shared(iou: float, is_object: bool, synthetic_set: Path) -> None:
    coco = read_annotations(synthetic_set / 'annotations' / 'instances_val2017.json')
    truth = [CocoAnnotation((0, 0, 100, 100), 0, False, 10000)]
    detection = {'category_id': coco.categories[0].id, 'bbox': [0.0, 0.0, 100.0, 100 * iou]}
    assert match_detections([detection], truth, coco) == [is_object]


def test_a_photograph_is_enlarged_with_its_boxes() -> None:
    pixels = np.full((50, 100, 3), (0, 100, 200), np.uint8)  # BGR
    uri = photo_uri(pixels, [DrawnBox((50.0, 20.0, 90.0, 40.0), 'x', '#0000ff')])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).convert('RGB')).astype(int)
    assert image.shape == (200, 400, 3)
    assert np.abs(image[10, 10] - (200, 100, 0)).max() < 8
    assert np.abs(image[120, 300] - (200, 100, 0)).max() < 8  # inside the box
    for row, column in ((120, 201), (120, 359), (159, 300)):
        blue = image[row - 2 : row + 3, column - 2 : column + 3, 2]
        assert blue.max() > 200, (row, column)


def test_a_large_photograph_is_made_smaller() -> None:
    uri = photo_uri(np.zeros((420, 840, 3), np.uint8), [])
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).size == (420, 210)
