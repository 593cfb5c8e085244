"""Squared error between two maps over their valid cells.

Legend: B batch, C channels, H W grid of a level.
"""

import torch
from torch import Tensor

from mtpd.kernels.weighted_mse import weighted_mse
from mtpd.losses.maps import accumulation_dtype, check_shapes


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
        mask: bool (B, 1, H, W), True at cells that count. What stands elsewhere, NaN included, changes neither the loss
            nor a gradient.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 when no cell counts.

    Raises:
        InputError: the shapes do not fit.
    """
    check_shapes(student, teacher, mask)
    return weighted_mse(student, teacher, mask)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the channels of each channel's variance at the valid cells; without gradient.

        V = sum_bchw M_bhw (T_bchw - mean_c)^2 / (C sum_bhw M_bhw),   mean_c the channel's mean over valid cells

    What a loss is divided by when it is to be a share of the teacher's variance, whatever the scale of its features.
    Variance is taken around each channel's own mean: an adapter's bias learns those means at once, and on deep levels
    they can be nine tenths of the spread of all values. All channels share one figure: dividing each by its own would
    give dead channels, mere noise, the weight of live ones.

    Args:
        values: (B, C, H, W), any floating dtype.
        mask: bool (B, 1, H, W).

    Returns:
        Positive scalar, float32 (float64 if `values` is). A constant map has no variance to divide by: it gives a
        thousandth of its mean square, and 1 where that is 0 too or no cell is valid.
    """
    with torch.no_grad():
        num_cells = mask.sum().clamp(min=1)
        kept = torch.where(mask, values.to(accumulation_dtype(values)), 0.0)
        means = kept.sum((0, 2, 3), keepdim=True) / num_cells
        # Second pass around the means: E[x^2] - E[x]^2 would cancel in float32.
        variance = torch.where(mask, kept - means, 0.0).square().sum() / (num_cells * values.shape[1])
        variance = torch.maximum(variance, 1e-3 * means.square().mean())
        return torch.where(variance > 0, variance, torch.ones_like(variance))
