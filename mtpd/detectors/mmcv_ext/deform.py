"""Deformable convolution (Dai et al. 2017) and its modulated form (Zhu et al. 2019) on torchvision.

B batch, C channels, H W map, D offset groups, K kernel positions. `offset` is (B, D * K * 2, H', W'): (y, x) in
cells for every kernel position; `mask` is (B, D * K, H', W'). A position outside of the map contributes zero.

torchvision's CPU kernel reads memory outside of the map for a NaN offset and the process ends. So here a NaN offset
is moved out of the map, where it contributes nothing, and the output is made NaN at each cell that used one.
Infinite offsets lie outside of the map, like very large ones.

mmcv's modulated kernel takes offsets and masks of any size and addresses each image's values as if they had the
output's size. DyHead hands it larger ones, and its published weights were trained on what the kernel then reads: the
first values of each image. So the modulated form here reads the same.
"""

from dataclasses import dataclass

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from mtpd.detectors.mmcv_ext.dtypes import common

# Outside of every map, and exact in float32.
OUTSIDE = 1e6


@dataclass(frozen=True)
class Shape:
    """Strides and groups of a deformable convolution, in the order in which torchvision takes them."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    def arguments(self) -> tuple[int, ...]:
        """Positional arguments of torchvision's operators."""
        return (*self.stride, *self.padding, *self.dilation, self.groups, self.offset_groups)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fills `output`; `columns`, `ones` and `im2col_step` are buffers of another implementation."""
    shape = Shape((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, shape))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fills `grad_input` and `grad_offset`."""
    shape = Shape((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    gradients = _backward(grad_output, input, weight, offset, None, shape)
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
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds `scale` times the weight's gradient to `grad_weight`."""
    shape = Shape((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    # The values of the weight do not enter its own gradient, only its shape does.
    gradients = _backward(grad_output, input, torch.zeros_like(grad_weight), offset, None, shape)
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
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fills `output`."""
    shape = Shape((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    size = (output.shape[2], output.shape[3])
    offset, mask = _values_read(offset, size), _values_read(mask, size)
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, shape))


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
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fills all gradients; `grad_bias` only `with_bias`."""
    shape = Shape((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    size = (grad_output.shape[2], grad_output.shape[3])
    offset, mask = _values_read(offset, size), _values_read(mask, size)
    gradients = _backward(grad_output, input, weight, offset, mask, shape)
    grad_input.copy_(gradients[0])
    grad_weight.copy_(gradients[1])
    grad_offset.copy_(_padded_like(grad_offset, gradients[2]))
    grad_mask.copy_(_padded_like(grad_mask, gradients[3]))
    if with_bias:
        grad_bias.copy_(gradients[4])


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, shape: Shape
) -> Tensor:
    modulated = mask is not None
    if mask is None:
        mask = input.new_zeros(len(input), 1)  # torchvision's own placeholder
    if bias is None:
        bias = weight.new_zeros(len(weight))
    input, weight, offset, mask, bias = common(input, weight, offset, mask, bias)
    output: Tensor = torch.ops.torchvision.deform_conv2d(
        input, weight, _moved_outside(offset), mask, bias, *shape.arguments(), modulated
    )
    return output.masked_fill(offset.isnan().any(dim=1, keepdim=True), torch.nan)


def _backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, shape: Shape
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, weight, offset, mask and bias."""
    modulated = mask is not None
    if mask is None:
        mask = input.new_zeros(len(input), 1)
    bias = weight.new_zeros(len(weight))
    grad_output, input, weight, offset, mask, bias = common(grad_output, input, weight, offset, mask, bias)
    gradients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, _moved_outside(offset), mask, bias, *shape.arguments(), modulated
    )
    return gradients


def _values_read(values: Tensor, size: tuple[int, int]) -> Tensor:
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


def _moved_outside(offset: Tensor) -> Tensor:
    return offset.nan_to_num(OUTSIDE).clamp(-OUTSIDE, OUTSIDE)
