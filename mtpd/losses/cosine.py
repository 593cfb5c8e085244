"""Cosine: the direction of the student's feature vector in each cell follows the teacher's, behind a 1x1 adapter.

What trainers distil vision foundation models into detectors by: RT-DETRv4 (Liao et al. 2025) from DINOv3, for one.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from mtpd.losses.adapter import AdaptedLoss
from mtpd.losses.maps import accumulation_dtype, check_shapes
from mtpd.losses.match import LevelPair
from mtpd.losses.options import Adapter, LevelOptions


class CosineOptions(LevelOptions):
    """Cosine distillation: one minus the cosine of each cell's feature vectors, for vision foundation models."""

    loss: Literal['cosine'] = 'cosine'
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight; the loss is a mean over cells, from 0 to 2."""
    adapter: Adapter = 'always'
    """1x1 adapter of the student's map. `always`: on every level; `auto`: where the channels differ."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`."""
        return AdaptedLoss(pair.student.channels, pair.teacher.channels, loss=cosine, adapter=self.adapter)


def cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """One minus the cosine between student and teacher over channels, averaged over valid cells.

        L = sum_bhw M_bhw (1 - S_bhw . T_bhw / (|S_bhw| |T_bhw|)) / sum_bhw M_bhw

    The lengths of the vectors do not count, so that cells of any strength weigh the same. A cell where either vector is
    0 has no direction: it costs 1, without a gradient.

    Args:
        student: S, (B, C, H, W), any floating dtype.
        teacher: T, (B, C, H, W), any floating dtype.
        mask: M, bool (B, 1, H, W), True at cells that show the image, not padding. Values elsewhere, NaN included,
            change neither the loss nor a gradient.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 when no cell counts.

    Raises:
        InputError: the shapes do not fit.
    """
    check_shapes(student, teacher, mask)
    dtype = accumulation_dtype(student, teacher)
    directions = _directions(student.to(dtype), mask), _directions(teacher.to(dtype), mask)
    similarity = (directions[0] * directions[1]).sum(1, keepdim=True)
    return torch.where(mask, 1 - similarity, 0.0).sum() / mask.sum().clamp(min=1)


def _directions(values: Tensor, mask: Tensor) -> Tensor:
    """Vectors over channels divided by their lengths; 0 where there is no direction and outside of the mask."""
    kept = torch.where(mask, values, 0.0)
    # By the largest value first: squares of values beyond 1e19 would overflow, and of those below 1e-19 vanish.
    largest = kept.detach().abs().amax(1, keepdim=True)
    scaled = kept / torch.where(largest > 0, largest, 1.0)
    squares = scaled.square().sum(1, keepdim=True)
    # Chosen before the root, whose gradient at 0 is infinite.
    return scaled / torch.where(squares > 0, squares, 1.0).sqrt()
