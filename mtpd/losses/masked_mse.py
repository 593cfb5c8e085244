"""FitNet's loss (Romero et al. 2015): squared error between two maps over their valid cells, behind a 1x1 adapter.

    L = sum_bchw M_bhw (A(S)_bchw - T_bchw)^2 / (C sum_bhw M_bhw)

A mean does not change with resolution, padding or the number of channels. Papers state sums; the weight `a` of a sum
becomes that of this mean by the number of elements that the sum ran over:

    a (1/B) sum_bchw (S - T)^2    ->   a C H W           (MGD, and the simple feature matching of MTPD)
    a 1/2 ||S - T||^2             ->   a C H W / 2       (FitNet as printed, one image)

with H W the paper's own grid: see `mtpd.losses.mgd.published_elements` for MGD's.

`MaskedMse`, and `squared_error` on the teacher's codes as they are stored, serve other losses too.

Legend: S student, T teacher, M mask, A adapter, B batch, C channels, H W grid of a level.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn.functional import conv2d

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.kernels.weighted_mse import WeightedError, weighted_mses
from mtpd.losses.adapter import build_adapter
from mtpd.losses.match import LevelPair
from mtpd.losses.objects import Objects
from mtpd.losses.options import Adapter, LevelOptions, Scale

# (objects, mask of the level) -> weights (B, 1, H, W), at least 0.
Weigh = Callable[[Objects, Tensor], Tensor]


class MaskedMseOptions(LevelOptions):
    """FitNet: mean squared error between the student's maps, through 1x1 adapters, and the teacher's."""

    loss: Literal['masked_mse'] = 'masked_mse'
    """Name of the loss."""
    weight: NonNegativeFloat = 1.0
    """Loss weight; the loss is a mean over cells and channels."""
    adapter: Adapter = 'auto'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
    scale: Scale = 'teacher_std'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`."""
        return MaskedMse(pair.student.channels, pair.teacher.channels, adapter=self.adapter)


class MaskedMse(nn.Module):
    """The loss of one level, on the teacher's codes; with `weigh` each cell has a weight, from the objects."""

    def __init__(
        self, student_channels: int, teacher_channels: int, *, adapter: Adapter = 'auto', weigh: Weigh | None = None
    ) -> None:
        super().__init__()
        self.weigh = weigh
        self.adapter = build_adapter(student_channels, teacher_channels, adapter=adapter)

    def forward(
        self,
        student: Tensor,
        teacher: EncodedMaps,
        mask: Tensor,
        *,
        objects: Objects | None = None,
        generator: torch.Generator | None = None,
    ) -> WeightedError:
        """The loss over valid cells; see `LevelOptions.build`."""
        if self.adapter is not None:
            student = torch.where(mask, student, 0.0)  # as in `AdaptedLoss`
        weights = None
        if self.weigh is not None:
            assert objects is not None, 'the weights of the cells come from the objects'
            weights = self.weigh(objects, mask)
        return squared_error(student, teacher, mask, weights=weights, layer=self.adapter)


def squared_error(
    student: Tensor,
    teacher: EncodedMaps,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    layer: nn.Module | None = None,
) -> WeightedError:
    """Mean squared error over valid cells and channels, each cell with its weight, on codes as they are stored.

        L = sum_bchw W_bhw M_bhw (A(S)_bchw - T_bchw)^2 / (C sum_bhw W_bhw M_bhw)

    With codes c in an orthonormal basis B, square and so B^T B = B B^T = I, a squared error is the same in either
    basis, at every cell:

        ||A(S) - B c||^2 = ||B^T A(S) - c||^2        since ||B x||^2 = x^T B^T B x = ||x||^2 with x = B^T A(S) - c

    Cells keep their places, so masks and weights of cells are untouched. Weights of channels are not: they belong to
    the teacher's channels, which no code stands for, and losses that have some take `EncodedMaps.values`. Where A is a
    convolution, B^T joins its weight and bias: a product of C x C numbers in place of one for each cell.

    S is (B, C of the student, H, W) of any floating dtype, the mask M bool (B, 1, H, W), the weights W (B, 1, H, W), at
    least 0 and without gradient, `layer` the convolution A. What the teacher has where M is False, NaN included,
    changes nothing; nor what the layer makes of the student there. Accumulated in float32 (float64 if an input is);
    0 when no cell counts.
    """
    codes, scale, basis = teacher.codes, teacher.scale, teacher.basis
    if layer is not None:
        student = layer(student) if basis is None else _turned_convolution(layer, student, basis)
    elif basis is not None and student.shape[1] == len(basis):
        if student.dtype in (torch.float16, torch.bfloat16):
            student = conv2d(student, basis.T[..., None, None].to(student.dtype))
        else:
            # In full precision products are expensive, and the teacher's side needs no second one for its gradient.
            codes, scale = teacher.values(), None
    return WeightedError(student, codes, mask, weights=None if weights is None else weights.detach(), scale=scale)


def masked_variances(maps: Sequence[tuple[EncodedMaps, Tensor]]) -> list[Tensor]:
    """Mean over the channels of each channel's variance at the valid cells, of teacher's maps with their masks.

    Without gradient:

        V = sum_bchw M_bhw (T_bchw - mean_c)^2 / (C sum_bhw M_bhw),   mean_c the channel's mean over valid cells

    Divisor that turns a loss into a share of the teacher's variance. It is taken around each channel's own mean, which
    an adapter's bias learns immediately and which on deep levels can be nine tenths of the spread. All channels share
    one figure: dividing each by its own would give dead channels, mere noise, the weight of live ones.

    It is computed from the codes, which are not decoded: with the means taken off the offsets it is a squared error
    against 0. A rotation of the channels changes neither V nor sum_c mean_c^2, as T - mean and mean turn together.

    A constant map has no variance to divide by: it gives a thousandth of its mean square, and 1 where that is 0 too or
    no cell is valid.
    """
    with torch.no_grad():
        errors = [_around_means(teacher, mask) for teacher, mask in maps]
        squares = weighted_mses([error for error, _ in errors])
        variances = [torch.maximum(one, floor) for one, (_, floor) in zip(squares, errors, strict=True)]
        return [torch.where(one > 0, one, torch.ones_like(one)) for one in variances]


def _around_means(teacher: EncodedMaps, mask: Tensor) -> tuple[WeightedError, Tensor]:
    """The squared error that is the variance, and the least that it counts as."""
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
    error = WeightedError(nothing, codes, mask, scale=torch.stack([step, offset - means], dim=1))
    return error, 1e-3 * means.square().mean()


def _turned_convolution(layer: nn.Module, values: Tensor, basis: Tensor) -> Tensor:
    """B^T layer(values)."""
    assert isinstance(layer, nn.Conv2d), 'only a convolution can absorb the rotation'
    with torch.autocast(values.device.type, enabled=False):
        turn = basis.T.to(layer.weight.dtype)
        weight = (turn @ layer.weight.flatten(1)).view_as(layer.weight)
        bias = None if layer.bias is None else turn @ layer.bias
    return conv2d(values, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
