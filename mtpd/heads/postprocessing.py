"""From the predictions of heads to the best boxes, by tensor operations of fixed shapes, which every runtime has.

The same results as the loops over images and classes of detection libraries, but as one graph that can be exported:
what is not there has the score `NONE` and stays in its place. N images, L places of a level, K candidates, C classes.
Boxes are absolute xyxy, in px of the input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# The score of a candidate that is none; those of detections are above 0.
NONE = -1.0


class Candidates(NamedTuple):
    """Boxes that may be detections."""

    boxes: Tensor  # (N, K, 4) float32
    scores: Tensor  # (N, K) float32, NONE where there is none
    labels: Tensor  # (N, K) int64, class indices, 0-based


def top_candidates(
    scores: Tensor, boxes: Tensor, *, threshold: float, limit: int, factors: Tensor | None = None
) -> Candidates:
    """The `limit` best pairs of a place and a class with scores (N, L, C) above `threshold`; fewer if there are fewer.

    `boxes` are (N, L, 4). The scores of those that are found are multiplied by `factors` (N, L), such as centerness.
    """
    num_places, num_classes = scores.shape[1:]
    flat = scores.flatten(1)
    # So that there are enough to choose from on a small level.
    flat = pad(torch.where(flat > threshold, flat, NONE), (0, limit), value=NONE)
    best, places = flat.topk(limit)
    places = places.clamp(max=num_places * num_classes - 1)
    labels, places = places % num_classes, places // num_classes
    if factors is not None:
        best = torch.where(best > NONE, best * factors.gather(1, places), NONE)
    return Candidates(boxes.gather(1, _of_boxes(places)), best, labels)


def joined(levels: Sequence[Candidates]) -> Candidates:
    """The candidates of several levels."""
    return Candidates(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))


def without_small(candidates: Candidates, *, above: float | None = None, least: float | None = None) -> Candidates:
    """Without boxes whose sides are not `above`, or not at least `least`, px."""
    boxes, scores, labels = candidates
    sides = boxes[..., 2:] - boxes[..., :2]
    if above is not None:
        scores = torch.where((sides > above).all(dim=-1), scores, NONE)
    if least is not None:
        scores = torch.where((sides >= least).all(dim=-1), scores, NONE)
    return Candidates(boxes, scores, labels)


def clipped(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (N, ..., 4) inside of images whose (height, width) are `limits` (N, 2) px."""
    height, width = limits.to(boxes.dtype).unbind(1)
    corner = torch.stack([width, height, width, height], dim=1)
    return boxes.clamp(min=0).minimum(corner.view(corner.shape[0], *[1] * (boxes.ndim - 2), 4))


def suppressed(candidates: Candidates, *, iou_threshold: float, num_classes: int | None) -> Candidates:
    """Without those that overlap a better one of their class, by greedy non-maximum suppression.

    `num_classes` None: of any class.
    """
    boxes, scores, labels = candidates
    groups = scores[:, None]
    if num_classes is not None:
        classes = torch.arange(num_classes, device=labels.device)
        groups = torch.where(labels[:, None] == classes[:, None], groups, NONE)
    kept = nms(boxes, groups, iou_threshold).any(dim=1)
    return Candidates(boxes, torch.where(kept, scores, NONE), labels)


def best(candidates: Candidates, limit: int) -> Candidates:
    """The `limit` best, in the order of their scores."""
    boxes, scores, labels = candidates
    # As many more, so that there are enough to choose from.
    found, places = pad(scores, (0, limit), value=NONE).topk(limit)
    places = places.clamp(max=scores.shape[1] - 1)
    return Candidates(boxes.gather(1, _of_boxes(places)), found, labels.gather(1, places))


def best_of_groups(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, iou_threshold: float, limit: int, moved: Tensor | None = None
) -> Candidates:
    """The `limit` best of an image that are not suppressed by a better one of their group, such as a level or a class.

    Args:
        boxes, scores, labels: (N, G, K, 4), (N, G, K) and (N, G, K) of each group.
        iou_threshold: overlap from which a box is suppressed.
        limit: how many are kept.
        moved: boxes to compute overlaps with; None: the boxes.
    """
    compared = boxes if moved is None else moved
    # As images of a batch: each group has boxes of its own.
    kept = nms(compared.flatten(0, 1), scores.flatten(0, 1)[:, None], iou_threshold).view(scores.shape)
    scores = torch.where(kept, scores, NONE)
    return best(Candidates(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1)), limit)


def cleared(candidates: Candidates) -> Candidates:
    """Detections as an exported file gives them: box 0, score 0 and label -1 where there is none."""
    boxes, scores, labels = candidates
    found = scores > NONE
    return Candidates(
        torch.where(found[..., None], boxes, 0.0), torch.where(found, scores, 0.0), torch.where(found, labels, -1)
    )


def batch_rois(boxes: Tensor) -> Tensor:
    """Boxes (N, K, 4) as RoIs (N * K, 5): image in the batch, and box."""
    images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    return torch.cat([images[:, None, None].expand(-1, boxes.shape[1], 1), boxes], dim=2).flatten(0, 1)


def aligned_rois(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign (K, channels, size, size) of RoIs (K, 5), each from its level (K,), in float32.

    Each level is asked for all RoIs, those of others being empty there, which costs little.
    """
    # Importing it takes longer than torch itself, and what reads a cache needs it rarely.
    from torchvision.ops import roi_align

    features = rois.new_zeros(())
    for level, (values, stride) in enumerate(zip(maps, strides, strict=True)):
        here = (levels == level)[:, None]
        found = roi_align(
            values.float(), torch.where(here, rois, 0.0), output_size, 1 / stride, sampling_ratio, aligned
        )
        features = torch.where(here[..., None, None], found, features)
    return features


@torch.library.custom_op('mtpd::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes (B, K, 4) greedy non-maximum suppression keeps in each group of scores (B, G, K): bool (B, G, K).

    A box with the score NONE is not in the group. ONNX has an operator for this, by which an export replaces it.
    """
    return nms_by_torchvision(boxes, scores, iou_threshold)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def nms_by_torchvision(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """`nms` by torchvision's operator: groups are moved apart, in float64, where that loses nothing."""
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    num_groups, num_places = scores.shape[1:]
    batch, group, place = (scores > NONE).nonzero().unbind(1)
    found, ranks = boxes[batch, place].double(), scores[batch, group, place].double()
    lowest = boxes.min().double()
    span = boxes.max().double() - lowest + 1
    moved = found + ((batch * num_groups + group).double() * span)[:, None]
    # Graphs are recorded as if two boxes at least were kept: two that are far from all others, and the last ones.
    corners = (lowest - torch.arange(1, 3, device=boxes.device)[:, None] * 4).expand(2, 2)
    far = torch.cat([corners, corners + 1], dim=1)
    kept = torch.ops.torchvision.nms(
        torch.cat([moved, far]), torch.cat([ranks, found.new_full((2,), 2 * NONE)]), iou_threshold
    )
    num_all = scores.shape[0] * num_groups * num_places
    slots = (batch * num_groups + group) * num_places + place
    slots = torch.cat([slots, num_all + torch.arange(2, device=boxes.device)])[kept]
    # Not in place, so that it can be recorded.
    result = scores.new_zeros(num_all + 2).index_put((slots,), scores.new_ones(()))
    return result[:num_all].view(scores.shape) > 0


def _of_boxes(places: Tensor) -> Tensor:
    return places[..., None].expand(-1, -1, 4)
