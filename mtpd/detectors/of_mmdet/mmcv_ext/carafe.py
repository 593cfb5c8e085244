"""CARAFE, content-aware upsampling (Wang et al. 2019, equations 2 to 4), in plain PyTorch.

B batch, C channels, H W map, G groups, s scale factor, k kernel size. `features` is (B, C, H, W); `masks` is
(B, G * k * k, s * H, s * W): for each output cell the weights of the k x k features around its source cell. `sizes` are
`kernel_size`, `group_size` (G) and `scale_factor`.
"""

from functools import partial

from torch import Tensor
from torch.nn.functional import pad

from mtpd.detectors.of_mmdet.mmcv_ext.numerics import common, fill_gradients


def carafe_forward(
    features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor, output: Tensor, **sizes: int
) -> None:
    """Fills `output` (B, C, s * H, s * W), and `rfeatures` with what `carafe_backward` needs; the rest is unused."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, **sizes)


def carafe_backward(grad_output: Tensor, rfeatures: Tensor, masks: Tensor, *rest: Tensor, **sizes: int) -> None:
    """Fills `grad_input` and `grad_masks`, the last two of `rest`; the four before them are unused."""
    *_, grad_input, grad_masks = rest
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **sizes)


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **sizes: int) -> None:
    """Fills `output` (B, C, s * H, s * W)."""
    output.copy_(_reassemble(*common(features, masks), **sizes))


def carafe_naive_backward(
    grad_output: Tensor, features: Tensor, masks: Tensor, grad_input: Tensor, grad_masks: Tensor, **sizes: int
) -> None:
    """Fills `grad_input` and `grad_masks`."""
    inputs = common(features, masks)
    fill_gradients((grad_input, grad_masks), partial(_reassemble, **sizes), inputs, grad_output)


def _reassemble(features: Tensor, masks: Tensor, /, *, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    batch, channels, height, width = features.shape
    # Output cells (y, x) as (source row, row in it, source column, column in it): a view, nothing is upsampled.
    weights = masks.view(batch, group_size, kernel_size**2, 1, height, scale_factor, width, scale_factor)
    padded = pad(features, (kernel_size // 2,) * 4)
    padded = padded.view(batch, group_size, channels // group_size, *padded.shape[2:])
    output = features.new_zeros(batch, group_size, channels // group_size, height, scale_factor, width, scale_factor)
    for position in range(kernel_size**2):
        row, column = divmod(position, kernel_size)
        shifted = padded[..., row : row + height, column : column + width]
        output = output + shifted[..., :, None, :, None] * weights[:, :, position]
    return output.reshape(batch, channels, height * scale_factor, width * scale_factor)
