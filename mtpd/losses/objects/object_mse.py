"""Squared error between two maps where the objects are.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtpd.kernels import weighted_mse as kernel
from mtpd.losses.adapter import build_adapter
from mtpd.losses.maps import check_shapes
from mtpd.losses.objects.boxes import Objects
from mtpd.losses.terms import Adapter

# (objects, mask of the level) -> weights (B, 1, H, W), at least 0.
Weigh = Callable[[Objects, Tensor], Tensor]


def weighted_mse(student: Tensor, teacher: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error over valid cells and channels, each cell with its weight.

        L = sum_bchw W_bhw M_bhw (S_bchw - T_bchw)^2 / (C sum_bhw W_bhw M_bhw)

    Args:
        student: (B, C, H, W), any floating dtype.
        teacher: (B, C, H, W), any floating dtype.
        mask: bool (B, 1, H, W), True at cells that count. What stands elsewhere, NaN included, changes neither the loss
            nor a gradient.
        weights: (B, 1, H, W), at least 0; no gradient flows to them.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 when no cell has a weight.

    Raises:
        InputError: the shapes do not fit.
    """
    check_shapes(student, teacher, mask)
    return kernel.weighted_mse(student, teacher, torch.where(mask, weights.detach(), 0.0))


class ObjectMse(nn.Module):
    """Weighted squared error of one level behind a 1x1 adapter, with weights that the objects give."""

    def __init__(self, student_channels: int, teacher_channels: int, *, weigh: Weigh, adapter: Adapter) -> None:
        """Builds the adapter.

        Args:
            student_channels: channels of the student's map.
            teacher_channels: channels of the teacher's map.
            weigh: what each cell weighs.
            adapter: see `build_adapter`.
        """
        super().__init__()
        self.weigh = weigh
        self.adapter = build_adapter(student_channels, teacher_channels, adapter=adapter)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor, *, objects: Objects) -> Tensor:
        """The loss over valid cells.

        Args:
            student: (B, C of the student, H, W).
            teacher: (B, C of the teacher, H, W).
            mask: bool (B, 1, H, W), True at cells that count.
            objects: of the batch.

        Returns:
            Scalar float32.

        Raises:
            InputError: the shapes do not fit.
        """
        if self.adapter is not None:
            # Before the adapter, or a NaN in the padding would reach the gradient of its weight as 0 * NaN.
            student = self.adapter(torch.where(mask, student, 0.0))
        return weighted_mse(student, teacher, mask, self.weigh(objects, mask))
