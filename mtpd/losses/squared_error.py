"""Squared error between what a layer makes of the student's map and the teacher's codes, as they are stored.

With codes c in an orthonormal basis B, square and so B^T B = B B^T = I, a squared error is the same in either basis, at
every cell:

    ||A(S) - B c||^2 = ||B^T A(S) - c||^2        since ||B x||^2 = x^T B^T B x = ||x||^2 with x = B^T A(S) - c

Cells keep their places, so masks and weights of cells are untouched. Weights of channels are not: they belong to the
teacher's channels, which no code stands for, and losses that have some take `EncodedMaps.values`. Where A is a
convolution, B^T joins its weight and bias: a product of C x C numbers in place of one for each cell.

Legend: B batch, C channels, H W grid of a level.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.kernels.weighted_mse import weighted_mse
from mtpd.losses.maps import check_shapes


def squared_error(
    student: Tensor,
    teacher: EncodedMaps,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    layer: nn.Module | None = None,
) -> Tensor:
    """Mean squared error over valid cells and channels, each cell with its weight; see `masked_mse`.

        L = sum_bchw W_bhw M_bhw (A(S)_bchw - T_bchw)^2 / (C sum_bhw W_bhw M_bhw)

    Args:
        student: S, (B, C of the student, H, W), any floating dtype.
        teacher: T, (B, C, H, W).
        mask: M, bool (B, 1, H, W), True at cells that count. What the teacher has elsewhere, NaN included, changes
            nothing; nor what the layer makes of the student there.
        weights: W, (B, 1, H, W), at least 0, without gradient; None: 1.
        layer: A, a convolution from the student's to the teacher's channels; None: nothing.

    Returns:
        Scalar, accumulated in float32 (float64 if an input is); 0 when no cell counts.

    Raises:
        InputError: the shapes do not fit.
    """
    codes, scale, basis = teacher.codes, teacher.scale, teacher.basis
    if layer is not None:
        student = layer(student) if basis is None else _turned_convolution(layer, student, basis)
    elif basis is not None and student.shape[1] == len(basis):
        if student.dtype in (torch.float16, torch.bfloat16):
            student = conv2d(student, basis.T[..., None, None].to(student.dtype))
        else:
            # In full precision products are dear, and the teacher's side needs no second one for its gradient.
            codes, scale = teacher.values(), None
    check_shapes(student, codes, mask)
    cells = mask if weights is None else torch.where(mask, weights.detach(), 0.0)
    return weighted_mse(student, codes, cells, scale=scale)


def _turned_convolution(layer: nn.Module, values: Tensor, basis: Tensor) -> Tensor:
    """B^T layer(values)."""
    assert isinstance(layer, nn.Conv2d), 'only a convolution can absorb the rotation'
    with torch.autocast(values.device.type, enabled=False):
        turn = basis.T.to(layer.weight.dtype)
        weight = (turn @ layer.weight.flatten(1)).view_as(layer.weight)
        bias = None if layer.bias is None else turn @ layer.bias
    return conv2d(values, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
