"""Multi-scale deformable attention, by the operators that mmcv uses on a GPU, against loops from the definition."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

SIZES = torch.tensor([[4, 3], [2, 5], [1, 1]])
STARTS = torch.tensor([0, 12, 22])
HEADS, CHANNELS, QUERIES, POINTS = 2, 3, 4, 2


def sample(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, QUERIES, HEADS, len(SIZES), POINTS)
    value = torch.randn(batch, 23, HEADS, CHANNELS, generator=generator, dtype=torch.float64)
    # Some positions outside of the maps.
    locations = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return value, locations, weights


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    output: Tensor = MultiScaleDeformableAttnFunction.apply(value, SIZES, STARTS, locations, weights, 64)
    return output


def expected(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch = len(value)
    output = torch.zeros(batch, QUERIES, HEADS, CHANNELS, dtype=torch.float64)
    for b in range(batch):
        for q in range(QUERIES):
            for m in range(HEADS):
                for level, (height, width) in enumerate(SIZES.tolist()):
                    for p in range(POINTS):
                        x, y = locations[b, q, m, level, p].tolist()
                        x, y = x * width - 0.5, y * height - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    cell = int(STARTS[level]) + row * width + column
                                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                                    output[b, q, m] += weights[b, q, m, level, p] * share * value[b, cell, m]
    return output.flatten(2)


def test_attention() -> None:
    torch.testing.assert_close(attend(*sample()), expected(*sample()))


def test_gradients() -> None:
    assert gradcheck(attend, tuple(tensor.requires_grad_() for tensor in sample(batch=1)))


def test_half_precision() -> None:
    value, locations, weights = (tensor.half().requires_grad_() for tensor in sample())
    output = attend(value, locations, weights)
    assert output.dtype == torch.half
    assert torch.autograd.grad(output.sum(), value)[0].dtype == torch.half
    torch.testing.assert_close(output.double(), expected(*sample()), atol=2e-2, rtol=2e-2)


def test_cells_that_do_not_fit_the_sizes_are_an_error() -> None:
    value, locations, weights = sample()
    with pytest.raises(RuntimeError):
        attend(value[:, :-1], locations, weights)


def test_locations_that_are_not_finite_do_not_crash() -> None:
    value, locations, weights = sample()
    locations[0, 0, 0, 0, 0, 0] = torch.nan
    locations[0, 1, 0, 0, 0, 1] = torch.inf
    output = attend(value, locations, weights)
    assert torch.equal(output[1], attend(*sample())[1])
