"""A teacher's own heads on given maps: its detections, and the proposals and predictions of its RoI head."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.results import category_of, coco_results
from mtpd.detectors.samples import Sample
from mtpd.detectors.teachers import Teacher, neck_and_head_weights
from mtpd.errors import InputError
from mtpd.geometry import Size
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import BoxCoder, ImageRois, class_slice, scaled

# The method by which a teacher from `file.py:callable` offers its head: (maps, (height, width) of the input in px) ->
# for each image boxes (N, 4) absolute xyxy in px of the input, scores (N,) and labels (N,), which count the categories
# of the annotation file in the order of their ids.
METHOD = 'predict_from_features'


def require_head(teacher: Teacher) -> None:
    """Refuses a teacher that is neither a detector nor a module with `predict_from_features`."""
    if teacher.detector is None and not hasattr(teacher.module, METHOD):
        raise InputError(
            f'teacher {teacher.name}: has no head to evaluate; add a method {METHOD}(maps, input_size) to its module, '
            'or skip the AP with --no-ap'
        )


def head_detections(
    teacher: Teacher, maps: Sequence[Tensor], *, inputs: Tensor, samples: Sequence[Sample], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """What the teacher's head finds in `maps`, as COCO box results in px of the original images.

    `maps` (B, C, H, W) are those of the teacher's hook point, one for each level. Of `inputs` only the size counts.
    """
    if teacher.detector is not None:
        with teacher.detector.given_maps(maps, hook_point=teacher.hook_point):
            found = teacher.detector.predict(inputs, samples)
        return coco_results(found, [one.image_id for one in samples], category_ids=category_ids)[0]
    model: Any = teacher.module
    results = []
    found = getattr(model, METHOD)(list(maps), tuple(inputs.shape[-2:]))
    for (boxes, scores, labels), sample in zip(found, samples, strict=True):
        height, width = sample.original
        scale_y, scale_x = height / sample.resized[0], width / sample.resized[1]
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            box = [x1 * scale_x, y1 * scale_y, (x2 - x1) * scale_x, (y2 - y1) * scale_y]
            category_id = category_of(label, category_ids)
            results.append({'image_id': sample.image_id, 'category_id': category_id, 'bbox': box, 'score': score})
    return results


def proposing_head(teacher: Teacher) -> RoiHead:
    """The RoI head of a teacher that has proposals of its own, on the CPU. InputError if it has none to store."""
    if teacher.hook_point != NECK_MAPS:
        raise InputError(
            f'--rois: the maps of {teacher.name} are taken before the norms of its neck, but its RoI head needs '
            'those after; add --hook neck, or remove --rois'
        )
    if teacher.roi_head is None or teacher.detector is None or not teacher.detector.has_proposals():
        raise InputError(
            f'--rois: teacher {teacher.name} has no proposals, or a RoI head that mtpd cannot run; use a '
            'Faster, Mask or Cascade R-CNN, or remove --rois'
        )
    return RoiHead(teacher.roi_head, neck_and_head_weights(teacher))


@torch.no_grad()
def teacher_rois(
    teacher: Teacher, head: RoiHead, maps: Mapping[str, Tensor], *, originals: Sequence[Size], num_rois: int
) -> list[ImageRois]:
    """The `num_rois` best proposals of each image, or all if they are fewer, in px of the original image, on the CPU.

    `head` is from `proposing_head`; `maps` are (B, C, H, W) of all levels; `originals` are sizes before the resize.
    """
    assert teacher.detector is not None
    resized = [teacher.preprocessing.geometry.resized(size) for size in originals]
    ordered = [maps[level.name] for level in teacher.levels]
    proposals = []
    for boxes, scores in teacher.detector.proposals(ordered, resized):
        best = scores.argsort(descending=True, stable=True)[:num_rois]
        proposals.append(boxes[best].float())
    # (K, 5): image in the batch, box.
    rois = torch.cat([torch.nn.functional.pad(boxes, (1, 0), value=number) for number, boxes in enumerate(proposals)])
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
