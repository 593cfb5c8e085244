"""Multi-scale deformable attention (Zhu et al. 2021, equation 3), on mmcv's own PyTorch form of it.

B batch, Q queries, M heads, L levels, P points, C channels of a head, S cells of all levels. mmcv runs that form on a
CPU; on a GPU it calls these operators, with `value` (B, S, M, C), the levels concatenated; `shapes` (L, 2), height and
width of each level; `locations` (B, Q, M, L, P, 2), (x, y) as fractions of the level's width and height; `weights`
(B, Q, M, L, P). `starts` follows from the shapes, and `im2col_step` belongs to another implementation.
"""

from functools import partial

from torch import Tensor

from mtpd.detectors.of_mmdet.mmcv_ext.numerics import common, fill_gradients


def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, *, im2col_step: int
) -> Tensor:
    """Attention output (B, Q, M * C)."""
    return _attention(*common(value, locations, weights), sizes=shapes.tolist()).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    *,
    im2col_step: int,
) -> None:
    """Fills the last three tensors."""
    gradients = grad_value, grad_locations, grad_weights
    attention = partial(_attention, sizes=shapes.tolist())
    fill_gradients(gradients, attention, common(value, locations, weights), grad_output)


def _attention(value: Tensor, locations: Tensor, weights: Tensor, *, sizes: list[list[int]]) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    output: Tensor = multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)
    return output
