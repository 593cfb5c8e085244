"""Convolutions whose positions move (deformable), and ones that are computed at some cells only (masked).

Deformable convolution (Dai et al. 2017) and its modulated form (Zhu et al. 2019) run on torchvision. B batch, C
channels, H W map, D offset groups, K kernel positions. `offset` is (B, D * K * 2, H', W'): (y, x) in cells for every
kernel position; `mask` is (B, D * K, H', W'). A position outside of the map contributes zero. Arguments that are
dropped (`_`) and `im2col_step` are buffers of another implementation.

torchvision's CPU kernel reads memory outside of the map for a NaN offset and the process ends. So here a NaN offset
is moved out of the map, where it contributes nothing, and the output is made NaN at each cell that used one.
Infinite offsets are treated as outside of the map, like very large ones.

mmcv's modulated kernel takes offsets and masks of any size and addresses each image's values as if they had the
output's size. DyHead hands it larger ones, and its published weights were trained on what the kernel then reads: the
first values of each image. So the modulated form here reads the same.
"""

from operator import itemgetter
from typing import Any

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor
from torch.nn.functional import pad

from mtpd.detectors.of_mmdet.mmcv_ext.numerics import common

# Outside of every map, and exact in float32.
OUTSIDE = 1e6

# Stride, padding, dilation (height and width of each), groups, offset groups: in the order of torchvision's operators.
Sizes = tuple[int, ...]
_sizes = itemgetter('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
_modulated_sizes = itemgetter(
    'stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group'
)


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **options: int
) -> None:
    """Fills `output`."""
    output.copy_(_forward(input, weight, offset, None, None, _sizes(options)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: int,
) -> None:
    """Fills `grad_input` and `grad_offset`."""
    gradients = _backward(grad_output, input, weight, offset, None, _sizes(options))
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **options: int,
) -> None:
    """Adds `scale` times the weight's gradient to `grad_weight`."""
    # The values of the weight do not enter its own gradient, only its shape does.
    gradients = _backward(grad_output, input, torch.zeros_like(grad_weight), offset, None, _sizes(options))
    grad_weight.add_(gradients[1].to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Fills `output`."""
    offset, mask = _values_read(offset, output.shape[2:]), _values_read(mask, output.shape[2:])
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, _modulated_sizes(options)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Fills all gradients; `grad_bias` only `with_bias`."""
    offset, mask = _values_read(offset, grad_output.shape[2:]), _values_read(mask, grad_output.shape[2:])
    gradients = _backward(grad_output, input, weight, offset, mask, _modulated_sizes(options))
    grad_input.copy_(gradients[0])
    grad_weight.copy_(gradients[1])
    grad_offset.copy_(_padded_like(grad_offset, gradients[2]))
    grad_mask.copy_(_padded_like(grad_mask, gradients[3]))
    if with_bias:
        grad_bias.copy_(gradients[4])


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, sizes: Sizes
) -> Tensor:
    arguments = _arguments(input, weight, offset, mask, bias, sizes)
    output: Tensor = torch.ops.torchvision.deform_conv2d(*arguments)
    return output.masked_fill(offset.isnan().any(dim=1, keepdim=True), torch.nan)


def _backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, sizes: Sizes
) -> Any:
    """Gradients of input, weight, offset, mask and bias."""
    arguments = _arguments(input, weight, offset, mask, None, sizes)
    return torch.ops.torchvision._deform_conv2d_backward(grad_output.to(arguments[0].dtype), *arguments)


def _values_read(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """What mmcv's modulated kernel reads of offsets or masks (B, c, h, w) for an output of `size`."""
    channels, height, width = values.shape[1:]
    if height < size[0] or width < size[1]:
        return values  # torchvision refuses it; mmcv reads beyond its end
    number = channels * size[0] * size[1]
    return values.flatten(1)[:, :number].reshape(-1, channels, *size)


def _padded_like(target: Tensor, gradient: Tensor) -> Tensor:
    """`gradient` of the values that were read, followed by zeros for the others."""
    padded = torch.zeros(len(target), target[0].numel(), dtype=gradient.dtype, device=gradient.device)
    padded[:, : gradient[0].numel()] = gradient.flatten(1)
    return padded.view_as(target)


def _arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, sizes: Sizes
) -> tuple[Any, ...]:
    """What torchvision's operators take, with placeholders for no mask and no bias."""
    used = input.new_zeros(len(input), 1) if mask is None else mask
    added = weight.new_zeros(len(weight)) if bias is None else bias
    input, weight, offset, used, added = common(input, weight, offset, used, added)
    offset = offset.nan_to_num(OUTSIDE).clamp(-OUTSIDE, OUTSIDE)
    return input, weight, offset, used, added, *sizes, mask is not None


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fills `data_col` (C * kernel_h * kernel_w, N) with the patch of `features` (1, C, H, W) under each of N cells."""
    padded = pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=features.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=features.device)[:, None]
    data_col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, **sizes: int) -> None:
    """Writes the columns of `col` (C, N) to their cells of `im` (1, C, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)
