"""Multi-scale deformable attention (Zhu et al. 2021, equation 3), on mmcv's own PyTorch form of it.

B batch, Q queries, M heads, L levels, P points, C channels of a head, S cells of all levels. mmcv runs that form on a
CPU; on a GPU it asks for these operators.
"""

from functools import partial

from torch import Tensor

from mtpd.detectors.mmcv_ext.dtypes import common
from mtpd.detectors.mmcv_ext.gradients import gradients_of


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    im2col_step: int,
) -> Tensor:
    """Attention output (B, Q, M * C).

    Args:
        value: (B, S, M, C), the levels one after the other.
        value_spatial_shapes: (L, 2), height and width of each level.
        value_level_start_index: (L,), follows from the shapes.
        sampling_locations: (B, Q, M, L, P, 2), (x, y) as fractions of the level's width and height.
        attention_weights: (B, Q, M, L, P).
        im2col_step: of another implementation.
    """
    sizes = value_spatial_shapes.tolist()
    return _attention(*common(value, sampling_locations, attention_weights), sizes=sizes).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    *,
    im2col_step: int,
) -> None:
    """Fills the three gradients."""
    inputs = common(value, sampling_locations, attention_weights)
    attention = partial(_attention, sizes=value_spatial_shapes.tolist())
    gradients = gradients_of(attention, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        target.copy_(gradient)


def _attention(value: Tensor, locations: Tensor, weights: Tensor, *, sizes: list[list[int]]) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    output: Tensor = multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)
    return output
