"""RoIs, a two-stage teacher's predictions for them, and the units of their box deltas. Boxes are absolute xyxy.

Letters: C object classes, K boxes or RoIs.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mtpd.geometry import Size

# mmdet's bound of dw and dh: a box grows or shrinks by at most 1000 / 16.
MAX_LOG_RATIO = math.log(1000 / 16)


@dataclass(frozen=True)
class BoxCoder:
    """The units in which a head gives deltas: delta = (raw delta - mean) / std.

    Raw deltas are dx, dy in widths and heights of the proposal, and dw, dh as logarithms of ratios.
    """

    means: tuple[float, float, float, float]
    stds: tuple[float, float, float, float]

    def to_raw(self, deltas: Tensor) -> Tensor:
        """Raw deltas (..., 4) of a head's deltas."""
        means, stds = self._units(deltas)
        return deltas * stds + means

    def from_raw(self, raw: Tensor) -> Tensor:
        """A head's deltas of raw ones (..., 4)."""
        means, stds = self._units(raw)
        return (raw - means) / stds

    def _units(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Means and stds beside a tensor; `new_tensor` would synchronize with the device."""
        units = torch.tensor([self.means, self.stds], dtype=like.dtype).to(like.device, non_blocking=True)
        return units[0], units[1]


def decode(proposals: Tensor, raw: Tensor) -> Tensor:
    """Proposals (K, 4) moved by raw deltas (K, 4), as mmdet's `DeltaXYWHBBoxCoder` does without a border."""
    sizes = proposals[:, 2:] - proposals[:, :2]
    centres = (proposals[:, :2] + proposals[:, 2:]) / 2 + sizes * raw[:, :2]
    halves = sizes * raw[:, 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    return torch.cat([centres - halves, centres + halves], dim=1)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (K,) of each box (K, 4) with its partner; 0 where neither has an area."""
    corners = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    intersection = corners.clamp(min=0).prod(1)
    areas = [(one[:, 2:] - one[:, :2]).clamp(min=0).prod(1) for one in (boxes, others)]
    union = areas[0] + areas[1] - intersection
    return intersection / torch.where(union == 0, 1, union)


def class_slice(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas (K, 4) of each box's class, of (K, 4 * classes), or (K, 4) for all classes; any for a background."""
    by_class = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
    rows = torch.arange(len(deltas), device=deltas.device)
    return by_class[rows, labels.clamp(max=by_class.shape[1] - 1)]


class ImageRois(NamedTuple):
    """A teacher's predictions for its own proposals of one image, the best score first."""

    boxes: Tensor  # (K, 4) float32 absolute xyxy, in px of the original image when stored
    probabilities: Tensor  # (K, C + 1) float32, the background last
    labels: Tensor  # (K,) int64 object class of the highest probability
    deltas: Tensor  # (K, 4) float32 raw deltas of that class (`BoxCoder`), which no scale of the image changes

    def to(self, device: torch.device) -> 'ImageRois':
        """The same on another device."""
        return ImageRois(*(one.to(device, non_blocking=True) for one in self))


def scaled(rois: ImageRois, *, source: Size, target: Size) -> ImageRois:
    """The same RoIs on an image of `source` (height, width) px resized to `target`."""
    factors = [target[1] / source[1], target[0] / source[0]]
    return rois._replace(boxes=rois.boxes * rois.boxes.new_tensor(factors * 2))


def mirrored(rois: ImageRois, *, width: int) -> ImageRois:
    """The same RoIs on the mirrored image of `width` px: exact, unlike for maps."""
    left, top, right, bottom = rois.boxes.unbind(1)
    dx, *others = rois.deltas.unbind(1)
    return rois._replace(
        boxes=torch.stack([width - right, top, width - left, bottom], dim=1), deltas=torch.stack([-dx, *others], dim=1)
    )
