"""Where the objects of a batch are, for the losses that look at them.

Legend: B batch, N boxes of an image, H W grid of a level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objects:
    """The annotated objects of a batch: boxes of each image (N, 4), absolute xyxy in px of the padded input.

    A box without area marks nothing. `masks` are of the student's levels by stride: bool (B, 1, H, W), True at cells
    that show the image.
    """

    boxes: Sequence[Tensor]
    masks: Mapping[int, Tensor]


def has_area(boxes: Tensor) -> Tensor:
    """Bool (N,): which boxes (N, 4) have a positive width and height; NaN is neither."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def greatest(values: Tensor) -> Tensor:
    """The greatest value (H, W) of what boxes give each cell (N, H, W), at least 0: without boxes 0 everywhere."""
    # A row of zeros, because a maximum over nothing does not exist.
    return torch.cat([values.new_zeros(1, *values.shape[1:]), values]).amax(0)
