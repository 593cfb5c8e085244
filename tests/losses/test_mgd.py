"""MGD against its formula, computed with loops in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.geometry import Level
from mtpd.kernels.weighted_mse import weighted_mses
from mtpd.losses.mgd import MaskedGenerativeDistillation, published_elements

Array = NDArray[np.float64]


def convolve(values: Array, layer: nn.Module) -> Array:
    """A convolution of odd size with zero padding, one output element at a time: values (C, H, W)."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    reach = weight.shape[-1] // 2
    padded = np.pad(values, ((0, 0), (reach, reach), (reach, reach)))
    _, height, width = values.shape
    out = np.empty((len(weight), height, width))
    for channel in range(len(weight)):
        for y in range(height):
            for x in range(width):
                window = padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1]
                out[channel, y, x] = bias[channel] + (weight[channel] * window).sum()
    return out


def reference(
    loss: MaskedGenerativeDistillation, student: Tensor, teacher: Tensor, mask: Tensor, keep: Tensor
) -> float:
    total, count = 0.0, 0
    for index in range(len(student)):
        valid, kept = mask[index].numpy(), keep[index].numpy()
        hidden = student[index].double().numpy()
        if loss.align is not None:
            hidden = convolve(hidden, loss.align)
        hidden = convolve(hidden * (valid & kept), loss.generation[0])
        generated = convolve(np.maximum(hidden, 0) * valid, loss.generation[2])
        error = (generated - teacher[index].double().numpy()) ** 2
        total += float((error * valid).sum())
        count += int(valid.sum()) * len(error)
    return total / count


