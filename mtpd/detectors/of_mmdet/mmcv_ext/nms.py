"""Non-maximum suppression: greedy, soft (Bodla et al. 2017) and grouped.

N boxes, absolute xyxy in px. `offset` is 1 for the old convention in which a box from 3 to 5 is 3 px wide, else 0.
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as torchvision_nms

from mtpd.detectors.of_mmdet.mmcv_ext.numerics import common

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Indices (int64) of the boxes (N, 4) that are kept, best score first."""
    boxes, scores = common(_grown(boxes, offset), scores)
    kept: Tensor = torchvision_nms(boxes, scores, iou_threshold)
    return kept


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices (K,) int64 of boxes (N, 4) taken by falling score (N,); each lowers the scores of those that it overlaps.

    The first K rows of `dets` (N, 5) get the taken boxes and their lowered scores. `iou_threshold` is the overlap from
    which `NAIVE` drops a box and `LINEAR` lowers its score; `sigma` is the width of the `GAUSSIAN` decay. Boxes whose
    score falls below `min_score` are dropped.
    """
    boxes, remaining = common(boxes, scores)
    grown, remaining = _grown(boxes, offset), remaining.clone()
    taken: list[int] = []
    # -inf marks boxes that are taken or dropped.
    for _ in range(len(boxes)):
        best = int(remaining.argmax())
        if remaining[best] == -torch.inf:
            break
        dets[len(taken), :4] = boxes[best]
        dets[len(taken), 4] = remaining[best]
        taken.append(best)
        remaining[best] = -torch.inf
        overlap = box_iou(grown[best, None], grown)[0].nan_to_num(0)  # NaN: both boxes are empty
        if method == GAUSSIAN:
            decay = torch.exp(-overlap.square() / sigma)
        else:
            lowered = 1 - overlap if method == LINEAR else torch.zeros_like(overlap)
            decay = torch.where(overlap >= iou_threshold, lowered, torch.ones_like(overlap))
        # A decay of 0 times -inf would be NaN.
        remaining = torch.where(remaining == -torch.inf, remaining, remaining * decay)
        remaining[remaining < min_score] = -torch.inf
    return torch.tensor(taken, dtype=torch.int64, device=boxes.device)


def nms_match(dets: Tensor, *, iou_threshold: float) -> list[list[int]]:
    """Groups of indices into boxes with scores (N, 5): each kept box, best first, then those that it suppresses."""
    (dets,) = common(dets)
    waiting = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(waiting):
        best, others = waiting[0], waiting[1:]
        suppressed = box_iou(dets[best, None, :4], dets[others, :4])[0] >= iou_threshold
        groups.append([int(best), *others[suppressed].tolist()])
        waiting = others[~suppressed]
    return groups


def _grown(boxes: Tensor, offset: int) -> Tensor:
    return boxes if offset == 0 else boxes + boxes.new_tensor([0, 0, offset, offset])
