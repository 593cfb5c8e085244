"""Masked generative distillation (Yang et al., ECCV 2022): from a part of its cells the student generates all of the
teacher's.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.geometry import Level
from mtpd.kernels.weighted_mse import WeightedError
from mtpd.losses.masked_mse import squared_error
from mtpd.losses.match import LevelPair
from mtpd.losses.objects import Objects
from mtpd.losses.options import LevelOptions, Normalize, Scale, Share

# Network input at which MGD's and MTPD's weights were tuned: the commonest COCO image, 640x480, under the recipe's
# Resize(1333, 800) and padding to 32. (height, width) in px.
PUBLISHED_INPUT = (800, 1088)


def published_elements(level: Level) -> int:
    """Elements of a teacher's level, C H W, at the input for which MGD's weights were published.

    MGD and MTPD state `a (1/B) sum_bchw (G(S) - T)^2`, padding included; the same loss as a mean has the weight
    `a * published_elements(level)`. With 256 channels:

        RetinaNet, a = 2e-5     p3 69.6   p4 17.4   p5 4.35   p6 1.13   p7 0.32
        Mask R-CNN, a = 5e-7    p2 6.96   p3 1.74   p4 0.435  p5 0.109

    At that input both forms are equal where nothing is padding. Elsewhere the mean keeps the strength that the authors
    chose, when a sum would weaken at small inputs, and it weighs the images of a batch by their valid cells.
    """
    rows, columns = level.grid(*PUBLISHED_INPUT)
    return level.channels * rows * columns


class MgdOptions(LevelOptions):
    """Masked generative distillation; defaults as published for RetinaNet (Mask R-CNN: 5e-7 and 0.45)."""

    loss: Literal['mgd'] = 'mgd'
    """Name of the loss."""
    weight: NonNegativeFloat = 2e-5
    """Loss weight, in the units that `normalize` selects."""
    mask_ratio: Share = 0.65
    """Fraction of the student's cells that are masked."""
    normalize: Normalize = 'published'
    """Units of `weight`. `published`: the paper's sum at 800x1088 px; `mean`: the mean over its elements."""
    scale: Scale = 'none'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`."""
        return MaskedGenerativeDistillation(pair.student.channels, pair.teacher.channels, mask_ratio=self.mask_ratio)

    def factor(self, compared: Level) -> float:
        """See `LevelOptions`."""
        return self.weight * (published_elements(compared) if self.normalize == 'published' else 1)


class MaskedGenerativeDistillation(nn.Module):
    """MGD's loss of one level, as a mean over valid cells and channels.

        L = mean_{valid b,h,w; c} ( G(M * A(S)) - T )^2,   G = 3x3 convolution, ReLU, 3x3 convolution

    A is a 1x1 convolution where the channels differ, else nothing. M hides each cell, all channels alike, with
    probability `mask_ratio`; it is drawn again in every call. All layers start as torch starts them, like the authors'.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, mask_ratio: float) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.align = None if student_channels == teacher_channels else nn.Conv2d(student_channels, teacher_channels, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def forward(
        self,
        student: Tensor,
        teacher: EncodedMaps,
        mask: Tensor,
        *,
        objects: Objects | None = None,
        generator: torch.Generator | None = None,
    ) -> WeightedError:
        """The loss of one batch; see `LevelOptions.build`.

        A CPU generator hides the same cells whatever the device of the maps; None is torch's global one of that device.
        """
        device = mask.device if generator is None else generator.device
        keep = torch.rand(mask.shape, generator=generator, device=device) < 1 - self.mask_ratio
        # Padding is hidden too: G then sees zeros there, as beyond the edge of the map, and not what the student makes
        # of padding. It also keeps a NaN there from the gradient of `align`.
        visible = mask & keep.to(mask.device)
        if self.align is not None:
            student = self.align(torch.where(visible, student, 0.0))
        first, activation, second = self.generation
        hidden = activation(first(torch.where(visible, student, 0.0)))
        # The first convolution writes into padding beside the image, and the second would read it back.
        return squared_error(torch.where(mask, hidden, 0.0), teacher, mask, layer=second)
