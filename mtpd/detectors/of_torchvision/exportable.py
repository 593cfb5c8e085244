"""torchvision's detectors as they are exported: the same boxes and masks as their own, as one graph.

What a head predicts, and its anchors and box coder, are torchvision's own. N images, L places, C outputs of a head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtpd.detectors.exportable import Exportable
from mtpd.heads.postprocessing import (
    NONE,
    Candidates,
    aligned_rois,
    batch_rois,
    best,
    best_of_groups,
    clipped,
    joined,
    suppressed,
    top_candidates,
    without_small,
)

# As torchvision's RoI heads have it.
_SMALLEST = 1e-2


class TorchvisionExportable(Exportable):
    """What all have in common.

    Attributes:
        labels: of each output of the class head, its label; -1 for those that stand for nothing.
    """

    labels: Tensor

    def __init__(self, model: Any, *, outputs: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.model = model
        labels = torch.full((num_outputs,), -1)
        labels[list(outputs)] = torch.arange(len(outputs))
        self.register_buffer('labels', labels)
        owner = model.roi_heads if hasattr(model, 'roi_heads') else model
        self.num_detections, self.iou_threshold = owner.detections_per_img, owner.nms_thresh

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the heads get."""
        return list(self.named_maps(images).values())

    def named_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The same with their names, by which RoI heads choose theirs."""
        found: dict[str, Tensor] = self.model.backbone(images.to(self.dtype))
        return found

    def labelled(self, found: Candidates, masks: Tensor | None = None) -> tuple[Candidates, Tensor | None]:
        """Labels in the place of outputs, in the order of scores; what has no label is left out."""
        labels = self.labels[found.labels]
        scores = torch.where(labels >= 0, found.scores, NONE)
        scores, places = scores.topk(self.num_detections)
        boxes = found.boxes.gather(1, places[..., None].expand(-1, -1, 4))
        if masks is not None:
            masks = masks.gather(1, places[..., None, None].expand_as(masks))
        return Candidates(boxes, scores, labels.gather(1, places)), masks

    def anchors(self, images: Tensor, maps: Sequence[Tensor], *, generator: Any) -> Tensor:
        """Of all levels (L, 4)."""
        from torchvision.models.detection.image_list import ImageList

        # They are the same for all images of a batch, whose sizes count for nothing else.
        found: Tensor = generator(ImageList(images, [(0, 0)]), [values.float() for values in maps])[0]
        return found


class TorchvisionOneStage(TorchvisionExportable):
    """RetinaNet and FCOS."""

    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """See `Exportable`."""
        model, maps = self.model, self.maps(images)
        outputs = {name: values.float() for name, values in model.head(maps).items()}
        anchors = self.anchors(images, maps, generator=model.anchor_generator)
        scores = outputs['cls_logits'].sigmoid()
        if 'bbox_ctrness' in outputs:
            scores = (scores * outputs['bbox_ctrness'].sigmoid()).sqrt()
            boxes = model.box_coder.decode(outputs['bbox_regression'], anchors)
        else:
            boxes = decoded(model.box_coder, outputs['bbox_regression'], anchors)
        boxes = clipped(boxes, limits)
        counts = [self._num_anchors * values.shape[2] * values.shape[3] for values in maps]
        levels = [
            top_candidates(*parts, threshold=model.score_thresh, limit=model.topk_candidates)
            for parts in zip(torch.split(scores, counts, dim=1), torch.split(boxes, counts, dim=1), strict=True)
        ]
        found = suppressed(joined(levels), iou_threshold=model.nms_thresh, num_classes=len(self.labels))
        return self.labelled(best(found, self.num_detections))

    def raw(self, images: Tensor) -> Mapping[str, Tensor]:
        """`class`, `box` and for FCOS `factor`, of all levels, (N, L, values)."""
        outputs = self.model.head(self.maps(images))
        names = {'cls_logits': 'class', 'bbox_regression': 'box', 'bbox_ctrness': 'factor'}
        return {names[name]: values.float() for name, values in outputs.items()}

    def raw_record(self) -> Mapping[str, Any]:
        """Levels with anchors, and how detections are chosen."""
        model, generator = self.model, self.model.anchor_generator
        is_fcos = not hasattr(model.box_coder, 'weights')
        return {
            'levels': [{'anchors': one.tolist()} for one in generator.cell_anchors],
            'strides': 'height of the input divided by rows of a level, rounded down; so for its width and columns',
            'activation': 'sigmoid, and the root of its product with that of factor' if is_fcos else 'sigmoid',
            'boxes': (
                'distances from the centre of the anchor to left, top, right, bottom, in its sides'
                if is_fcos
                else 'deltas of anchors: dx, dy, dw, dh'
            ),
            'labels': self.labels.tolist(),
            'selection': {
                'threshold': model.score_thresh, 'num_candidates': model.topk_candidates,
                'iou_threshold': model.nms_thresh, 'num_detections': model.detections_per_img,
            },
        }  # fmt: skip

    @property
    def _num_anchors(self) -> int:
        counts = set(self.model.anchor_generator.num_anchors_per_location())
        return int(counts.pop())


class TorchvisionSsd(TorchvisionExportable):
    """SSD and SSDLite, which take inputs of one size."""

    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """See `Exportable`."""
        model, maps = self.model, self.maps(images)
        outputs = {name: values.float() for name, values in model.head(maps).items()}
        anchors = self.anchors(images, maps, generator=model.anchor_generator)
        boxes = clipped(decoded(model.box_coder, outputs['bbox_regression'], anchors), limits)
        scores = outputs['cls_logits'].softmax(dim=-1).transpose(1, 2)[:, 1:]
        # The best of each class, (N, C, K).
        scores, places = torch.where(scores > model.score_thresh, scores, NONE).topk(
            min(model.topk_candidates, anchors.shape[0])
        )
        num_classes = scores.shape[1]
        chosen = boxes[:, None].expand(-1, num_classes, -1, -1).gather(2, places[..., None].expand(-1, -1, -1, 4))
        labels = torch.arange(1, num_classes + 1, device=scores.device)[:, None].expand_as(scores)
        found = best_of_groups(chosen, scores, labels, iou_threshold=model.nms_thresh, limit=self.num_detections)
        return self.labelled(found)

    def raw(self, images: Tensor) -> Mapping[str, Tensor]:
        """`class` and `box`, of all levels, (N, L, values)."""
        outputs = self.model.head(self.maps(images))
        return {'class': outputs['cls_logits'].float(), 'box': outputs['bbox_regression'].float()}

    def raw_record(self) -> Mapping[str, Any]:
        """The anchors, and how detections are chosen."""
        model = self.model
        generator = model.anchor_generator
        return {
            'levels': [
                {'sizes': pairs.tolist()} | ({} if generator.steps is None else {'stride': generator.steps[level]})
                for level, pairs in enumerate(generator._wh_pairs)
            ],
            'activation': 'softmax, the background first',
            'boxes': 'deltas of anchors: dx / 10, dy / 10, dw / 5, dh / 5',
            'labels': self.labels.tolist(),
            'selection': {
                'threshold': model.score_thresh, 'num_candidates': model.topk_candidates,
                'iou_threshold': model.nms_thresh, 'num_detections': model.detections_per_img,
            },
        }  # fmt: skip


class TorchvisionTwoStage(TorchvisionExportable):
    """Faster R-CNN and Mask R-CNN."""

    def __init__(self, model: Any, *, outputs: Sequence[int], num_outputs: int, strides: Sequence[int]) -> None:
        super().__init__(model, outputs=outputs, num_outputs=num_outputs)
        self.strides = strides
        self.paste = 'torchvision' if model.roi_heads.has_mask() else None

    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """See `Exportable`."""
        maps = self.named_maps(images)
        proposals = self._proposals(images, list(maps.values()), limits)
        heads, rois = self.model.roi_heads, batch_rois(proposals.boxes)
        features = heads.box_head(self._extracted(heads.box_roi_pool, maps, rois))
        logits, deltas = (values.float() for values in heads.box_predictor(features))
        num_outputs = logits.shape[1]
        boxes = heads.box_coder.decode_single(deltas, rois[:, 1:])
        boxes = clipped(boxes.view(limits.shape[0], -1, num_outputs, 4), limits)[:, :, 1:]
        scores = logits.softmax(dim=-1).view(limits.shape[0], -1, num_outputs)[:, :, 1:]
        is_found = (scores > heads.score_thresh) & (proposals.scores > NONE)[..., None]
        is_found = is_found & ((boxes[..., 2:] - boxes[..., :2]) >= _SMALLEST).all(dim=-1)
        # Groups (N, C, P): the classes.
        scores, boxes = torch.where(is_found, scores, NONE).transpose(1, 2), boxes.transpose(1, 2)
        labels = torch.arange(1, num_outputs, device=scores.device)[:, None].expand_as(scores)
        found = best_of_groups(boxes, scores, labels, iou_threshold=heads.nms_thresh, limit=self.num_detections)
        return self.labelled(found, self._masks(maps, found) if self.paste else None)

    def _proposals(self, images: Tensor, maps: Sequence[Tensor], limits: Tensor) -> Candidates:
        rpn = self.model.rpn
        logits, deltas = rpn.head(list(maps))
        anchors = self.anchors(images, maps, generator=rpn.anchor_generator)
        num_anchors = rpn.anchor_generator.num_anchors_per_location()
        counts = [number * values.shape[2] * values.shape[3] for number, values in zip(num_anchors, maps, strict=True)]
        found = []
        for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True)):
            places = torch.split(anchors, counts)[level]
            values = delta.float().unflatten(1, (num_anchors[level], 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            boxes = clipped(decoded(rpn.box_coder, values, places), limits)
            scores = logit.float().permute(0, 2, 3, 1).flatten(1)[..., None].sigmoid()
            scores = torch.where(scores >= rpn.score_thresh, scores, NONE)
            found.append(
                without_small(
                    top_candidates(scores, boxes, threshold=NONE, limit=rpn.pre_nms_top_n()), least=rpn.min_size
                )
            )
        # As many of each level.
        groups = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
        return best_of_groups(*groups, iou_threshold=rpn.nms_thresh, limit=rpn.post_nms_top_n())

    def _extracted(self, pool: Any, maps: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """What torchvision's `MultiScaleRoIAlign` gives."""
        from torchvision.ops.poolers import initLevelMapper

        places = [place for place, name in enumerate(maps) if name in pool.featmap_names]
        strides = [self.strides[place] for place in places]
        first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
        mapper = initLevelMapper(
            first, last, canonical_scale=pool.canonical_scale, canonical_level=pool.canonical_level
        )
        return aligned_rois(
            [list(maps.values())[place] for place in places],
            rois,
            mapper([rois[:, 1:]]) if len(places) > 1 else torch.zeros_like(rois[:, 0]),
            strides=strides,
            output_size=pool.output_size[0],
            sampling_ratio=pool.sampling_ratio,
            aligned=False,
        ).to(self.dtype)

    def _masks(self, maps: Mapping[str, Tensor], found: Candidates) -> Tensor:
        """(N, D, 28, 28), from 0 to 1, of the class of each detection."""
        heads = self.model.roi_heads
        features = self._extracted(heads.mask_roi_pool, maps, batch_rois(found.boxes))
        logits: Tensor = heads.mask_predictor(heads.mask_head(features)).float()
        logits = logits.view(*found.labels.shape, *logits.shape[1:])
        places = found.labels[..., None, None, None].expand(-1, -1, 1, *logits.shape[3:])
        return logits.gather(2, places)[:, :, 0].sigmoid()


def exportable_of(model: Any, *, outputs: Sequence[int], strides: Sequence[int]) -> TorchvisionExportable:
    """The network of a detector as it is exported; `strides` are those of its maps."""
    if hasattr(model, 'roi_heads'):
        num_outputs = model.roi_heads.box_predictor.cls_score.out_features
        return TorchvisionTwoStage(model, outputs=outputs, num_outputs=num_outputs, strides=strides)
    if type(model).__name__ == 'SSD':
        return TorchvisionSsd(model, outputs=outputs, num_outputs=model.head.classification_head.num_columns)
    return TorchvisionOneStage(model, outputs=outputs, num_outputs=model.head.classification_head.num_classes)


def decoded(coder: Any, values: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (N, L, 4) of predictions (N, L, 4) and anchors (L, 4), not clipped."""
    places = anchors.expand(values.shape[0], -1, 4).flatten(0, 1)
    found: Tensor = coder.decode_single(values.flatten(0, 1), places)
    return found.view(values.shape)
