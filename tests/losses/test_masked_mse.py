"""Masked MSE against the sum written out in float64, and what must not leak into it."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from mtpd.errors import InputError
from mtpd.kernels.weighted_mse import WeightedError, weighted_mses

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 16, 1, 13), (2, 8, 25, 34)]


def random_maps(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.6
    mask.view(-1)[0] = True
    return student, teacher, mask


def weighted_mse(*maps: Tensor) -> Tensor:
    return weighted_mses([WeightedError(*maps)])[0]


def reference(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    total, count = 0.0, 0
    batch, channels, height, width = student.shape
    pairs = student.double().flatten().tolist(), teacher.double().flatten().tolist()
    cells = mask.expand(batch, channels, height, width).flatten().tolist()
    for a, b, valid in zip(*pairs, cells, strict=True):
        if valid:
            total += (a - b) ** 2
            count += 1
    return total / count if count else 0.0


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
def test_against_the_formula(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    maps = random_maps(shape, dtype)
    loss = weighted_mse(*maps)
    # The inputs are rounded before both, so half precision must cost nothing.
    assert loss.item() == pytest.approx(reference(*maps), rel=1e-12 if dtype == torch.float64 else 1e-5)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_squares_beyond_the_range_of_half_precision() -> None:
    student = torch.full((1, 2, 3, 3), 300.0, dtype=torch.float16)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    assert weighted_mse(student, -student, mask).item() == 360_000.0


def test_mixed_dtypes_and_autocast() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    half = student.bfloat16().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = weighted_mse(half, teacher, mask)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(reference(half.detach(), teacher, mask), rel=1e-5)
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize('shape', SHAPES)
def test_gradient_against_the_formula(shape: tuple[int, int, int, int]) -> None:
    student, teacher, mask = random_maps(shape)
    student.requires_grad_()
    torch.autograd.backward(3 * weighted_mse(student, teacher, mask))
    assert student.grad is not None
    error = (student.detach().double() - teacher.double()) * mask
    torch.testing.assert_close(student.grad.double(), 3 * 2 * error / (mask.sum() * shape[1]), rtol=1e-5, atol=1e-7)


def test_gradcheck() -> None:
    student, teacher, mask = random_maps((2, 3, 4, 5), torch.float64)
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: weighted_mse(a, b, mask), inputs)


def test_nothing_valid_gives_zero_with_zero_gradient() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    student.requires_grad_()
    loss = weighted_mse(student, teacher, torch.zeros_like(mask))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
def test_masked_cells_do_not_leak(poison: float) -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    want = weighted_mse(student, teacher, mask)
    student, teacher = (torch.where(mask, values, poison) for values in (student, teacher))
    student.requires_grad_()
    loss = weighted_mse(student, teacher, mask)
    torch.autograd.backward(loss)
    assert torch.equal(loss, want)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[~mask.expand_as(student)].any()


def test_a_valid_nan_shows() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    student[0, 0, 0, 0] = math.nan
    assert weighted_mse(student, teacher, mask).isnan()


def test_padding_changes_nothing() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    wide = (0, 6, 0, 4)
    padded = weighted_mse(pad(student, wide), pad(teacher, wide, value=9.0), pad(mask, wide))
    assert padded.item() == pytest.approx(weighted_mse(student, teacher, mask).item(), rel=1e-6)


@pytest.mark.parametrize(
    ('student', 'teacher', 'mask'),
    [
        ((2, 3, 5, 7), (2, 1, 5, 7), (2, 1, 5, 7)),
        ((2, 3, 5, 7), (2, 3, 5, 7), (2, 3, 5, 7)),
        ((2, 3, 5, 7), (2, 3, 5, 7), (1, 1, 5, 7)),
        ((3, 5, 7), (3, 5, 7), (3, 1, 7)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match='do not fit'):
        weighted_mse(torch.zeros(student), torch.zeros(teacher), torch.ones(mask, dtype=torch.bool))


def test_a_mask_of_floats_is_refused() -> None:
    with pytest.raises(InputError, match=r'torch\.bool'):
        weighted_mse(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
