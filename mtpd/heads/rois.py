"""A two-stage teacher's predictions for its own proposals of one image."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtpd.geometry import Size


class ImageRois(NamedTuple):
    """Proposals with the best score first, K of them, C object classes.

    Attributes:
        boxes: (K, 4) float32 absolute xyxy, in px of the original image when stored.
        probabilities: (K, C + 1) float32, the background last.
        labels: (K,) int64 object class of the highest probability.
        deltas: (K, 4) float32 raw deltas of that class; see `mtpd.heads.boxes.BoxCoder`. They do not depend on the
            scale of the image.
    """

    boxes: Tensor
    probabilities: Tensor
    labels: Tensor
    deltas: Tensor

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
