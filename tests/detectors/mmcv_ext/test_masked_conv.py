"""Convolution at chosen cells against PyTorch's convolution everywhere."""

import pytest
import torch
from torch import Tensor

# mmcv's own Python side calls it in an old way.
pytestmark = pytest.mark.filterwarnings('ignore:This overload of addmm is deprecated')


def sample() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    return features, torch.rand(1, 6, 5, generator=generator).round(), weight, bias


def test_the_chosen_cells_are_convolved_and_the_rest_is_zero() -> None:
    from mmcv.ops.masked_conv import masked_conv2d

    features, mask, weight, bias = sample()
    full = torch.nn.functional.conv2d(features, weight, bias, padding=(1, 2))
    torch.testing.assert_close(masked_conv2d(features, mask, weight, bias, (1, 2)), full * mask)


def test_no_chosen_cell() -> None:
    from mmcv.ops.masked_conv import masked_conv2d

    features, mask, weight, bias = sample()
    assert not masked_conv2d(features, torch.zeros_like(mask), weight, bias, (1, 2)).any()


def test_half_precision() -> None:
    from mmcv.ops.masked_conv import masked_conv2d

    features, mask, weight, bias = (tensor.half() for tensor in sample())
    output = masked_conv2d(features, mask, weight, bias, (1, 2))
    full = torch.nn.functional.conv2d(features.double(), weight.double(), bias.double(), padding=(1, 2))
    torch.testing.assert_close(output.double(), full * mask.double(), atol=2e-2, rtol=1e-2)
