"""CWD against its formula, computed channel by channel in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mtpd.errors import InputError
from mtpd.losses.cwd import cwd

Shape = tuple[int, int, int, int]
SHAPES: list[Shape] = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 16, 1, 13), (2, 8, 25, 34)]


def random_maps(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.6
    mask[..., 0, 0] = True
    return student.to(dtype), teacher.to(dtype), mask


def reference(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> float:
    divergences = []
    for index, valid in enumerate(mask[:, 0].numpy()):
        for channel in range(student.shape[1] if valid.any() else 0):
            weights = [
                np.exp(maps[index, channel].double().numpy()[valid] / temperature) for maps in (teacher, student)
            ]
            p, q = (one / one.sum() for one in weights)
            divergences.append(temperature**2 * (p * np.log(p / q)).sum())
    return float(np.mean(divergences))


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
def test_against_the_formula(shape: Shape, dtype: torch.dtype, temperature: float) -> None:
    maps = random_maps(shape, dtype)
    loss = cwd(*maps, temperature=temperature)
    # The inputs are rounded before both, so half precision must cost nothing.
    want = pytest.approx(reference(*maps, temperature), rel=1e-12 if dtype == torch.float64 else 1e-5, abs=1e-12)
    assert loss.item() == want
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_against_the_published_form() -> None:
    """Without padding: tau^2 KL, summed over everything, by the number of images and channels."""
    student, teacher, mask = random_maps((2, 3, 5, 7), torch.float64)
    p, q = (values.flatten(2).div(4).log_softmax(2) for values in (teacher, student))
    published = 16 * torch.nn.functional.kl_div(q, p, reduction='sum', log_target=True).item() / (2 * 3)
    assert cwd(student, teacher, torch.ones_like(mask), temperature=4).item() == pytest.approx(published, rel=1e-12)


def test_offsets_are_free_and_scales_are_not() -> None:
    student, _, mask = random_maps((2, 3, 5, 7))
    assert cwd(student, student + 7, mask).item() == pytest.approx(0, abs=1e-5)
    assert cwd(student, 2 * student, mask).item() > 0.1


def test_values_whose_exponential_is_beyond_float32() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    student, teacher = (60_000 + 10 * student).half(), (-300 + 10 * teacher).half()
    shifted = student.double() - 60_000, teacher.double() + 300
    student.requires_grad_()
    loss = cwd(student, teacher, mask)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(reference(*shifted, mask, 1.0), rel=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    half = student.bfloat16().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = cwd(half, teacher, mask)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(reference(half.detach(), teacher, mask, 1.0), rel=1e-5)
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_gradcheck() -> None:
    student, teacher, mask = random_maps((2, 3, 4, 5), torch.float64)
    mask[1] = False
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cwd(a, b, mask, temperature=2), inputs)


@pytest.mark.parametrize('value', [0.0, -7.3])
def test_constant_channels(value: float) -> None:
    """A constant channel is an even distribution: the entropy that the other lacks is the loss."""
    student, teacher, mask = random_maps((1, 2, 5, 7), torch.float64)
    teacher[:, 0], student[:, 1], teacher[:, 1] = value, value, 3 * value
    student.requires_grad_()
    loss = cwd(student, teacher, mask)
    torch.autograd.backward(loss)
    q = student.detach()[0, 0][mask[0, 0]].softmax(0)
    want = (1 / len(q) * (1 / len(q) / q).log()).sum().item()
    assert loss.item() == pytest.approx(want / 2, rel=1e-12)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[:, 1].abs().max() < 1e-12


def test_nothing_valid_gives_zero_with_zero_gradient() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    student.requires_grad_()
    loss = cwd(student, teacher, torch.zeros_like(mask))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_an_image_without_valid_cells_is_no_image() -> None:
    student, teacher, mask = random_maps((3, 3, 5, 7))
    mask[1] = False
    want = cwd(student[::2], teacher[::2], mask[::2])
    assert cwd(student, teacher, mask).item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
def test_masked_cells_do_not_leak(poison: float) -> None:
    student, teacher, mask = random_maps((3, 3, 5, 7))
    mask[1] = False
    want = cwd(student, teacher, mask)
    student, teacher = (torch.where(mask, values, poison) for values in (student, teacher))
    student.requires_grad_()
    loss = cwd(student, teacher, mask)
    torch.autograd.backward(loss)
    assert torch.equal(loss, want)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[~mask.expand_as(student)].any()


@pytest.mark.parametrize('owner', [0, 1])
def test_a_valid_nan_shows(owner: int) -> None:
    maps = random_maps((2, 3, 5, 7))
    maps[owner][0, 0, 0, 0] = math.nan
    assert cwd(*maps).isnan()


def test_padding_and_resolution_change_nothing() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    want = pytest.approx(cwd(student, teacher, mask).item(), rel=1e-5)
    wide = (0, 6, 0, 4)
    assert cwd(pad(student, wide), pad(teacher, wide, value=9.0), pad(mask, wide)).item() == want
    finer = [interpolate(values.float(), scale_factor=3) for values in (student, teacher, mask)]
    assert cwd(finer[0], finer[1], finer[2].bool()).item() == want


def test_shapes_that_would_broadcast_are_refused() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    with pytest.raises(InputError, match='do not fit'):
        cwd(student, teacher[:, :1], mask)
    with pytest.raises(InputError, match='do not fit'):
        cwd(student, teacher, mask.float())