def random_case(channels: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    student = torch.randn(2, channels[0], *grid, generator=generator)
    teacher = torch.randn(2, channels[1], *grid, generator=generator)
    mask = torch.zeros(2, 1, *grid, dtype=torch.bool)
    mask[0] = True
    mask[1, :, : grid[0] // 2 + 1, : grid[1] // 2 + 1] = True
    return student, teacher, mask


def compute(
    loss: MaskedGenerativeDistillation,
    student: Tensor,
    teacher: EncodedMaps,
    mask: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    return weighted_mses([loss(student, teacher, mask, generator=generator)])[0]


@pytest.mark.parametrize('mask_ratio', [0.0, 0.45, 1.0])
@pytest.mark.parametrize(('channels', 'grid'), [((3, 3), (5, 7)), ((3, 4), (1, 6)), ((5, 2), (1, 1))])
def test_against_the_formula(channels: tuple[int, int], grid: tuple[int, int], mask_ratio: float) -> None:
    torch.manual_seed(1)
    loss = MaskedGenerativeDistillation(*channels, mask_ratio=mask_ratio)
    assert (loss.align is None) == (channels[0] == channels[1])
    student, teacher, mask = random_case(channels, grid)
    keep = torch.rand(mask.shape, generator=torch.Generator().manual_seed(5)) < 1 - mask_ratio
    got = compute(loss, student, EncodedMaps(teacher), mask, generator=torch.Generator().manual_seed(5))
    assert got.item() == pytest.approx(reference(loss, student, teacher, mask, keep), rel=1e-5)


def test_hidden_share_is_the_mask_ratio_and_all_channels_share_it() -> None:
    loss = MaskedGenerativeDistillation(2, 2, mask_ratio=0.65)
    loss.generation = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    student, mask = torch.ones(4, 2, 50, 50), torch.ones(4, 1, 50, 50, dtype=torch.bool)
    # With G the identity and T = 0 the loss is the share of ones that are left: 10 000 draws.
    kept = compute(
        loss, student, EncodedMaps(torch.zeros_like(student)), mask, generator=torch.Generator().manual_seed(3)
    )
    assert kept.item() == pytest.approx(0.35, abs=4 * math.sqrt(0.35 * 0.65 / 10_000))
    student[:, 1] = -1
    student.requires_grad_()
    torch.autograd.backward(compute(loss, student, EncodedMaps(torch.zeros_like(student)), mask))
    assert student.grad is not None
    assert torch.equal(student.grad[:, 0], -student.grad[:, 1])


def test_the_generator_decides_what_is_hidden() -> None:
    torch.manual_seed(1)
    loss = MaskedGenerativeDistillation(3, 3, mask_ratio=0.5)
    student, teacher, mask = random_case((3, 3), (5, 7))
    same = [
        compute(loss, student, EncodedMaps(teacher), mask, generator=torch.Generator().manual_seed(11))
        for _ in range(2)
    ]
    assert torch.equal(*same)
    generator = torch.Generator().manual_seed(11)
    first, second = (compute(loss, student, EncodedMaps(teacher), mask, generator=generator) for _ in range(2))
    assert torch.equal(first, same[0])
    assert not torch.equal(first, second)


def test_what_the_student_makes_of_padding_does_not_matter() -> None:
    torch.manual_seed(1)
    loss = MaskedGenerativeDistillation(3, 4, mask_ratio=0.0)
    student, teacher, mask = random_case((3, 4), (5, 7))
    other = torch.where(mask, student, 50.0), EncodedMaps(torch.where(mask, teacher, -20.0))
    assert torch.equal(compute(loss, student, EncodedMaps(teacher), mask), compute(loss, *other, mask))


@pytest.mark.parametrize('channels', [(3, 3), (3, 4)])
def test_nan_in_padding_reaches_no_gradient(channels: tuple[int, int]) -> None:
    loss = MaskedGenerativeDistillation(*channels, mask_ratio=0.5)
    student, teacher, mask = random_case(channels, (5, 7))
    student, teacher = (torch.where(mask, values, math.nan) for values in (student, teacher))
    student.requires_grad_()
    torch.autograd.backward(compute(loss, student, EncodedMaps(teacher), mask))
    gradients = [student.grad, *(parameter.grad for parameter in loss.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_more_padding_changes_nothing() -> None:
    torch.manual_seed(1)
    loss = MaskedGenerativeDistillation(3, 4, mask_ratio=0.0)
    student, teacher = torch.randn(1, 3, 5, 7), torch.randn(1, 4, 5, 7)
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    bare = compute(loss, student, EncodedMaps(teacher), mask)
    student, teacher, mask = (nn.functional.pad(one, (0, 4, 0, 3)) for one in (student, teacher, mask))
    padded = compute(loss, student, EncodedMaps(teacher), mask)
    assert padded.item() == pytest.approx(bare.item(), rel=1e-6)


def test_gradcheck() -> None:
    torch.manual_seed(1)
    loss = MaskedGenerativeDistillation(2, 3, mask_ratio=0.3).double()
    student, teacher, mask = random_case((2, 3), (4, 5))
    # gradcheck nudges the parameters in place, so they are inputs without being arguments.
    assert torch.autograd.gradcheck(
        lambda values, *_: compute(
            loss, values, EncodedMaps(teacher.double()), mask, generator=torch.Generator().manual_seed(2)
        ),
        [student.double().requires_grad_(), *loss.parameters()],
    )


def test_autocast() -> None:
    torch.manual_seed(1)
    loss = MaskedGenerativeDistillation(3, 4, mask_ratio=0.5)
    student, teacher, mask = random_case((3, 4), (5, 7))
    exact = compute(loss, student, EncodedMaps(teacher), mask, generator=torch.Generator().manual_seed(2))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = compute(
            loss, student.bfloat16(), EncodedMaps(teacher.half()), mask, generator=torch.Generator().manual_seed(2)
        )
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize(
    ('stride', 'elements'), [(4, 256 * 200 * 272), (8, 256 * 100 * 136), (64, 256 * 13 * 17), (128, 256 * 7 * 9)]
)
def test_elements_at_the_published_input(stride: int, elements: int) -> None:
    assert published_elements(Level('x', stride, 256)) == elements
