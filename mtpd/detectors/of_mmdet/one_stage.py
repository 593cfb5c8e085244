"""mmdet's one-stage detectors as they are exported: the same boxes as their `predict`, as one graph.

What a head predicts, and its priors and box coder, are mmdet's own. N images, L places of a level, A anchors of a cell,
C classes.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mtpd.detectors.exportable import Exportable
from mtpd.detectors.of_mmdet.selection import Selection, read_selection, require_keys
from mtpd.geometry import level_name
from mtpd.heads.postprocessing import (
    NONE,
    Candidates,
    best,
    clipped,
    joined,
    suppressed,
    top_candidates,
    without_small,
)

# YOLOX keeps all that its NMS leaves.
MAX_DETECTIONS = 1000

# From the head, the number of a level, its priors, and the predictions (N, A * values, h, w) -> boxes (N, L, 4).
Decode = Callable[[Any, int, Tensor, Tensor], Tensor]


class OneStage(Exportable):
    """RetinaNet, FCOS, ATSS, GFL, RTMDet and RepPoints."""

    def __init__(self, model: Any, *, name: str) -> None:
        super().__init__()
        self.model = model
        self.selection = self.read_settings(model.test_cfg, name=name)
        self.num_detections, self.iou_threshold = self.selection.num_detections, self.selection.iou_threshold

    def read_settings(self, test_cfg: Mapping[str, Any], *, name: str) -> Selection:
        """How the head chooses its detections."""
        known = {'nms_pre', 'min_bbox_size', 'score_thr', 'nms', 'max_per_img'}
        require_keys(test_cfg, known, place='test_cfg', name=name)
        return read_selection(test_cfg, place='test_cfg', name=name)

    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """See `Exportable`."""
        head, selection = self.model.bbox_head, self.selection
        logits, predictions, *factors = self._outputs(images)
        priors = self._priors(logits)
        decode, found = DECODERS[type(head).__name__], []
        for level, (logit, prediction, prior) in enumerate(zip(logits, predictions, priors, strict=True)):
            values = by_place(logit, head.cls_out_channels)
            scores = values.sigmoid() if head.use_sigmoid_cls else values.softmax(dim=-1)[..., :-1]
            boxes = decode(head, level, prior, prediction)
            if clips(head):
                boxes = clipped(boxes, limits)
            factor = by_place(factors[0][level], 1)[..., 0].sigmoid() if factors else None
            found.append(
                top_candidates(
                    scores, boxes, threshold=selection.threshold, limit=selection.num_candidates, factors=factor
                )
            )
        return self._chosen(joined(found)), None

    def raw(self, images: Tensor) -> Mapping[str, Tensor]:
        """`class_p3`, `box_p3` and so on, for heads with a factor of the scores `factor_p3` too."""
        kinds = ('class', 'box', 'factor')
        return {
            f'{kind}_{level}': values
            for kind, maps in zip(kinds, self._outputs(images), strict=False)
            for level, values in zip(level_names(self.model.bbox_head), maps, strict=True)
        }

    def raw_record(self) -> Mapping[str, Any]:
        """Levels with strides and anchors, activation and box coder, and how detections are chosen."""
        head = self.model.bbox_head
        generator = head.prior_generator
        anchors = getattr(generator, 'base_anchors', None)
        kind = type(head).__name__
        return {
            'head': kind,
            'levels': [
                {'name': name, 'stride': stride[0]}
                | ({} if anchors is None else {'anchors': anchors[level].tolist()})
                | ({} if hasattr(generator, 'base_anchors') else {'offset': generator.offset})
                for level, (name, stride) in enumerate(zip(level_names(head), generator.strides, strict=True))
            ],
            'activation': 'sigmoid' if head.use_sigmoid_cls else 'softmax, the background last',
            'boxes': _BOXES[kind],
            'box_coder': coder_record(head),
            'selection': self.selection._asdict(),
        }

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """mmcv's deformable convolution, of RepPoints, divides a batch by numbers that are not known yet.

        mmdet calls `torch.meshgrid` without `indexing`, which recorded graphs must have.
        """
        from mmcv.ops import DeformConv2d

        meshgrid = functools.partial(torch.meshgrid, indexing='ij')
        with patch.object(DeformConv2d, 'forward', _deform_conv), patch.object(torch, 'meshgrid', meshgrid):
            yield

    def _outputs(self, images: Tensor) -> list[list[Tensor]]:
        outputs = self.model.bbox_head(self.model.extract_feat(images.to(self.dtype)))
        return [[values.float() for values in maps] for maps in outputs]

    def _priors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        priors: list[Tensor] = self.model.bbox_head.prior_generator.grid_priors(
            [values.shape[-2:] for values in maps], dtype=torch.float32, device=maps[0].device
        )
        return priors

    def _chosen(self, candidates: Candidates) -> Candidates:
        selection = self.selection
        if selection.is_small_dropped:
            candidates = without_small(candidates, above=0)
        num_classes = None if selection.is_class_agnostic else self.model.bbox_head.num_classes
        kept = suppressed(candidates, iou_threshold=selection.iou_threshold, num_classes=num_classes)
        return best(kept, self.num_detections)


class Yolox(OneStage):
    """YOLOX, which takes the best class of each place."""

    def read_settings(self, test_cfg: Mapping[str, Any], *, name: str) -> Selection:
        """Its head knows no limit of candidates or detections, and ignores one that is set."""
        require_keys(test_cfg, {'score_thr', 'nms', 'max_per_img'}, place='test_cfg', name=name)
        settings = {**test_cfg, 'nms_pre': 1, 'max_per_img': MAX_DETECTIONS}
        self.notes = (f'{name} has no limit of detections; the file gives the best {MAX_DETECTIONS} of an image',)
        return read_selection(settings, place='test_cfg', name=name)

    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """See `Exportable`; its boxes are not clipped."""
        head = self.model.bbox_head
        maps = self._outputs(images)
        logits, predictions, objectness = (
            torch.cat([by_place(values, size) for values in level], dim=1)
            for level, size in zip(maps, (head.cls_out_channels, 4, 1), strict=True)
        )
        priors = head.prior_generator.grid_priors(
            [values.shape[-2:] for values in maps[0]], dtype=torch.float32, device=images.device, with_stride=True
        )
        boxes = head._bbox_decode(torch.cat(priors), predictions)
        scores, labels = logits.sigmoid().max(dim=2)
        scores = scores * objectness[..., 0].sigmoid()
        scores = torch.where(scores >= self.selection.threshold, scores, NONE)
        return self._chosen(Candidates(boxes, scores, labels)), None


def by_place(values: Tensor, size: int) -> Tensor:
    """Predictions (N, A * size, h, w) as (N, h * w * A, size)."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, size)


