"""COCO average precision of detections, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtpd.errors import InputError

Kind = Literal['bbox', 'segm']

# The order of COCOeval.stats: AP over IoU 0.5:0.95, at 0.5, at 0.75, and by size (small < 32**2 px, large > 96**2 px);
# then average recall with at most 1, 10 and 100 detections an image, and by size.
METRICS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl')


def evaluate(
    coco_annotations: Path,
    detections: Sequence[Mapping[str, Any]],
    *,
    kind: Kind = 'bbox',
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """The twelve numbers of the COCO benchmark, from 0 to 1; -1 where the ground truth has no such object.

    Args:
        coco_annotations: the ground truth, a COCO annotation file.
        detections: COCO's result records: `image_id`, `category_id` (the file's own ids), `score`, and `bbox`
            [x, y, width, height] in px or, for `segm`, `segmentation` as a compressed run-length encoding.
        kind: whether boxes or masks are compared.
        image_ids: the images to evaluate; all of the file if None. Detections on others do not count.

    Raises:
        InputError: a detection or `image_ids` names an image that the file does not have.
    """
    fields = ('image_id', 'category_id', 'score', 'bbox' if kind == 'bbox' else 'segmentation')
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO(str(coco_annotations))
        known = set(truth.getImgIds())
        strangers = ({detection['image_id'] for detection in detections} | set(image_ids or ())) - known
        if strangers:
            raise InputError(f'{coco_annotations}: has no image {min(strangers)}, which was to be evaluated')
        # Copies, as loadRes writes into its records. A mask goes without its box, whose area would count as its own.
        records = [{key: detection[key] for key in fields} for detection in detections]
        evaluator = COCOeval(truth, truth.loadRes(records) if records else _without_detections(truth), kind)
        if image_ids is not None:
            evaluator.params.imgIds = sorted(set(image_ids))
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(METRICS, map(float, evaluator.stats), strict=True))


def _without_detections(truth: COCO) -> COCO:
    # loadRes looks into the first record, so it cannot take an empty list.
    results = COCO()
    results.dataset = {**truth.dataset, 'annotations': []}
    results.createIndex()
    return results
