"""The layer that brings a student's map to the teacher's channels, and losses of equal channels behind it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.losses.objects import Objects
from mtpd.losses.options import Adapter


def build_adapter(student_channels: int, teacher_channels: int, *, adapter: Adapter = 'auto') -> nn.Conv2d | None:
    """A 1x1 convolution from the student's to the teacher's channels, or None where none is needed.

    Between equal channels it starts as the identity, so that training begins where it would without an adapter. Between
    different ones it starts random and keeps the variance of its input (He et al. 2015 with gain 1), from torch's
    global generator.
    """
    if student_channels == teacher_channels and adapter == 'auto':
        return None
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
    if student_channels == teacher_channels:
        nn.init.dirac_(convolution.weight)
    else:
        nn.init.kaiming_normal_(convolution.weight, nonlinearity='linear')
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


class AdaptedLoss(nn.Module):
    """One loss of one level behind a 1x1 adapter.

    `loss` takes student and teacher, both values (B, C, H, W), and the mask (B, 1, H, W), and returns a scalar.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        adapter: Adapter = 'auto',
    ) -> None:
        super().__init__()
        self._loss = loss
        self.adapter = build_adapter(student_channels, teacher_channels, adapter=adapter)

    def forward(
        self,
        student: Tensor,
        teacher: EncodedMaps,
        mask: Tensor,
        *,
        objects: Objects | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss over valid cells; see `LevelOptions.build`."""
        if self.adapter is not None:
            # Before the adapter, or a NaN in the padding would reach the gradient of its weight as 0 * NaN.
            student = self.adapter(torch.where(mask, student, 0.0))
        return self._loss(student, teacher.values(), mask)
