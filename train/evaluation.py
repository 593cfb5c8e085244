"""COCO AP of a student on a split."""

from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from mtpd.detectors.detection import collate, predict
from mtpd.evaluation import evaluate
from mtpd_train.dataset import DetectionDataset, load_batches
from mtpd_train.sampling import evaluation_batches
from mtpd_train.student import Student


def detect(
    student: Student, dataset: DetectionDataset, *, batch_size: int, num_workers: int, device: torch.device
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Box and mask results of every image of `dataset`, in COCO's result format."""
    student.model.eval()
    geometry = dataset.geometry
    padded = {image_id: geometry.padded(size) for image_id, size in dataset.sizes().items()}
    batches = evaluation_batches(padded, batch_size=batch_size)
    category_ids = [category.id for category in dataset.coco.categories]
    boxes: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    bar = tqdm(total=len(padded), unit='image', desc='evaluate', leave=False, mininterval=0.5)
    with bar:
        for samples in load_batches(dataset, batches, num_workers=num_workers):
            images = collate(
                samples,
                padded=padded[samples[0].image_id],
                normalisation=student.preprocessing.normalisation,
                device=device,
            )
            found = predict(student.model, images, samples, category_ids=category_ids, with_masks=student.has_masks)
            boxes += found[0]
            masks += found[1]
            bar.update(len(samples))
    return boxes, masks


def evaluate_student(
    student: Student, dataset: DetectionDataset, *, batch_size: int, num_workers: int, device: torch.device
) -> Mapping[str, float]:
    """COCO's numbers by name, `box/AP` and, for a student with masks, `mask/AP` and so on."""
    boxes, masks = detect(student, dataset, batch_size=batch_size, num_workers=num_workers, device=device)
    metrics = {f'box/{name}': value for name, value in evaluate(dataset.coco.path, boxes, kind='bbox').items()}
    if student.has_masks:
        metrics |= {f'mask/{name}': value for name, value in evaluate(dataset.coco.path, masks, kind='segm').items()}
    return metrics
