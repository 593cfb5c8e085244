"""Deformable convolutions through mmcv.ops against loops written from Dai et al. 2017 and Zhu et al. 2019."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck


@dataclass(frozen=True)
class Case:
    """Shape of a convolution: 4 input channels, 6 output channels."""

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    size: tuple[int, int] = (5, 7)

    def output_size(self) -> tuple[int, int]:
        height, width = (
            (self.size[d] + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // self.stride[d] + 1
            for d in (0, 1)
        )
        return height, width


CASES = [
    Case(),
    Case(kernel=(1, 1), padding=(0, 0)),
    Case(kernel=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2),
    Case(offset_groups=2, size=(4, 3)),
    Case(groups=2, offset_groups=4, stride=(2, 2)),
    Case(size=(1, 1)),
]


@dataclass(frozen=True)
class Inputs:
    image: Tensor
    offset: Tensor
    mask: Tensor
    weight: Tensor
    bias: Tensor


def inputs(case: Case, *, batch: int = 2) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = case.offset_groups * case.kernel[0] * case.kernel[1]
    return Inputs(
        image=random(batch, 4, *case.size),
        offset=random(batch, 2 * positions, *case.output_size()) * 2,
        mask=random(batch, positions, *case.output_size()).sigmoid(),
        weight=random(6, 4 // case.groups, *case.kernel),
        bias=random(6),
    )


def bilinear(image: Tensor, y: float, x: float) -> float:
    """Linear between cell centres of a map that is zero outside."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image[row, column])
    return total


def expected(case: Case, given: Inputs, *, modulated: bool) -> Tensor:
    batch, channels = given.image.shape[:2]
    height, width = case.output_size()
    num_outputs, per_group = given.weight.shape[:2]
    output = torch.zeros(batch, num_outputs, height, width, dtype=torch.float64)
    for b in range(batch):
        for o in range(num_outputs):
            group = o // (num_outputs // case.groups)
            for y in range(height):
                for x in range(width):
                    total = float(given.bias[o]) if modulated else 0.0
                    for c in range(per_group):
                        channel = group * per_group + c
                        offset_group = channel // (channels // case.offset_groups)
                        for i in range(case.kernel[0]):
                            for j in range(case.kernel[1]):
                                position = (offset_group * case.kernel[0] + i) * case.kernel[1] + j
                                shift_y, shift_x = given.offset[b, 2 * position : 2 * position + 2, y, x].tolist()
                                row = y * case.stride[0] - case.padding[0] + i * case.dilation[0] + shift_y
                                column = x * case.stride[1] - case.padding[1] + j * case.dilation[1] + shift_x
                                value = bilinear(given.image[b, channel], row, column)
                                if modulated:
                                    value *= float(given.mask[b, position, y, x])
                                total += value * float(given.weight[o, c, i, j])
                    output[b, o, y, x] = total
    return output


