"""FitNet's loss (Romero et al. 2015): squared error between two maps over their valid cells, behind a 1x1 adapter.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.kernels.weighted_mse import weighted_mse
from mtpd.losses.adapter import build_adapter
from mtpd.losses.level_options import Adapter, LevelOptions, Scale
from mtpd.losses.maps import check_shapes
from mtpd.losses.match import LevelPair
from mtpd.losses.squared_error import squared_error


class MaskedMseOptions(LevelOptions):
    """FitNet: mean squared error between the student's maps, through 1x1 adapters, and the teacher's."""

    loss: Literal['masked_mse'] = 'masked_mse'
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight; the loss is a mean over cells and channels."""
    adapter: Adapter = 'auto'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
    scale: Scale = 'teacher_std'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`."""
        return MaskedMse(pair.student.channels, pair.teacher.channels, adapter=self.adapter)

    @property
    def is_over_variance(self) -> bool:
        """See `LevelOptions`."""
        return self.scale == 'teacher_std'


class MaskedMse(nn.Module):
    """The loss of one level, on the teacher's codes."""

    def __init__(self, student_channels: int, teacher_channels: int, *, adapter: Adapter = 'auto') -> None:
        """Builds the adapter: see `build_adapter`."""
        super().__init__()
        self.adapter = build_adapter(student_channels, teacher_channels, adapter=adapter)

    def forward(self, student: Tensor, teacher: EncodedMaps, mask: Tensor, **_: object) -> Tensor:
        """The loss over valid cells; arguments, result and errors are those of `AdaptedLoss`."""
        if self.adapter is not None:
            student = torch.where(mask, student, 0.0)  # as in `AdaptedLoss`
        return squared_error(student, teacher, mask, layer=self.adapter)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over valid cells and channels, the hint loss of FitNet (Romero et al. 2015).

        L = sum_bchw M_bhw (S_bchw - T_bchw)^2 / (C sum_bhw M_bhw)

    A mean does not change with resolution, padding or the number of channels. Papers state sums; the weight `a` of a
    sum becomes that of this mean by the number of elements that the sum ran over:

        a (1/B) sum_bchw (S - T)^2    ->   a C H W           (MGD, and the simple feature matching of MTPD)
        a 1/2 ||S - T||^2             ->   a C H W / 2       (FitNet as printed, one image)

    with H W the paper's own grid: see `mtpd.losses.mgd.published_elements` for MGD's.

    Args:
        student: (B, C, H, W), any floating dtype.
        teacher: (B, C, H, W), any floating dtype.
        mask: bool (B, 1, H, W), True at cells that count. Values elsewhere, including NaN, change neither the loss
            nor a gradient.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 when no cell counts.

    Raises:
        InputError: the shapes do not fit.
    """
    check_shapes(student, teacher, mask)
    return weighted_mse(student, teacher, mask)
