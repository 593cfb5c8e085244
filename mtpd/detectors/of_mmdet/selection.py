"""How mmdet's heads choose their detections: the settings of a `test_cfg`, of which each is understood or refused."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, NoReturn

from mtpd.errors import InputError


class Selection(NamedTuple):
    """The settings of one head."""

    threshold: float  # scores are above it
    num_candidates: int  # of a level, before non-maximum suppression
    iou_threshold: float
    is_class_agnostic: bool  # whether a box is suppressed by boxes of other classes too
    num_detections: int  # of an image
    is_small_dropped: bool  # whether boxes without width or height are dropped


def read_selection(settings: Mapping[str, Any], *, place: str, name: str) -> Selection:
    """The settings in `place` of the config of a detector. InputError for those that an export does not have."""

    def refuse(key: str, value: Any, wanted: str) -> NoReturn:
        raise InputError(f'{name}: {place}.{key} is {value!r:.80}, but an export needs {wanted}; change it in a config')

    nms = settings.get('nms') or {}
    if nms.get('type', 'nms') != 'nms' or set(nms) - {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}:
        refuse('nms', dict(nms), 'greedy suppression: {type: nms, iou_threshold: T}')
    for key in ('nms_pre', 'max_per_img'):
        if not isinstance(settings.get(key), int) or settings[key] < 1:
            refuse(key, settings.get(key), 'a number above 0')
    smallest = settings.get('min_bbox_size', -1)
    if smallest > 0:
        refuse('min_bbox_size', smallest, '0, since it does not know the size of the original image')
    return Selection(
        threshold=float(settings.get('score_thr', 0)),
        num_candidates=settings['nms_pre'],
        iou_threshold=float(nms['iou_threshold']),
        is_class_agnostic=bool(nms.get('class_agnostic', False)),
        num_detections=settings['max_per_img'],
        is_small_dropped=smallest == 0,
    )


def require_keys(settings: Mapping[str, Any], known: Collection[str], *, place: str, name: str) -> None:
    """Refuses settings that are not understood, by name."""
    if unknown := sorted(set(settings) - set(known)):
        raise InputError(
            f'{name}: {place}.{unknown[0]} is not a setting that an export understands; it understands '
            f'{", ".join(sorted(known))}'
        )
