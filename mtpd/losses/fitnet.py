"""FitNet (Romero et al. 2015): the student's map, through a light adapter, imitates the teacher's."""

import torch
from torch import Tensor, nn

from mtpd.losses.adapter import build_adapter
from mtpd.losses.masked_mse import masked_mse
from mtpd.losses.terms import Adapter


class FitNet(nn.Module):
    """Hint loss of one level: masked MSE behind a 1x1 adapter. Also the simple feature matching of MTPD."""

    def __init__(self, student_channels: int, teacher_channels: int, *, adapter: Adapter = 'auto') -> None:
        super().__init__()
        self.adapter = build_adapter(student_channels, teacher_channels, adapter=adapter)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over valid cells and channels.

        Args:
            student: (B, C of the student, H, W).
            teacher: (B, C of the teacher, H, W).
            mask: bool (B, 1, H, W), True at cells that count.

        Returns:
            Scalar float32.

        Raises:
            InputError: the shapes do not fit.
        """
        if self.adapter is not None:
            # Before the adapter, or a NaN in the padding would reach the gradient of its weight as 0 * NaN.
            student = self.adapter(torch.where(mask, student, 0.0))
        return masked_mse(student, teacher, mask)
