"""What keeps detectors of mmdet 3.3's own zoo from being students, and is done about it.

Nothing here changes what a detector computes where mmdet can compute it. All but `repair_mmdet` take a built detector.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# masks (N, 1, h, w), boxes (N, 4) -> the masks in a region of the image, and the slices of that region.
Paste = Callable[..., tuple[Tensor, tuple[slice, ...]]]


def repair_mmdet() -> None:
    """Lets three parts of mmdet predict that fail, for all detectors in this process."""
    from mmdet.models.dense_heads import GARPNHead, GuidedAnchorHead, SSDHead
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    # mmdet asks every dense head for its `loss_cls`, and SSD's has none. A subclass's own is found in `_modules`.
    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = property(lambda head: vars(head)['_modules'].get('loss_cls'))
    fcn_mask_head._do_paste_mask = _pasting_outside(fcn_mask_head._do_paste_mask)
    for head in (GuidedAnchorHead, GARPNHead):
        head._predict_by_feat_single = _finding_nothing(head._predict_by_feat_single)


def _pasting_outside(paste: Paste) -> Paste:
    """mmdet's function, on a CPU too for a box outside of the image, as QueryInst's may be: with the whole image."""

    def paste_anywhere(masks: Tensor, boxes: Tensor, img_h: int, img_w: int, skip_empty: bool = True) -> Any:
        # The region that mmdet cuts out, in x and y.
        first = (boxes.min(dim=0).values.floor()[:2] - 1).clamp(min=0)
        last = boxes.max(dim=0).values.ceil()[2:] + 1
        is_region = bool((first <= last.minimum(last.new_tensor((img_w, img_h)))).all())
        return paste(masks, boxes, img_h, img_w, skip_empty=skip_empty and is_region)

    return paste_anywhere


def _finding_nothing(predict: Callable[..., Any]) -> Callable[..., Any]:
    """mmdet's method, also for an image where guided anchoring keeps no location on any level: no boxes."""
    from mmengine.structures import InstanceData

    def predict_anything(
        head: Any, cls_scores: Any, bbox_preds: Any, mlvl_anchors: Any, mlvl_masks: Any, **rest: Any
    ) -> Any:
        if any(mask.any() for mask in mlvl_masks):
            return predict(head, cls_scores, bbox_preds, mlvl_anchors, mlvl_masks, **rest)
        scores = cls_scores[0].new_zeros(0)
        return InstanceData(bboxes=scores.new_zeros(0, 4), scores=scores, labels=scores.long())

    return predict_anything


def complete(model: nn.Module) -> None:
    """Gives a detector the parts that mmdet adds to it in its first training step, in place.

    DDQ's decoder then gets its head's auxiliary branches under a name of its own, so that all checkpoints of mmdet have
    them twice, and a detector that was not trained yet does not take them.
    """
    from mmdet.models.detectors import DDQDETR

    if isinstance(model, DDQDETR):
        parts: Any = model
        parts.decoder.aux_reg_branches = parts.bbox_head.aux_reg_branches


def takes_one_image(model: nn.Module) -> bool:
    """Whether a detector predicts one image at a time: mmcv's masked convolution (guided anchoring) takes no batch."""
    from mmcv.ops import MaskedConv2d

    return any(isinstance(one, MaskedConv2d) for one in model.modules())


def predicts_masks(model: nn.Module) -> bool:
    """Whether the objects that a detector predicts have masks, wherever its mask branch is.

    mmdet's `with_mask` knows heads called `mask_head` alone, not RTMDet-Ins's box head nor MaskFormer's panoptic one.
    """
    if getattr(model, 'with_mask', False):
        return True
    heads = [getattr(model, name, None) for name in ('bbox_head', 'panoptic_head')]
    return any(isinstance(getattr(head, 'loss_mask', None), nn.Module) for head in heads)
