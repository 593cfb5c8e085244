"""How much a teacher's level varies: what squared errors are divided by to be shares of it.

Legend: B batch, C channels, H W grid of a level.
"""

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.kernels.weighted_mse import weighted_mse


def masked_variance(teacher: EncodedMaps, mask: Tensor) -> Tensor:
    """Mean over the channels of each channel's variance at the valid cells; without gradient.

        V = sum_bchw M_bhw (T_bchw - mean_c)^2 / (C sum_bhw M_bhw),   mean_c the channel's mean over valid cells

    Divisor that turns a loss into a share of the teacher's variance, for features of any scale.
    Variance is taken around each channel's own mean: an adapter's bias learns those means immediately, and on deep
    levels they can be nine tenths of the spread of all values. All channels share one figure: dividing each by its own
    would give dead channels, mere noise, the weight of live ones.

    It is computed from the codes, which are not decoded: with the means taken off the offsets it is a squared error
    against 0. A rotation of the channels changes neither V nor sum_c mean_c^2, as T - mean and mean turn together.

    Args:
        teacher: T, (B, C, H, W).
        mask: M, bool (B, 1, H, W).

    Returns:
        Positive scalar, float32 (float64 if the codes are). A constant map has no variance to divide by: it gives a
        thousandth of its mean square, and 1 where that is 0 too or no cell is valid.
    """
    with torch.no_grad():
        codes, dtype = teacher.codes, teacher.dtype
        cells = mask.sum((1, 2, 3))[:, None]
        num_cells = cells.sum().clamp(min=1)
        sums = torch.where(mask, codes, 0).sum((2, 3), dtype=dtype)
        if teacher.scale is None:
            step, offset = torch.ones_like(sums), torch.zeros_like(sums)
        else:
            step, offset = teacher.scale.to(dtype).unbind(1)
        means = (step * sums + offset * cells).sum(0) / num_cells
        # Second pass around the means: E[x^2] - E[x]^2 would cancel in float32.
        nothing = codes.new_zeros((), dtype=dtype).expand_as(codes)
        variance = weighted_mse(nothing, codes, mask, scale=torch.stack([step, offset - means], dim=1))
        variance = torch.maximum(variance, 1e-3 * means.square().mean())
        return torch.where(variance > 0, variance, torch.ones_like(variance))
