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

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from mtpd.losses.masked_mse import MaskedMse
from mtpd.losses.match import LevelPair
from mtpd.losses.objects import Objects, greatest, has_area
from mtpd.losses.options import NO_DECAY, Adapter, Decay, LevelOptions, Scale


class TarFeatureOptions(LevelOptions):
    """TAR's feature level: squared error under a Gaussian mask of each object."""

    looks_at_objects: ClassVar[bool] = True

    loss: Literal['tar_feature'] = 'tar_feature'
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight; the loss is a mean over channels and a mask-weighted mean over cells."""
    spread: tuple[PositiveFloat, PositiveFloat] = (2.0, 2.0)
    """Widths of the Gaussian along x and y, in half widths and half heights of the box."""
    adapter: Adapter = 'always'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
    scale: Scale = 'teacher_std'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""
    decay: Decay = NO_DECAY
    """Decay of the weight during the stage; TAR's is linear."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`; the paper has an adapter everywhere."""
        weigh = partial(gaussian_weights, stride=pair.compared.stride, spread=self.spread)
        return MaskedMse(pair.student.channels, pair.teacher.channels, weigh=weigh, adapter=self.adapter)


def gaussian_weights(objects: Objects, mask: Tensor, *, stride: int, spread: tuple[float, float]) -> Tensor:
    """What each cell of a level weighs, float32 (B, 1, H, W): see the module. Only the shape of the mask counts."""
    y, x = ((torch.arange(cells, device=mask.device) + 0.5) * stride for cells in mask.shape[2:])
    weights = []
    # Image by image: all boxes of a batch together would need gigabytes on the finest level.
    for boxes in objects.boxes:
        x1, y1, x2, y2 = torch.where(has_area(boxes)[:, None], boxes.float(), -1.0)[:, :, None].unbind(1)
        along_x, along_y = _profile(x, x1, x2, spread[0]), _profile(y, y1, y2, spread[1])
        weights.append(greatest(along_y[:, :, None] * along_x[:, None, :])[None])
    return torch.stack(weights)


def _profile(positions: Tensor, low: Tensor, high: Tensor, spread: float) -> Tensor:
    """The Gaussian along one axis, (N, cells): positions (cells,), edges of the boxes (N, 1)."""
    inside = (positions >= low) & (positions <= high)
    # An empty interval has no width to divide by; nothing is inside it.
    half = torch.where(high > low, (high - low) / 2, 1.0)
    return torch.where(inside, (-(((positions - (low + high) / 2) / (spread * half)) ** 2)).exp(), 0.0)
