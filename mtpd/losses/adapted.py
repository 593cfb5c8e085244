"""A loss between maps of equal channels, for a student with other channels: a light adapter precedes it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtpd.losses.adapter import build_adapter
from mtpd.losses.level_term import Adapter
from mtpd.losses.squared_error import squared_error
from mtpd.losses.teacher_map import TeacherMap

MapLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class AdaptedLoss(nn.Module):
    """One loss of one level after a 1x1 adapter."""

    def __init__(
        self, student_channels: int, teacher_channels: int, *, loss: MapLoss, adapter: Adapter = 'auto'
    ) -> None:
        """Builds the adapter.

        Args:
            student_channels: channels of the student's map.
            teacher_channels: channels of the teacher's map.
            loss: (student, teacher, mask) -> scalar, with the values of student and teacher of one shape.
            adapter: see `build_adapter`.
        """
        super().__init__()
        self._loss = loss
        self.adapter = build_adapter(student_channels, teacher_channels, adapter=adapter)

    def forward(self, student: Tensor, teacher: TeacherMap, mask: Tensor) -> Tensor:
        """The loss over valid cells.

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
        return self._loss(student, teacher.values(), mask)


class AdaptedMse(nn.Module):
    """FitNet's loss of one level (Romero et al. 2015): squared error after a 1x1 adapter, on the teacher's codes."""

    def __init__(self, student_channels: int, teacher_channels: int, *, adapter: Adapter = 'auto') -> None:
        """Builds the adapter: see `build_adapter`."""
        super().__init__()
        self.adapter = build_adapter(student_channels, teacher_channels, adapter=adapter)

    def forward(self, student: Tensor, teacher: TeacherMap, mask: Tensor) -> Tensor:
        """The loss over valid cells; see `AdaptedLoss`."""
        if self.adapter is not None:
            student = torch.where(mask, student, 0.0)  # as in `AdaptedLoss`
        return squared_error(student, teacher, mask, layer=self.adapter)
