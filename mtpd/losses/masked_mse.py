"""Squared error between two maps over their valid cells.

Legend: B batch, C channels, H W grid of a level.
"""

from torch import Tensor

from mtpd.kernels.weighted_mse import weighted_mse
from mtpd.losses.maps import check_shapes


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
        mask: bool (B, 1, H, W), True at cells that count. Values elsewhere, including NaN, change neither the loss
            nor a gradient.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 when no cell counts.

    Raises:
        InputError: the shapes do not fit.
    """
    check_shapes(student, teacher, mask)
    return weighted_mse(student, teacher, mask)