def deform(case: Case, image: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    from mmcv.ops import deform_conv2d

    shape = (case.stride, case.padding, case.dilation, case.groups, case.offset_groups)
    output: Tensor = deform_conv2d(image, offset, weight, *shape)
    return output


def modulated(case: Case, image: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from mmcv.ops import modulated_deform_conv2d

    shape = (case.stride, case.padding, case.dilation, case.groups, case.offset_groups)
    output: Tensor = modulated_deform_conv2d(image, offset, mask, weight, bias, *shape)
    return output


@pytest.mark.parametrize('case', CASES)
def test_deform_conv(case: Case) -> None:
    given = inputs(case)
    output = deform(case, given.image, given.offset, given.weight)
    torch.testing.assert_close(output, expected(case, given, modulated=False))


@pytest.mark.parametrize('case', CASES)
def test_modulated_deform_conv(case: Case) -> None:
    given = inputs(case)
    output = modulated(case, given.image, given.offset, given.mask, given.weight, given.bias)
    wanted = expected(case, given, modulated=True)
    torch.testing.assert_close(output, wanted)
    without_bias = modulated(case, given.image, given.offset, given.mask, given.weight, None)
    torch.testing.assert_close(without_bias, wanted - given.bias[:, None, None])


@pytest.mark.parametrize('case', [CASES[1], CASES[2], CASES[3]])
def test_gradients(case: Case) -> None:
    given = inputs(case, batch=1)
    image, offset, mask, weight, bias = (
        tensor.requires_grad_() for tensor in (given.image, given.offset, given.mask, given.weight, given.bias)
    )
    assert gradcheck(lambda *tensors: deform(case, *tensors), (image, offset, weight), fast_mode=True)
    assert gradcheck(lambda *tensors: modulated(case, *tensors), (image, offset, mask, weight, bias), fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    given = inputs(CASES[0])
    tensors = [
        tensor.to(dtype).requires_grad_()
        for tensor in (given.image, given.offset, given.mask, given.weight, given.bias)
    ]
    output = modulated(CASES[0], *tensors)
    wide = modulated(CASES[0], *(tensor.detach().float() for tensor in tensors))
    assert torch.equal(output, wide.to(dtype))
    for gradient in torch.autograd.grad(output.sum(), tensors):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_an_offset_that_is_not_a_number_marks_its_cell_only() -> None:
    case = CASES[0]
    given = inputs(case)
    offset = given.offset.clone()
    offset[1, 5, 2, 3] = torch.nan
    output = modulated(case, given.image, offset, given.mask, given.weight, given.bias)
    marked = torch.zeros_like(output, dtype=torch.bool)
    marked[1, :, 2, 3] = True
    assert torch.equal(output.isnan(), marked)
    exact = modulated(case, given.image, given.offset, given.mask, given.weight, given.bias)
    assert torch.equal(output[~marked], exact[~marked])


@pytest.mark.parametrize('value', [1e30, -1e30, torch.inf, -torch.inf])
def test_an_offset_far_outside_contributes_nothing(value: float) -> None:
    given = inputs(CASES[0])
    image, weight = given.image.requires_grad_(), given.weight.requires_grad_()
    offset = torch.full_like(given.offset, value).requires_grad_()
    output = deform(CASES[0], image, offset, weight)
    assert not output.any()
    for gradient in torch.autograd.grad(output.sum(), (image, offset, weight)):
        assert not gradient.any()


def test_modulated_offsets_larger_than_the_output_are_read_as_mmcv_reads_them() -> None:
    """DyHead relies on it: of each image's offsets and masks the kernel takes the first values, in memory order."""
    case = CASES[0]
    given = inputs(case)
    generator = torch.Generator().manual_seed(3)
    offset = torch.randn(2, 18, 10, 14, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 9, 10, 14, generator=generator, dtype=torch.float64)
    read = Inputs(
        image=given.image,
        offset=torch.stack([image.flatten()[: 18 * 35].view(18, 5, 7) for image in offset]),
        mask=torch.stack([image.flatten()[: 9 * 35].view(9, 5, 7) for image in mask]),
        weight=given.weight,
        bias=given.bias,
    )
    output = modulated(case, given.image, offset, mask, given.weight, given.bias)
    torch.testing.assert_close(output, expected(case, read, modulated=True))
    few = (given.image[:1, :, :2, :2], offset[:1, :, :3, :3], mask[:1, :, :3, :3], given.weight, given.bias)
    variables = tuple(tensor.contiguous().requires_grad_() for tensor in few)
    assert gradcheck(lambda *tensors: modulated(case, *tensors), variables, fast_mode=True)


def test_shapes_that_do_not_fit_are_errors() -> None:
    given = inputs(CASES[0])
    with pytest.raises(RuntimeError):
        deform(CASES[0], given.image, given.offset[:, :-2], given.weight)
    with pytest.raises(RuntimeError):
        deform(CASES[0], given.image, given.offset[:, :, :-1], given.weight)
    with pytest.raises(RuntimeError):
        modulated(CASES[0], given.image, given.offset, given.mask[:, :-1], given.weight, None)
