"""The feature level of TAR (Sun et al. 2020): the student follows the teacher near the centres of objects.

    L = sum_bchw M_bhw (A(S)_bchw - T_bchw)^2 / (C sum_bhw M_bhw)

    M(x, y) = exp(-(x - cx)^2 / (sx w/2)^2 - (y - cy)^2 / (sy h/2)^2)   inside the box (cx, cy, w, h), else 0

x and y are the centre of a cell in px; where boxes overlap, the greatest counts. A cell is inside a box when its centre
is, so an object smaller than a cell may mark none. A is a 1x1 adapter.

That the mask is Gaussian and covers the boxes is verified in works that cite the paper. Its spread (sx = sy = 2), the
maximum and the normaliser are, to the best of our knowledge, the paper's; so is the published sum

    a / (2 N) sum_bchw M (A(S) - T)^2,   N = sum_bhw M

which as this mean has the weight `a C / 2`. The paper sums over all levels before it divides; here each level has its
own normaliser. `a` is not known to us: the default weight is 1, in units of the teacher's variance.

Legend: B batch, C channels, H W grid of a level, N boxes of an image.
"""

import torch
from torch import Tensor

from mtpd.losses.objects.boxes import Objects, greatest, has_area


def gaussian_weights(objects: Objects, mask: Tensor, *, stride: int, spread: tuple[float, float]) -> Tensor:
    """What each cell of a level weighs: see the module.

    Args:
        objects: of the batch.
        mask: of the level, (B, 1, H, W); only its shape and device count.
        stride: input pixels per cell.
        spread: sx and sy.

    Returns:
        float32 (B, 1, H, W), from 0 to 1.
    """
    y, x = ((torch.arange(cells, device=mask.device) + 0.5) * stride for cells in mask.shape[2:])
    # Image by image: all boxes of a batch together would need gigabytes on the finest level.
    return torch.stack([_image_weights(boxes, x, y, spread)[None] for boxes in objects.boxes])


def _image_weights(boxes: Tensor, x: Tensor, y: Tensor, spread: tuple[float, float]) -> Tensor:
    """(H, W) of one image, from its boxes (N, 4)."""
    boxes = torch.where(has_area(boxes)[:, None], boxes.float(), -1.0)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    along_x, along_y = _profile(x, x1, x2, spread[0]), _profile(y, y1, y2, spread[1])
    return greatest(along_y[:, :, None] * along_x[:, None, :])


def _profile(positions: Tensor, low: Tensor, high: Tensor, spread: float) -> Tensor:
    """The Gaussian along one axis, (N, cells): positions (cells,), edges of the boxes (N, 1)."""
    inside = (positions >= low) & (positions <= high)
    # An empty interval has no width to divide by; nothing is inside it.
    half = torch.where(high > low, (high - low) / 2, 1.0)
    return torch.where(inside, (-(((positions - (low + high) / 2) / (spread * half)) ** 2)).exp(), 0.0)
