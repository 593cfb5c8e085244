"""Squared error between two maps where the objects are.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.losses.adapter import build_adapter
from mtpd.losses.level_options import Adapter
from mtpd.losses.objects.boxes import Objects
from mtpd.losses.squared_error import squared_error

# (objects, mask of the level) -> weights (B, 1, H, W), at least 0.
Weigh = Callable[[Objects, Tensor], Tensor]


class ObjectMse(nn.Module):
    """Weighted squared error of one level after a 1x1 adapter, with weights from the objects."""

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

    def forward(self, student: Tensor, teacher: EncodedMaps, mask: Tensor, *, objects: Objects, **_: object) -> Tensor:
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
            student = torch.where(mask, student, 0.0)
        return squared_error(student, teacher, mask, weights=self.weigh(objects, mask), layer=self.adapter)