def decode_deltas(head: Any, level: int, priors: Tensor, predictions: Tensor) -> Tensor:
    """Boxes that move and scale anchors, or lie around points."""
    values = by_place(predictions, 4)
    return decoded(head.bbox_coder, priors, values)


def decoded(coder: Any, priors: Tensor, values: Tensor) -> Tensor:
    """Boxes (N, L, 4) of priors (L, ...) and predictions (N, L, 4), not clipped."""
    places = priors.expand(values.shape[0], *priors.shape).flatten(0, 1)
    boxes: Tensor = coder.decode(places, values.flatten(0, 1))
    return boxes.view(values.shape)


def clips(head: Any) -> bool:
    """Whether its boxes are clipped to the image."""
    coder = getattr(head, 'bbox_coder', None)
    return bool(getattr(coder, 'clip_border', True))


def level_names(head: Any) -> list[str]:
    """p3 for a stride of 8 px, and so on."""
    return [level_name(stride[0]) for stride in head.prior_generator.strides]


def coder_record(head: Any) -> dict[str, Any]:
    """The plain values of a head's box coder."""
    coder = getattr(head, 'bbox_coder', None)
    if coder is None:
        return {}
    values = {key: value for key, value in vars(coder).items() if isinstance(value, bool | int | float | str | tuple)}
    return {'type': type(coder).__name__} | values


def _decode_integrals(head: Any, level: int, priors: Tensor, predictions: Tensor) -> Tensor:
    """GFL: the expected distances to the sides, in strides."""
    values = by_place(predictions, 4 * (head.reg_max + 1))
    distances = head.integral(values.flatten(0, 1)).view(*values.shape[:2], 4)
    return decoded(head.bbox_coder, head.anchor_center(priors), distances * head.prior_generator.strides[level][0])


def _decode_points(head: Any, level: int, priors: Tensor, predictions: Tensor) -> Tensor:
    """RepPoints: boxes around the points of a cell, in strides."""
    boxes: Tensor = by_place(predictions, 4) * head.point_strides[level] + priors[:, :2].repeat(1, 2)
    return boxes


def _deform_conv(layer: Any, values: Tensor, offset: Tensor) -> Tensor:
    """mmcv's `DeformConv2d.forward` by torchvision's operator, which takes maps smaller than its kernel as they are."""
    from torchvision.ops import deform_conv2d

    found: Tensor = deform_conv2d(
        values, offset, layer.weight, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
    )
    return found


DECODERS: Mapping[str, Decode] = {
    'RetinaHead': decode_deltas,
    'RetinaSepBNHead': decode_deltas,
    'FCOSHead': decode_deltas,
    'ATSSHead': decode_deltas,
    'RTMDetHead': decode_deltas,
    'RTMDetSepBNHead': decode_deltas,
    'GFLHead': _decode_integrals,
    'RepPointsHead': _decode_points,
}
# What the raw values of a box mean, for those who decode them by themselves.
_BOXES: Mapping[str, str] = {
    **dict.fromkeys(('RetinaHead', 'RetinaSepBNHead', 'ATSSHead'), 'deltas of anchors: dx, dy, dw, dh'),
    **dict.fromkeys(('FCOSHead', 'RTMDetHead', 'RTMDetSepBNHead'), 'px from the point to left, top, right, bottom'),
    'GFLHead': 'logits of distances, in strides, from the centre to left, top, right, bottom',
    'RepPointsHead': 'left, top, right, bottom relative to the point, in strides',
    'YOLOXHead': 'centre relative to the point, and logarithms of width and height, in strides',
}
