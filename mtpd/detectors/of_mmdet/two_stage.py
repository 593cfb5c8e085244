"""mmdet's Faster and Mask R-CNN as they are exported: the same boxes and masks as their `predict`, as one graph.

N images, P proposals, C classes, D detections.
"""

from typing import Any

import torch
from torch import Tensor

from mtpd.detectors.exportable import Exportable
from mtpd.detectors.of_mmdet.one_stage import by_place, clips, decode_deltas
from mtpd.detectors.of_mmdet.selection import read_selection, require_keys
from mtpd.errors import InputError
from mtpd.heads.postprocessing import (
    NONE,
    Candidates,
    aligned_rois,
    batch_rois,
    best_of_groups,
    clipped,
    top_candidates,
    without_small,
)
from mtpd.heads.roi_head import roi_levels

# Parts of these classes are understood, and no subclasses.
_PARTS = {
    'rpn_head': ('RPNHead',),
    'roi_head': ('StandardRoIHead',),
    'roi_head.bbox_roi_extractor': ('SingleRoIExtractor',),
    'roi_head.bbox_head': ('ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead'),
    'roi_head.mask_roi_extractor': ('SingleRoIExtractor',),
    'roi_head.mask_head': ('FCNMaskHead',),
}


class TwoStage(Exportable):
    """Faster R-CNN and Mask R-CNN."""

    def __init__(self, model: Any, *, name: str) -> None:
        super().__init__()
        _require_parts(model, name=name)
        self.model = model
        rpn, rcnn = model.rpn_head.test_cfg, model.roi_head.test_cfg
        require_keys(
            rpn, {'nms_pre', 'min_bbox_size', 'max_per_img', 'nms', 'score_thr'}, place='test_cfg.rpn', name=name
        )
        require_keys(rcnn, {'score_thr', 'nms', 'max_per_img', 'mask_thr_binary'}, place='test_cfg.rcnn', name=name)
        self.proposal_selection = read_selection(rpn, place='test_cfg.rpn', name=name)
        self.selection = read_selection({**rcnn, 'nms_pre': 1}, place='test_cfg.rcnn', name=name)
        self.num_detections, self.iou_threshold = self.selection.num_detections, self.selection.iou_threshold
        if model.with_mask:
            self.paste = 'mmdet'
            if rcnn.mask_thr_binary != 0.5:
                raise InputError(
                    f'{name}: test_cfg.rcnn.mask_thr_binary is {rcnn.mask_thr_binary}, but an export needs 0.5; '
                    'change it in a config'
                )

    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """See `Exportable`."""
        maps = self.model.extract_feat(images.to(self.dtype))
        proposals = self._proposals(maps, limits)
        roi_head, selection = self.model.roi_head, self.selection
        head, num_classes = roi_head.bbox_head, roi_head.bbox_head.num_classes
        rois = batch_rois(proposals.boxes)
        outputs = head(_extracted(roi_head.bbox_roi_extractor, maps, rois))
        logits, deltas = (values.float() for values in outputs)
        num_boxes = 1 if head.reg_class_agnostic else num_classes
        # (P, C, 4)
        anchors = rois[:, None, 1:].expand(-1, num_boxes, 4).reshape(-1, 4)
        boxes = head.bbox_coder.decode(anchors, deltas.reshape(-1, 4)).view(proposals.boxes.shape[0], -1, num_boxes, 4)
        if clips(head):
            boxes = clipped(boxes, limits)
        boxes = boxes.expand(-1, -1, num_classes, 4)
        scores = logits.softmax(dim=-1)[:, :-1].view(boxes.shape[:3])
        is_found = (scores > selection.threshold) & (proposals.scores > NONE)[..., None]
        scores = torch.where(is_found, scores, NONE)
        # Groups (N, C, P): the classes, or all of them as one.
        labels = torch.arange(num_classes, device=scores.device)[:, None].expand(scores.shape[0], -1, scores.shape[1])
        groups = boxes.transpose(1, 2), scores.transpose(1, 2), labels
        if selection.is_class_agnostic:
            groups = groups[0].flatten(1, 2)[:, None], groups[1].flatten(1)[:, None], labels.flatten(1)[:, None]
        found = best_of_groups(*groups, iou_threshold=selection.iou_threshold, limit=self.num_detections)
        return found, self._masks(maps, found) if self.paste else None

    def _proposals(self, maps: list[Tensor], limits: Tensor) -> Candidates:
        head, selection = self.model.rpn_head, self.proposal_selection
        logits, predictions = ([values.float() for values in one] for one in head(maps))
        priors = head.prior_generator.grid_priors(
            [values.shape[-2:] for values in logits], dtype=torch.float32, device=limits.device
        )
        found = []
        for level, (logit, prediction, prior) in enumerate(zip(logits, predictions, priors, strict=True)):
            values = by_place(logit, head.cls_out_channels)
            scores = values.sigmoid() if head.use_sigmoid_cls else values.softmax(dim=-1)[..., :-1]
            boxes = decode_deltas(head, level, prior, prediction)
            if clips(head):
                boxes = clipped(boxes, limits)
            one = top_candidates(scores, boxes, threshold=NONE, limit=selection.num_candidates)
            found.append(without_small(one, above=0) if selection.is_small_dropped else one)
        # As many of each level.
        boxes, scores, labels = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
        # mmdet moves levels apart by the largest coordinate. Of thousands of proposals some overlap so nearly by the
        # threshold that the rounding of that decides, so it is done here too.
        largest = torch.where(scores > NONE, boxes.amax(dim=3), 0.0).amax(dim=(1, 2))
        offsets = torch.arange(len(found), device=boxes.device) * (largest[:, None] + 1)
        return best_of_groups(
            boxes,
            scores,
            labels,
            iou_threshold=selection.iou_threshold,
            limit=selection.num_detections,
            moved=boxes + offsets[..., None, None],
        )

    def _masks(self, maps: list[Tensor], found: Candidates) -> Tensor:
        """(N, D, 28, 28), from 0 to 1, of the class of each detection."""
        head = self.model.roi_head.mask_head
        features = _extracted(self.model.roi_head.mask_roi_extractor, maps, batch_rois(found.boxes))
        logits: Tensor = head(features).float()
        logits = logits.view(*found.labels.shape, *logits.shape[1:])
        if not head.class_agnostic:
            places = found.labels.clamp(min=0)[..., None, None, None].expand(-1, -1, 1, *logits.shape[3:])
            logits = logits.gather(2, places)
        return logits[:, :, 0].sigmoid()


