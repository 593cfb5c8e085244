"""Whether an exported file finds what its detector finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from mtpd.detectors.detector import Detections

# What float32 leaves equal: scores, and boxes in px.
MAX_SCORE_ERROR, MAX_BOX_ERROR = 1e-4, 0.05
# Of a mask's pixels, how many may differ.
MAX_MASK_ERROR = 1e-3
# Libraries move the classes apart for their suppression, by the largest coordinate each, which rounds corners to
# float32, and so overlaps.
IOU_ROUNDING, FLOAT32 = 1e-4, 2.0**-23


@dataclass(frozen=True)
class Comparison:
    """The differences of detections that belong together, and what has no counterpart.

    Attributes:
        num_detections: of the detector.
        score_error, box_error, mask_error: the largest; px of boxes, share of the pixels of masks.
        num_rounded: detections without counterpart, since an overlap lies within its rounding of the threshold, or as
            the last ones of a list.
        unexplained: a sentence about the first other detection without counterpart; None: there is none.
    """

    num_detections: int
    score_error: float
    box_error: float
    mask_error: float
    num_rounded: int
    unexplained: str | None

    def failure(self) -> str | None:
        """What differs by more than float32 explains, with its error; None: nothing."""
        for name, error, limit, unit in (
            ('scores', self.score_error, MAX_SCORE_ERROR, ''),
            ('boxes', self.box_error, MAX_BOX_ERROR, ' px'),
            ('masks', self.mask_error, MAX_MASK_ERROR, ' of their pixels'),
        ):
            if not error <= limit:
                return f'{name} differ by {error:.2g}{unit}, expected at most {limit:g}{unit}'
        return self.unexplained

    def line(self) -> str:
        """What a user reads about it."""
        masks = f', masks within {self.mask_error:.1g} of their pixels' if self.mask_error else ''
        rounded = f'; {self.num_rounded} differ by the rounding of overlaps' if self.num_rounded else ''
        return (
            f'{self.num_detections} detections agree: scores within {self.score_error:.1g}, boxes within '
            f'{self.box_error:.1g} px{masks}{rounded}'
        )


def compare(
    expected: Sequence[Detections], found: Sequence[Detections], *, iou_threshold: float | None, limit: int
) -> Comparison:
    """Compares what a detector and its file find in the same images.

    Args:
        expected, found: of the detector and of the file, for each image.
        iou_threshold: of the suppression; None: there is none.
        limit: detections that the file gives of an image.
    """
    images = [
        _compare_image(*pair, iou_threshold=iou_threshold, limit=limit, image=number)
        for number, pair in enumerate(zip(expected, found, strict=True), start=1)
    ]
    return Comparison(
        num_detections=sum(one.num_detections for one in images),
        score_error=max((one.score_error for one in images), default=0.0),
        box_error=max((one.box_error for one in images), default=0.0),
        mask_error=max((one.mask_error for one in images), default=0.0),
        num_rounded=sum(one.num_rounded for one in images),
        unexplained=next((one.unexplained for one in images if one.unexplained), None),
    )


def _compare_image(
    expected: Detections, found: Detections, *, iou_threshold: float | None, limit: int, image: int
) -> Comparison:
    pairs = _pairs(expected, found)
    first, second = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    score_error = _largest((expected.scores[first] - found.scores[second]).abs())
    box_error = _largest((expected.boxes[first] - found.boxes[second]).abs())
    mask_error = 0.0
    if expected.masks is not None and found.masks is not None and len(pairs):
        differing = (expected.masks[first] != found.masks[second]).flatten(1).float().mean(dim=1)
        mask_error = _largest(differing)
    num_rounded, unexplained = 0, None
    for name, own, other, own_paired, other_paired in (
        ('the detector', expected, found, first, second),
        ('the file', found, expected, second, first),
    ):
        is_full = len(other.scores) >= limit
        for place in sorted(set(range(len(own.scores))) - set(own_paired.tolist())):
            if _is_rounded(
                own, place, other, other_paired, iou_threshold=iou_threshold, box_error=box_error, is_full=is_full
            ):
                num_rounded += 1
            elif unexplained is None:
                box = ', '.join(f'{value:.1f}' for value in own.boxes[place].tolist())
                unexplained = (
                    f'only {name} finds class {int(own.labels[place])} with score {float(own.scores[place]):.4f} at '
                    f'({box}) in sample {image}'
                )
    return Comparison(len(expected.scores), score_error, box_error, mask_error, num_rounded, unexplained)


def _pairs(expected: Detections, found: Detections) -> list[tuple[int, int]]:
    """Which detections are the same: of one class, the nearest box first, each once."""
    if not len(expected.scores) or not len(found.scores):
        return []
    distances = (expected.boxes[:, None] - found.boxes[None]).abs().amax(dim=2)
    # Two boxes of one place, or nearly, are told apart by their scores.
    distances += (expected.scores[:, None] - found.scores[None]).abs()
    distances[expected.labels[:, None] != found.labels[None]] = torch.inf
    near = (distances < 1).nonzero()
    order = distances[near[:, 0], near[:, 1]].argsort(stable=True)
    pairs, used = [], (set[int](), set[int]())
    for first, second in near[order].tolist():
        if first not in used[0] and second not in used[1]:
            pairs.append((first, second))
            used[0].add(first)
            used[1].add(second)
    return pairs


def _is_rounded(
    own: Detections,
    place: int,
    other: Detections,
    paired: Tensor,
    *,
    iou_threshold: float | None,
    box_error: float,
    is_full: bool,
) -> bool:
    """Whether a detection without counterpart is due to rounding.

    Either it would be among the last ones of a full list, or a better box of the other list suppresses it there, which
    its own list has not, or by an overlap that rounding, or the `box_error` of others in px, decides.
    """
    score = own.scores[place]
    if is_full and score <= other.scores.min() + MAX_SCORE_ERROR:
        return True
    if iou_threshold is None or not len(other.scores):
        return False
    overlaps = box_iou(own.boxes[place, None], other.boxes)[0]
    better = (other.labels == own.labels[place]) & (other.scores >= score - MAX_SCORE_ERROR)
    moved = float(own.labels[place] + 1) * float(torch.cat([own.boxes, other.boxes]).max() + 1)
    corner_error = moved * FLOAT32 + min(box_error, MAX_BOX_ERROR)
    sides = (own.boxes[place, 2:] - own.boxes[place, :2]).clamp(min=corner_error)
    is_near = (overlaps - iou_threshold).abs() <= IOU_ROUNDING + float((4 * corner_error / sides).sum())
    is_alone = torch.ones(len(other.scores), dtype=torch.bool)
    is_alone[paired] = False
    return bool((better & (is_near | (is_alone & (overlaps > iou_threshold)))).any())


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
