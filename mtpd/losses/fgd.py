"""FGD, focal and global distillation (Yang et al., CVPR 2022): objects and background apart, weighed by the teacher's
attention, and relations between pixels.

    L = a fg + b bg + g (at_s + at_c) + l rel

    P(F)_hw = n softmax over valid h, w of (mean_c |F| / tau)     Q(F)_c = C softmax over c of (mean_hw |F| / tau)
    fg   = 1/(N C) sum_bchw Z_bhw P(T)_hw Q(T)_c (A(S) - T)^2     Z = 1 / cells of the smallest box that covers, or 0
    bg   = 1/(N C) sum_bchw Y_bhw P(T)_hw Q(T)_c (A(S) - T)^2     Y = 1 / the image's cells in no box, or 0 in one
    at_s = 1/N sum_b 1/n sum_hw |P(A(S)) - P(T)|                  at_c = 1/(N C) sum_bc |Q(A(S)) - Q(T)|
    rel  = mean over valid cells and channels of (R_S(A(S)) - R_T(T))^2      R: see `GcBlock`

A is a 1x1 adapter where the channels differ; n counts the valid cells of an image, N the images with any. `fg` adds up
the objects of an image; nothing else grows with resolution, padding or channels. The published losses are sums over h,
w and c where these are means, so their weights (alpha, beta, gamma, lambda) become

    a = alpha C     b = beta C     g = gamma H W for at_s and gamma C for at_c     l = lambda C H W

with H W the level at the input for which they were tuned (`mtpd.losses.mgd.PUBLISHED_INPUT`): `normalize: published`.

                                              alpha    beta     gamma    lambda
    RetinaNet, one stage with anchors         1e-3     5e-4     1e-3     5e-6     (released configs: gamma 5e-4)
    Faster, Mask and Cascade R-CNN            5e-5     2.5e-5   5e-5     5e-7
    RepPoints, FCOS, one without anchors      1.6e-3   8e-4     8e-3     8e-6     (released: gamma 8e-4; FCOS: tau 0.8)

As in the released code a box covers the cells floor(x1 / stride) to ceil(x2 / stride), both included, and likewise
along y. That code scales boxes by the ratio of the map to the image, which moves them where an image is padded; here
the stride does it.

Legend: B batch, C channels, H W grid of a level, N boxes of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.kernels.weighted_mse import WeightedError, weighted_mses
from mtpd.losses.maps import accumulation_dtype, check_shapes
from mtpd.losses.match import LevelPair
from mtpd.losses.mgd import published_elements
from mtpd.losses.objects import Objects, greatest, has_area
from mtpd.losses.options import LevelOptions, Normalize


class FgdOptions(LevelOptions):
    """Focal and global distillation; defaults as published for RetinaNet (others: `fgd.py`)."""

    looks_at_objects: ClassVar[bool] = True

    loss: Literal['fgd'] = 'fgd'
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight, applied to all terms."""
    foreground: NonNegativeFloat = 1e-3
    """Weight of the error inside objects, alpha in the paper (two-stage: 5e-5; anchor-free: 1.6e-3)."""
    background: NonNegativeFloat = 5e-4
    """Weight of the error outside objects, beta (2.5e-5; 8e-4)."""
    attention: NonNegativeFloat = 1e-3
    """Weight of the attention difference, gamma (5e-5; 8e-3)."""
    relation: NonNegativeFloat = 5e-6
    """Weight of the global relation, lambda (5e-7; 8e-6)."""
    temperature: PositiveFloat = 0.5
    """Softmax temperature of the attentions."""
    normalize: Normalize = 'published'
    """Units of the four weights. `published`: the paper's sums at 800x1088 px; `mean`: means."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`."""
        channels, elements = 1, 1
        if self.normalize == 'published':
            channels, elements = pair.compared.channels, published_elements(pair.compared)
        weights = FgdWeights(
            foreground=self.foreground * channels,
            background=self.background * channels,
            spatial_attention=self.attention * elements / channels,
            channel_attention=self.attention * channels,
            relation=self.relation * elements,
        )
        return FocalGlobalDistillation(
            pair.student.channels,
            pair.teacher.channels,
            stride=pair.compared.stride,
            weights=weights,
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class FgdWeights:
    """What each part of the loss, a mean, is multiplied by: see the module."""

    foreground: float
    background: float
    spatial_attention: float
    channel_attention: float
    relation: float


class FocalGlobalDistillation(nn.Module):
    """FGD's loss of one level. All layers start as the authors' do.

    `stride` is that of the compared grid, input px per cell; the higher the temperature, the more even the attention.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, *, stride: int, weights: FgdWeights, temperature: float
    ) -> None:
        super().__init__()
        self._stride, self._weights, self._temperature = stride, weights, temperature
        self.align = None if student_channels == teacher_channels else nn.Conv2d(student_channels, teacher_channels, 1)
        self.student_relation = GcBlock(teacher_channels)
        self.teacher_relation = GcBlock(teacher_channels)

    def forward(
        self,
        student: Tensor,
        teacher: EncodedMaps,
        mask: Tensor,
        *,
        objects: Objects | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of one batch; see `LevelOptions.build`. It is 0 when no cell counts."""
        assert objects is not None, 'it needs the objects'
        # Attention and relations look at the teacher's channels, so its values are needed.
        values = teacher.values()
        dtype = accumulation_dtype(student, values)
        student, values = (torch.where(mask, one, 0.0).to(dtype) for one in (student, values))
        if self.align is not None:
            # The bias fills the padding again.
            student = torch.where(mask, self.align(student), 0.0).to(dtype)
        check_shapes(student, values, mask)
        own_spatial, own_channel = _attention(student, mask, self._temperature)
        with torch.no_grad():
            spatial, channel = _attention(values, mask, self._temperature)
            # Image by image: all boxes of a batch together would need gigabytes on the finest level.
            covered = [_inverse_areas(boxes, (mask.shape[2], mask.shape[3]), self._stride) for boxes in objects.boxes]
            foreground = torch.where(mask, torch.stack(covered)[:, None], 0.0)
            outside = mask & (foreground == 0)
            background = outside / outside.sum((2, 3), keepdim=True).clamp(min=1)
        weights = self._weights
        of_cells = (own_spatial - spatial).abs().sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
        cells = spatial * (weights.foreground * foreground + weights.background * background)
        # A mean by these weights, and not yet the sum that the formula has.
        (error,) = weighted_mses([WeightedError(student, values, mask, cells, channel_weights=channel.flatten(1))])
        related = self.student_relation(student, mask), self.teacher_relation(values, mask)
        (relation,) = weighted_mses([WeightedError(*related, mask)])
        return (
            _mean_of_images(error * cells.sum((1, 2, 3)), mask)
            + weights.spatial_attention * _mean_of_images(of_cells, mask)
            + weights.channel_attention * _mean_of_images((own_channel - channel).abs().mean((1, 2, 3)), mask)
            + weights.relation * relation
        )


class GcBlock(nn.Module):
    """The global context block (Cao et al., ICCV workshops 2019): adds to every cell what one attention gathers.

        R(F) = F + W2 ReLU(LayerNorm(W1 sum_hw p F)),   p = softmax over valid h, w of K F

    It starts as FGD's authors start it: R(F) = F, as W2 is zero, and K after He et al. 2015.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.Conv2d(channels, 1, kernel_size=1)
        hidden = max(channels // 2, 1)
        last = nn.Conv2d(hidden, channels, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), last
        )
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity='relu')
        for parameter in (self.attend.bias, last.weight, last.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """R of values (B, C, H, W), 0 where the mask, bool (B, 1, H, W), is False."""
        attention = _softmax_over_cells(self.attend(values), mask)
        context = (attention * values).sum((2, 3), keepdim=True)
        added: Tensor = self.transform(context)
        return values + added


def _softmax_over_cells(values: Tensor, mask: Tensor) -> Tensor:
    """Softmax of each image (B, 1, H, W) over its valid cells, in float32 at least; 0 elsewhere."""
    # An image without valid cells has no distribution: minus infinity everywhere would give NaN.
    hidden = torch.where(mask.any(-1, keepdim=True).any(-2, keepdim=True), -torch.inf, 0.0)
    values = values.to(accumulation_dtype(values))
    shown = torch.where(mask, values, hidden.to(values.dtype))
    return torch.where(mask, shown.flatten(1).softmax(1).view_as(shown), 0.0)


def _inverse_areas(boxes: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """1 / cells of the smallest box (N, 4) that covers a cell, or 0: (H, W) of one image."""
    low, high = (boxes.float()[:, :2] / stride).floor(), (boxes.float()[:, 2:] / stride).ceil()
    y, x = (torch.arange(cells, device=boxes.device) for cells in grid)
    rows = (y >= low[:, 1:]) & (y <= high[:, 1:])
    columns = (x >= low[:, :1]) & (x <= high[:, :1])
    inverse = torch.where(has_area(boxes), 1 / (high - low + 1).clamp(min=1).prod(1), 0.0)
    return greatest((rows[:, :, None] & columns[:, None, :]) * inverse[:, None, None])


def _attention(values: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """P (B, 1, H, W), with mean 1 over valid cells, and Q (B, C, 1, 1), with mean 1 over channels."""
    magnitudes = values.abs()
    num_cells = mask.sum((2, 3), keepdim=True)
    spatial = num_cells * _softmax_over_cells(magnitudes.mean(1, keepdim=True) / temperature, mask)
    means = magnitudes.sum((2, 3), keepdim=True) / num_cells.clamp(min=1)
    return spatial, values.shape[1] * (means / temperature).softmax(1)


def _mean_of_images(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of what images (B,) give, over those with a valid cell; the others give 0."""
    # Counted on the device: reading the number here would make the host wait for the GPU.
    return values.sum() / mask.flatten(1).any(1).sum().clamp(min=1)
