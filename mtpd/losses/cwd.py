"""CWD (Shu et al., ICCV 2021): each channel's attention over the image, a softmax over cells, follows the teacher's.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from mtpd.losses.adapter import AdaptedLoss
from mtpd.losses.maps import accumulation_dtype, check_shapes
from mtpd.losses.match import LevelPair
from mtpd.losses.options import Adapter, LevelOptions


class CwdOptions(LevelOptions):
    """Channel-wise distillation; defaults as published for feature pyramids."""

    # mmrazor's, for all its detectors. The paper's own, for segmentation, are to the best of our knowledge temperature
    # 4 and weight 50 on features.
    loss: Literal['cwd'] = 'cwd'
    """Name of the loss."""
    weight: NonNegativeFloat = 10.0
    """Loss weight; the loss is a mean over images and channels."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of the features, over cells."""
    adapter: Adapter = 'auto'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`; the published detectors have no adapter."""
        loss = partial(cwd, temperature=self.temperature)
        return AdaptedLoss(pair.student.channels, pair.teacher.channels, loss=loss, adapter=self.adapter)


def cwd(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Divergence of the student's distributions over cells from the teacher's, averaged over images and channels.

        p = softmax over valid h, w of T_bc / tau,   q = the same of S_bc / tau
        L = tau^2 / (N C) sum_bc sum_valid p log(p / q),   N the images with a valid cell

    The published form is `w tau^2 / (B C) sum p log(p / q)` (mmrazor's code) with padding in the softmax; where
    nothing is padding it is `w` times this loss. The sum runs over a distribution, so it does not grow with the number
    of cells: the weight belongs to any resolution and any number of channels. An offset of a channel costs nothing; its
    scale does count, and `temperature`, tau, divides it. The published detectors distil equal channels, without an
    adapter.

    Maps (B, C, H, W) of any floating dtype, mask bool (B, 1, H, W): values where it is False, NaN included, change
    neither the loss nor a gradient. Accumulated in float32 (float64 if an input is); 0 when no cell counts.
    """
    check_shapes(student, teacher, mask)
    dtype = accumulation_dtype(student, teacher)
    cells = mask.flatten(2)
    has_cells = cells.any(2, keepdim=True)
    log_p = _log_distribution(teacher.to(dtype).flatten(2), cells, has_cells, temperature)
    log_q = _log_distribution(student.to(dtype).flatten(2), cells, has_cells, temperature)
    divergence = torch.where(cells, log_p.exp() * (log_p - log_q), 0.0).sum()
    # Counted on the device: reading the number here would make the host wait for the GPU.
    num_channels = has_cells.sum().clamp(min=1) * student.shape[1]
    return temperature**2 * divergence / num_channels


def _log_distribution(values: Tensor, cells: Tensor, has_cells: Tensor, temperature: float) -> Tensor:
    """Logarithm of the softmax over valid cells: values (B, C, H W), cells (B, 1, H W). Elsewhere 0.

    An image without valid cells has no distribution; it gets zeros, as minus infinity everywhere would give NaN.
    """
    hidden = torch.where(has_cells, -torch.inf, 0.0).to(values.dtype)
    log_softmax = torch.where(cells, values / temperature, hidden).log_softmax(2)
    # 0 and not minus infinity: the difference of two infinities is NaN, in the gradient too.
    return torch.where(cells, log_softmax, 0.0)
