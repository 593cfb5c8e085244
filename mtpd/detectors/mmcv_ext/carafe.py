"""CARAFE, content-aware upsampling (Wang et al. 2019, equations 2 to 4), in plain PyTorch.

B batch, C channels, H W map, G groups, s scale factor, k kernel size. `features` is (B, C, H, W); `masks` is
(B, G * k * k, s * H, s * W): for each output cell the weights of the k x k features around its source cell.
"""

from functools import partial

from torch import Tensor
from torch.nn.functional import pad

from mtpd.detectors.mmcv_ext.dtypes import common
from mtpd.detectors.mmcv_ext.gradients import gradients_of


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills `output` (B, C, s * H, s * W), and `rfeatures` with what `carafe_backward` needs; the rest is unused."""
    rfeatures.copy_(features)
    carafe_naive_forward(
        features, masks, output, kernel_size=kernel_size, group_size=group_size, scale_factor=scale_factor
    )


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills `grad_input` and `grad_masks`."""
    carafe_naive_backward(
        grad_output,
        rfeatures,
        masks,
        grad_input,
        grad_masks,
        kernel_size=kernel_size,
        group_size=group_size,
        scale_factor=scale_factor,
    )


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Fills `output` (B, C, s * H, s * W)."""
    output.copy_(_reassemble(*common(features, masks), kernel=kernel_size, groups=group_size, scale=scale_factor))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills `grad_input` and `grad_masks`."""
    function = partial(_reassemble, kernel=kernel_size, groups=group_size, scale=scale_factor)
    gradients = gradients_of(function, common(features, masks), grad_output)
    grad_input.copy_(gradients[0])
    grad_masks.copy_(gradients[1])


def _reassemble(features: Tensor, masks: Tensor, *, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    # Output cells (y, x) as (source row, row in it, source column, column in it): a view, nothing is upsampled.
    weights = masks.view(batch, groups, kernel * kernel, 1, height, scale, width, scale)
    padded = pad(features, (kernel // 2,) * 4)
    padded = padded.view(batch, groups, channels // groups, *padded.shape[2:])
    output = features.new_zeros(batch, groups, channels // groups, height, scale, width, scale)
    for position in range(kernel * kernel):
        row, column = divmod(position, kernel)
        shifted = padded[..., row : row + height, column : column + width]
        output = output + shifted[..., :, None, :, None] * weights[:, :, position]
    return output.reshape(batch, channels, height * scale, width * scale)
