"""PKD (Cao et al., NeurIPS 2022): correlates the student's channels with the teacher's, for any scale and offset.

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
from mtpd.losses.options import Adapter, LevelOptions, Levels

# Added to each standard deviation, as in the authors' code.
EPSILON = 1e-6


class PkdOptions(LevelOptions):
    """Pearson knowledge distillation; weight as published for RetinaNet (Faster and Mask R-CNN: 6)."""

    loss: Literal['pkd'] = 'pkd'
    """Name of the loss."""
    levels: Levels = None
    """Levels to distil; null: all levels that student and teacher share. The authors omit RetinaNet's p7."""
    weight: NonNegativeFloat = 10.0
    """Loss weight; the loss is one minus the correlation, averaged over channels."""
    adapter: Adapter = 'auto'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`; the authors have no adapter."""
        return AdaptedLoss(pair.student.channels, pair.teacher.channels, loss=pkd, adapter=self.adapter)


def pkd(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """One minus Pearson's correlation of student and teacher, from 0 to 2, averaged over channels.

        L = sum_bchw M_bhw (s_bchw - t_bchw)^2 / (2 C sum_bhw M_bhw) = (1/C) sum_c (1 - r_c)

    s and t are S and T standardised: each channel minus its mean and divided by its standard deviation, both over the
    valid cells of the whole batch, so that micro-batches (`optim.accumulate`) are not one large batch. An affine error
    of a channel, such as a quantiser's, costs nothing.

    The authors' code (mmrazor) is `w * mse(s, t) / 2`, a mean over everything: `w` is the weight of this mean, at any
    resolution and number of channels. It differs from here in three ways: padding counts there as image; its standard
    deviation divides by n - 1, which makes it (n - 1) / n of this loss, n cells; and it stretches a map to the size of
    the other (13x17 to 25x34), where here cells keep their places. It pairs levels by index and resizes those of other
    strides, which here needs `teacher_levels` or `resize`. It has no adapter: channels must be equal.

    A channel without variance, up to rounding, correlates with nothing: its standardised values are 0 and without
    gradient. It costs 1/2 where the other side varies and 0 where neither does.

    Maps (B, C, H, W) of any floating dtype, mask bool (B, 1, H, W): values where it is False, NaN included, change
    neither the loss nor a gradient. Accumulated in float32 (float64 if an input is); 0 when no cell counts.
    """
    check_shapes(student, teacher, mask)
    dtype = accumulation_dtype(student, teacher)
    # Counted on the device: reading the number here would make the host wait for the GPU.
    num_cells = mask.sum().clamp(min=1)
    # The squared difference and not 1 - r, which would cancel for a student that is nearly right.
    error = _standardized(student.to(dtype), mask, num_cells) - _standardized(teacher.to(dtype), mask, num_cells)
    return error.square().sum() / (2 * student.shape[1] * num_cells)


def _standardized(values: Tensor, mask: Tensor, num_cells: Tensor) -> Tensor:
    """Each channel with mean 0 and variance 1 over the valid cells; 0 elsewhere, and where nothing varies."""
    kept = torch.where(mask, values, 0.0)
    mean = kept.sum((0, 2, 3), keepdim=True) / num_cells
    centred = torch.where(mask, kept - mean, 0.0)
    variance = centred.square().sum((0, 2, 3), keepdim=True) / num_cells
    # The mean of equal values is rounded: what is left of them would be blown up to a variance of 1.
    constant = variance <= (100 * torch.finfo(values.dtype).eps * mean).square()
    # Chosen before the root too, whose gradient at 0 is infinite.
    deviation = torch.where(constant, 1.0, variance).sqrt() + EPSILON
    return torch.where(constant, 0.0, centred / deviation)
