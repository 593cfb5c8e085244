"""The teacher's own head on given maps: whether features that were stored still detect what live ones do.

Letters: B images, C channels, H W grid of a level, N boxes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mtpd.detectors.detection import category_of, predict
from mtpd.detectors.hook_point import neck_outputs
from mtpd.detectors.teachers import Teacher
from mtpd.detectors.transforms import Sample
from mtpd.errors import InputError

# The method by which a teacher from `file.py:callable` offers its head: (maps, (height, width) of the input in px) ->
# for each image boxes (N, 4) absolute xyxy in px of the input, scores (N,) and labels (N,), which count the categories
# of the annotation file in the order of their ids.
METHOD = 'predict_from_features'


def require_head(teacher: Teacher) -> None:
    """Refuses a teacher whose head cannot be given maps.

    Raises:
        InputError: it is neither an mmdet detector nor a module with `predict_from_features`.
    """
    if not hasattr(teacher.module, METHOD) and not hasattr(teacher.module, 'extract_feat'):
        raise InputError(
            f'teacher {teacher.name}: has no head to evaluate; add a method {METHOD}(maps, input_size) to its module, '
            'or skip the AP with --no-ap'
        )


def head_detections(
    teacher: Teacher, maps: Sequence[Tensor], *, inputs: Tensor, samples: Sequence[Sample], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """What the teacher's head finds in `maps`, as COCO box results in px of the original images.

    Args:
        teacher: one that `require_head` lets pass.
        maps: (B, C, H, W) of each of the teacher's levels, in their order, from its hook point; norms that the neck has
            behind it are put to them.
        inputs: the normalised inputs (B, 3, H, W) of the same images, of which only the size counts.
        samples: the same images, after `collate`.
        category_ids: COCO category id of each label.
    """
    if hasattr(teacher.module, METHOD):
        return _from_method(teacher, maps, inputs=inputs, samples=samples, category_ids=category_ids)
    with _given_features(teacher.module, neck_outputs(teacher.module, maps, hook_point=teacher.hook_point)):
        boxes, _ = predict(teacher.module, inputs, samples, category_ids=category_ids, with_masks=False)
    return boxes


@contextmanager
def _given_features(model: nn.Module, maps: Sequence[Tensor]) -> Iterator[None]:
    """Lets an mmdet detector take `maps` for what its backbone and neck make of any input."""
    own: Any = model
    own.extract_feat = lambda inputs: tuple(maps)
    try:
        yield
    finally:
        # The instance's attribute hides the class's method.
        del own.extract_feat


def _from_method(
    teacher: Teacher, maps: Sequence[Tensor], *, inputs: Tensor, samples: Sequence[Sample], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    method: Any = getattr(teacher.module, METHOD)
    results = []
    found = method(list(maps), tuple(inputs.shape[-2:]))
    for (boxes, scores, labels), sample in zip(found, samples, strict=True):
        height, width = sample.data_sample.ori_shape
        scale_y, scale_x = height / sample.resized[0], width / sample.resized[1]
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            box = [x1 * scale_x, y1 * scale_y, (x2 - x1) * scale_x, (y2 - y1) * scale_y]
            category_id = category_of(label, category_ids)
            results.append({'image_id': sample.image_id, 'category_id': category_id, 'bbox': box, 'score': score})
    return results
