"""Detections of a run's students on images of the validation set, next to the ground truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtpd.data.coco import CocoImage, CocoSet, image_path, spread
from mtpd.data.images import read_image
from mtpd.errors import InputError, MtpdError
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.evaluation import detect
from mtpd_train.evaluator.detector import build_target, category_ids
from mtpd_train.evaluator.stage_student import find_student, why_none
from mtpd_train.evaluator.target import Files, Target, target_of_run
from mtpd_train.report.boxes import found_boxes, match_detections, surest_first, true_boxes
from mtpd_train.report.images import photo_uri
from mtpd_train.report.run_log import RunLog
from mtpd_train.run_folder import stage_folder


@dataclass(frozen=True)
class Prediction:
    """What the student of a stage finds on an image.

    Attributes:
        stage: its number.
        picture: data URI.
        num_found: objects found.
        num_mistaken: boxes without an object.
    """

    stage: int
    picture: str
    num_found: int
    num_mistaken: int


@dataclass(frozen=True)
class PredictedImage:
    """An image with its truth and what each student finds.

    Attributes:
        name: of the file.
        truth: data URI.
        num_objects: in truth.
        found: for each stage that has a student.
    """

    name: str
    truth: str
    num_objects: int
    found: Sequence[Prediction]


@dataclass(frozen=True)
class Predictions:
    """Images as the students of a run see them.

    Attributes:
        images: that they are shown on.
        titles: stage -> which of its students is shown, empty for the last one of a stage that has finished.
        missing: stage -> why no student of it is shown.
    """

    images: Sequence[PredictedImage]
    titles: Mapping[int, str]
    missing: Mapping[int, str]


def predictions(
    run: RunLog, *, num_images: int, min_score: float, device: torch.device, read: Callable[[Path], CocoSet]
) -> Predictions:
    """Images with objects, at equal distances in the validation set, as the students of all stages see them.

    Args:
        run: the run.
        num_images: at most.
        min_score: of detections that are drawn.
        device: where students run.
        read: reads annotation files.

    Raises:
        InputError: the annotations are gone or name no objects, or the run had no validation set.
    """
    students: dict[int, tuple[str, Target]] = {}
    missing: dict[int, str] = {}
    for stage in run.stages:
        try:
            students[stage.number] = _student(stage_folder(run.folder, stage.number))
        except MtpdError as error:
            missing[stage.number] = str(error)
    if not students:
        return Predictions([], {}, missing)
    files = next((target.files for _, target in reversed(students.values()) if target.files is not None), None)
    if files is None:
        raise InputError('the run had no validation set')
    coco = read(files.annotations)
    with_objects = [image for image in coco.images if any(one.is_object for one in coco.annotations[image.id])]
    if not with_objects:
        raise InputError(f'{coco.path}: its images have no objects')
    chosen = replace(coco, images=spread(with_objects, num_images))
    found: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for number, (_, target) in students.items():
        try:
            found[number] = _detections(target, chosen, files, min_score=min_score, device=device)
        except MtpdError as error:
            missing[number] = str(error)
    return Predictions(
        images=[
            _drawn(image, chosen, files, {number: one[image.id] for number, one in found.items()})
            for image in (chosen.images if found else ())
        ],
        titles={number: students[number][0] for number in found},
        missing=dict(sorted(missing.items())),
    )


def _student(folder: Path) -> tuple[str, Target]:
    student = find_student(folder)
    if student is None:
        raise InputError(why_none(folder))
    return student.title, target_of_run(folder, checkpoint=student.checkpoint)


def _detections(
    target: Target, coco: CocoSet, files: Files, *, min_score: float, device: torch.device
) -> dict[int, list[dict[str, Any]]]:
    """Image id -> a student's detections, the surest first."""
    student = build_target(target, scale=None, trust_checkpoint=False, device=device)
    ids = category_ids(target, student, coco, trust_checkpoint=False)
    geometry = student.preprocessing.geometry
    dataset = DetectionDataset(coco, files.images, geometry=geometry, for_training=False, with_masks=False)
    boxes, _ = detect(student, dataset, batch_size=1, num_workers=0, device=device, category_ids=ids)
    result: dict[int, list[dict[str, Any]]] = {image.id: [] for image in coco.images}
    for one in surest_first(boxes, min_score=min_score):
        result[one['image_id']].append(one)
    return result


def _drawn(
    image: CocoImage, coco: CocoSet, files: Files, found: Mapping[int, Sequence[Mapping[str, Any]]]
) -> PredictedImage:
    pixels = read_image(image_path(files.images, image.file_name), size=(image.height, image.width))
    photo = np.ascontiguousarray(pixels[..., ::-1])
    truth = [one for one in coco.annotations[image.id] if one.is_object]
    students = []
    for number, detections in found.items():
        matched = match_detections(detections, truth, coco)
        boxes = found_boxes(detections, matched, coco)
        # The surest on top.
        students.append(
            Prediction(number, photo_uri(photo, boxes[::-1]), sum(matched), num_mistaken=len(matched) - sum(matched))
        )
    return PredictedImage(image.file_name, photo_uri(photo, true_boxes(truth, coco)), len(truth), students)
