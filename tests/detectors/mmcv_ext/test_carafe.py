"""CARAFE through mmcv.ops against loops written from Wang et al. 2019."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

CASES = [(3, 1, 2), (5, 2, 1), (1, 4, 3), (5, 1, 2)]


def sample(kernel: int, groups: int, scale: int, *, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 4, 3, 5, generator=generator, dtype=torch.float64)
    masks = torch.rand(batch, groups * kernel**2, 3 * scale, 5 * scale, generator=generator, dtype=torch.float64)
    return features, masks


def expected(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    radius = kernel // 2
    output = torch.zeros(batch, channels, height * scale, width * scale, dtype=torch.float64)
    for b in range(batch):
        for c in range(channels):
            group = c // (channels // groups)
            for y in range(height * scale):
                for x in range(width * scale):
                    for n in range(-radius, radius + 1):
                        for m in range(-radius, radius + 1):
                            row, column = y // scale + n, x // scale + m
                            if 0 <= row < height and 0 <= column < width:
                                position = group * kernel**2 + (n + radius) * kernel + m + radius
                                output[b, c, y, x] += masks[b, position, y, x] * features[b, c, row, column]
    return output


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), CASES)
def test_forward_and_gradient(kernel: int, groups: int, scale: int) -> None:
    from mmcv.ops import carafe, carafe_naive

    features, masks = sample(kernel, groups, scale)
    wanted = expected(features, masks, kernel, groups, scale)
    torch.testing.assert_close(carafe(features, masks, kernel, groups, scale), wanted)
    torch.testing.assert_close(carafe_naive(features, masks, kernel, groups, scale), wanted)
    inputs = tuple(tensor[:1].requires_grad_() for tensor in (features, masks))
    assert gradcheck(lambda *tensors: carafe(*tensors, kernel, groups, scale), inputs, fast_mode=True)


def test_the_naive_form_has_the_same_gradient() -> None:
    """mmcv lets its Python side run this on a GPU only, so the operator is called directly."""
    import mmcv.ops
    from mmcv import _ext

    kernel, groups, scale = CASES[0]
    features, masks = (tensor.requires_grad_() for tensor in sample(kernel, groups, scale))
    output = mmcv.ops.carafe(features, masks, kernel, groups, scale)
    wanted = torch.autograd.grad(output, (features, masks), torch.ones_like(output))
    gradients = (torch.empty_like(features), torch.empty_like(masks))
    shape = {'kernel_size': kernel, 'group_size': groups, 'scale_factor': scale}
    _ext.carafe_naive_backward(torch.ones_like(output), features.detach(), masks.detach(), *gradients, **shape)
    torch.testing.assert_close(gradients, wanted)


def test_no_images_and_half_precision() -> None:
    from mmcv.ops import carafe

    features, masks = sample(*CASES[0], batch=0)
    assert carafe(features, masks, *CASES[0]).shape == (0, 4, 6, 10)
    features, masks = (tensor.half().requires_grad_() for tensor in sample(*CASES[0]))
    output = carafe(features, masks, *CASES[0])
    output.sum().backward()
    assert output.dtype == torch.half
    torch.testing.assert_close(output.double(), expected(*sample(*CASES[0]), *CASES[0]), atol=2e-2, rtol=1e-2)
