"""Detections of a run's students on images of the validation set, next to the ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou

from mtpd.data.annotation_table import CocoAnnotation, CocoImage
from mtpd.data.coco import CocoSet, read_annotations, spread
from mtpd.errors import InputError, MtpdError
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.evaluation import detect
from mtpd_train.evaluator.detector import SavedDetector, build_student, category_ids, require_student, student_of_run
from mtpd_train.report.images import DrawnBox, photo_uri, read_pixels
from mtpd_train.report.run_log import RunLog
from mtpd_train.run_folder import stage_folder

FOUND, MISTAKEN, TRUE = '#0072b2', '#b34700', '#00664a'  # dark enough for white letters
MIN_IOU = 0.5

# A record in COCO's result format.
Detection = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What the student of a stage finds on an image."""

    stage: int
    picture: str  # data URI
    num_found: int  # objects
    num_mistaken: int  # boxes without an object


@dataclass(frozen=True)
class PredictedImage:
    """An image with its truth and what the student of each stage finds."""

    name: str
    truth: str  # data URI
    num_objects: int
    found: Sequence[Prediction]


@dataclass(frozen=True)
class Predictions:
    """The predictions of the students of a run."""

    images: Sequence[PredictedImage]
    titles: Mapping[int, str]  # stage -> which of its students is shown, see `find_student`
    missing: Mapping[int, str]  # stage -> why no student of it is shown


def predictions(run: RunLog, *, num_images: int, min_score: float, device: torch.device) -> Predictions:
    """Images with objects, at equal distances in the validation set, as the students of all stages see them.

    Refuses a run without a validation set, and annotations that are gone or name no objects.
    """
    students: dict[int, SavedDetector] = {}
    titles: dict[int, str] = {}
    missing: dict[int, str] = {}
    for stage in run.stages:
        folder = stage_folder(run.folder, stage.number)
        try:
            checkpoint, titles[stage.number] = require_student(folder)
            students[stage.number] = student_of_run(folder, checkpoint)
        except MtpdError as error:
            missing[stage.number] = str(error)
    if not students:
        return Predictions([], {}, missing)
    val_set = next((one.val_set for one in reversed(students.values()) if one.val_set is not None), None)
    if val_set is None:
        raise InputError('the run had no validation set')
    photos, annotations = val_set
    coco = read_annotations(annotations)
    with_objects = [image for image in coco.images if any(one.is_object for one in coco.annotations[image.id])]
    if not with_objects:
        raise InputError(f'{coco.path}: its images have no objects')
    chosen = replace(coco, images=spread(with_objects, num_images))
    found: dict[int, dict[int, list[Detection]]] = {}
    for number, detector in students.items():
        try:
            found[number] = _detections(detector, chosen, photos, min_score=min_score, device=device)
        except MtpdError as error:
            missing[number] = str(error)
    images = []
    for image in chosen.images if found else ():
        images.append(_drawn(image, chosen, photos, {number: one[image.id] for number, one in found.items()}))
    return Predictions(images, {number: titles[number] for number in found}, missing=dict(sorted(missing.items())))


def _detections(
    detector: SavedDetector, coco: CocoSet, photos: Path, *, min_score: float, device: torch.device
) -> dict[int, list[Detection]]:
    """Image id -> a student's detections, the most certain first."""
    student, meta = build_student(detector, device)
    ids = category_ids(detector, student, meta, coco)
    geometry = student.preprocessing.geometry
    dataset = DetectionDataset(coco, photos, geometry=geometry, for_training=False, with_masks=False)
    boxes, _ = detect(student, dataset, batch_size=1, num_workers=0, category_ids=ids)
    result: dict[int, list[Detection]] = {image.id: [] for image in coco.images}
    for one in most_certain_first(boxes, min_score=min_score):
        result[one['image_id']].append(one)
    return result


def _drawn(image: CocoImage, coco: CocoSet, photos: Path, found: Mapping[int, Sequence[Detection]]) -> PredictedImage:
    pixels = read_pixels(image, photos)
    truth = [one for one in coco.annotations[image.id] if one.is_object]
    students = []
    for number, detections in found.items():
        matched = match_detections(detections, truth, coco)
        picture = photo_uri(pixels, found_boxes(detections, matched, coco)[::-1])  # the most certain on top
        students.append(Prediction(number, picture, sum(matched), num_mistaken=len(matched) - sum(matched)))
    return PredictedImage(image.file_name, photo_uri(pixels, true_boxes(truth, coco)), len(truth), students)


def most_certain_first(detections: Sequence[Detection], *, min_score: float) -> list[Detection]:
    """The detections of at least this score in the order in which they are matched."""
    shown = [one for one in detections if one['score'] >= min_score]
    return sorted(shown, key=lambda one: -float(one['score']))


def match_detections(detections: Sequence[Detection], truth: Sequence[CocoAnnotation], coco: CocoSet) -> list[bool]:
    """Whether each detection, the most certain first, is of an object of its class that no more certain one has."""
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


def found_boxes(detections: Sequence[Detection], matched: Sequence[bool], coco: CocoSet) -> list[DrawnBox]:
    """The detections with their classes and scores; dashed if they match no object."""
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