def _extracted(extractor: Any, maps: list[Tensor], rois: Tensor) -> Tensor:
    """What mmdet's `SingleRoIExtractor` gives."""
    layers, dtype = extractor.roi_layers, maps[0].dtype
    levels = roi_levels(rois, num_levels=len(layers), finest_scale=extractor.finest_scale)
    first = layers[0]
    return aligned_rois(
        maps[: len(layers)],
        rois,
        levels,
        strides=extractor.featmap_strides,
        output_size=first.output_size[0],
        sampling_ratio=first.sampling_ratio,
        aligned=first.aligned,
    ).to(dtype)


def _require_parts(model: Any, *, name: str) -> None:
    """Refuses detectors with other parts than those that are computed here."""
    for place, known in _PARTS.items():
        if 'mask' in place and not model.with_mask:
            continue
        part: Any = model
        for key in place.split('.'):
            part = getattr(part, key, None)
        kind = type(part).__name__
        if kind not in known:
            raise InputError(f'{name}: its {place} is {kind}, but an export needs {" or ".join(known)}')
    roi_head = model.roi_head
    extractors = [roi_head.bbox_roi_extractor, *([roi_head.mask_roi_extractor] if model.with_mask else [])]
    for layer in (one for extractor in extractors for one in extractor.roi_layers):
        if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg' or len(set(layer.output_size)) != 1:
            raise InputError(f'{name}: its RoI layer is {layer}, but an export needs a RoIAlign with averages')
    if roi_head.bbox_head.custom_activation or not roi_head.bbox_head.with_reg or roi_head.with_shared_head:
        raise InputError(f'{name}: its box head has a shared head, an activation of its own or no boxes')
