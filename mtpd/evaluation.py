"""COCO average precision of detections, by pycocotools or by faster-coco-eval, with the same results."""

import contextlib
import importlib.util
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtpd.data.coco import CocoSet
from mtpd.errors import InputError, UnavailableError

Kind = Literal['bbox', 'segm']
# Same numbers; `faster` is faster-coco-eval, an extra of this package, which matches and accumulates in C++.
Backend = Literal['pycocotools', 'faster']

# The order of COCOeval.stats: AP over IoU 0.5:0.95, at 0.5, at 0.75, and by size (small < 32**2 px, large > 96**2 px);
# then average recall with at most 1, 10 and 100 detections an image, and by size.
METRICS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl')


@dataclass(frozen=True)
class Evaluation:
    """The numbers of `METRICS`, from 0 to 1, and AP of each class by its name, in the order of category ids.

    -1 where there is no such object to find. A class name that several categories have is followed by the id.
    """

    metrics: Mapping[str, float]
    class_ap: Mapping[str, float]


def evaluate(
    coco: CocoSet,
    detections: Sequence[Mapping[str, Any]],
    *,
    kind: Kind = 'bbox',
    image_ids: Sequence[int] | None = None,
    backend: Backend = 'pycocotools',
) -> Evaluation:
    """Evaluates detections on `image_ids`, or all images of the file, as the COCO benchmark does; others do not count.

    Objects marked `ignore` count, as pycocotools has it; the mask of an object without one is the outline of its box.
    Detections are COCO's result records: `image_id`, `category_id` (the file's own ids), `score`, and `bbox` [x, y,
    width, height] in px or, for `segm`, `segmentation` as a compressed run-length encoding.
    """
    strangers = ({detection['image_id'] for detection in detections} | set(image_ids or ())) - coco.annotations.keys()
    if strangers:
        raise InputError(f'{coco.path}: has no image {min(strangers)}, which was given for evaluation')
    coco_class, evaluator_class = _backend(backend)
    fields = ('image_id', 'category_id', 'score', 'bbox' if kind == 'bbox' else 'segmentation')
    with contextlib.redirect_stdout(io.StringIO()):  # both print their progress
        truth = _indexed(coco_class, _dataset(coco, kind))
        # Copies, as loadRes writes into its records. A mask goes without its box, whose area would count as its own.
        records = [{key: detection[key] for key in fields} for detection in detections]
        # loadRes looks into the first record, so it cannot take an empty list.
        nothing = {**truth.dataset, 'annotations': []}
        results = truth.loadRes(records) if records else _indexed(coco_class, nothing)
        evaluator = evaluator_class(truth, results, kind)
        if image_ids is not None:
            evaluator.params.imgIds = sorted(set(image_ids))
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    # faster-coco-eval has further numbers after COCO's twelve.
    metrics = dict(zip(METRICS, map(float, evaluator.stats[: len(METRICS)]), strict=True))
    return Evaluation(metrics, _class_ap(evaluator))


def evaluate_detections(
    coco: CocoSet,
    boxes: Sequence[Mapping[str, Any]],
    masks: Sequence[Mapping[str, Any]] | None,
    *,
    backend: Backend,
) -> dict[str, Evaluation]:
    """COCO metrics of boxes and, if the detector gives them and the annotations have them, of masks."""
    found = {'box': evaluate(coco, boxes, kind='bbox', backend=backend)}
    if masks is not None and coco.has_masks:
        found['mask'] = evaluate(coco, masks, kind='segm', backend=backend)
    return found


def metrics_by_name(found: Mapping[str, Evaluation]) -> dict[str, float]:
    """COCO's numbers of boxes and masks in one: `box/AP` and so on."""
    return {f'{kind}/{name}': value for kind, one in found.items() for name, value in one.metrics.items()}


def require_backend(backend: Backend) -> None:
    """Checks, before a run of days, that its evaluations can be computed."""
    if backend == 'faster' and importlib.util.find_spec('faster_coco_eval') is None:
        raise UnavailableError(
            'the backend `faster` needs faster-coco-eval, which is not installed: pip install faster-coco-eval'
        )


def _backend(backend: Backend) -> tuple[Any, Any]:
    require_backend(backend)
    if backend == 'pycocotools':
        return COCO, COCOeval
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _class_ap(evaluator: Any) -> dict[str, float]:
    names = {one['id']: one['name'] for one in evaluator.cocoGt.loadCats(evaluator.params.catIds)}
    count = Counter(names.values())
    # (IoU thresholds, recalls, categories, sizes, limits of detections): all sizes, up to 100 an image.
    precision = evaluator.eval['precision'][:, :, :, 0, -1]
    result = {}
    for index, category_id in enumerate(evaluator.params.catIds):
        name = names[category_id]
        label = name if count[name] == 1 else f'{name} ({category_id})'
        result[label] = float(precision[:, :, index].mean())  # -1 all over where there is no such object
    return result


def _dataset(coco: CocoSet, kind: Kind) -> dict[str, Any]:
    """The checked annotations in the form that pycocotools expects.

    It keeps ids of annotations as marks of a match, where 0 is none, and one record for each id; files have ids that
    are missing, that repeat or that start at 0. So they get ids from 1 on here.
    """
    annotations: list[dict[str, Any]] = []
    for image in coco.images:
        for one in coco.annotations[image.id]:
            record = {
                'id': len(annotations) + 1,
                'image_id': image.id,
                'category_id': coco.categories[one.category].id,
                'bbox': list(one.bbox),
                'area': one.area,
                'iscrowd': int(one.is_crowd),
            }
            annotations.append(record | ({'segmentation': one.mask(image)} if kind == 'segm' else {}))
    return {
        'images': [{'id': image.id, 'height': image.height, 'width': image.width} for image in coco.images],
        'categories': [{'id': category.id, 'name': category.name} for category in coco.categories],
        'annotations': annotations,
    }


def _indexed(coco_class: Any, dataset: dict[str, Any]) -> Any:
    result = coco_class()
    result.dataset = dataset
    result.createIndex()
    return result
