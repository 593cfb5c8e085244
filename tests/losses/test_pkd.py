"""PKD against Pearson's correlation, computed channel by channel in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mtpd.errors import InputError
from mtpd.losses.pkd import pkd

Shape = tuple[int, int, int, int]
SHAPES: list[Shape] = [(2, 3, 5, 7), (3, 16, 1, 13), (2, 8, 25, 34), (1, 1, 2, 1)]


def random_maps(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    # Channels that correlate well, badly and inversely, with means and scales of their own.
    slopes = torch.linspace(-2, 3, shape[1], dtype=torch.float64)[:, None, None]
    student = student + slopes * teacher + slopes
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.6
    mask.view(-1)[:2] = True
    return student.to(dtype), teacher.to(dtype), mask


def reference(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    valid = mask[:, 0].numpy()
    pairs = zip(student.double().numpy().swapaxes(0, 1), teacher.double().numpy().swapaxes(0, 1), strict=True)
    return float(np.mean([1 - np.corrcoef(one[valid], other[valid])[0, 1] for one, other in pairs]))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
def test_against_the_formula(shape: Shape, dtype: torch.dtype) -> None:
    maps = random_maps(shape, dtype)
    loss = pkd(*maps)
    # The inputs are rounded before both, so half precision must cost nothing. 1e-6 is added to deviations of about 1.
    assert loss.item() == pytest.approx(reference(*maps), abs=1e-5)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_against_the_published_form() -> None:
    """Without padding it is n / (n - 1) times half the mean square of what the sample's deviation standardises."""
    student, teacher, mask = random_maps((2, 3, 5, 7), torch.float64)
    student, teacher = 1e4 * student, 1e4 * teacher  # the published form adds 1e-6 to the other deviation
    one, other = (
        (values - values.mean((0, 2, 3), keepdim=True)) / values.std((0, 2, 3), keepdim=True)
        for values in (student, teacher)
    )
    published = (one - other).square().mean().item() / 2
    loss = pkd(student, teacher, torch.ones_like(mask))
    assert loss.item() == pytest.approx(published * 70 / 69, rel=1e-9)


def test_from_right_to_wrong() -> None:
    student, _, mask = random_maps((2, 3, 5, 7))
    assert pkd(student, 40 * student + 7, mask).item() == pytest.approx(0, abs=1e-10)
    assert pkd(student, -student, mask).item() == pytest.approx(2, rel=1e-5)


def test_large_means_and_half_precision() -> None:
    student, teacher, mask = random_maps((2, 3, 25, 34))
    student, teacher = (1000 + 30 * student).half(), (300 * teacher).half()
    assert pkd(student, teacher, mask).item() == pytest.approx(reference(student, teacher, mask), abs=1e-5)


def test_autocast_changes_nothing() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    half = student.bfloat16().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = pkd(half, teacher, mask)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(reference(half.detach(), teacher, mask), abs=1e-5)
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_gradcheck() -> None:
    student, teacher, mask = random_maps((2, 3, 4, 5), torch.float64)
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: pkd(a, b, mask), inputs)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize('value', [0.0, 7.3, -1e4])
def test_constant_channels(value: float, dtype: torch.dtype) -> None:
    """Each costs 1/2 against a channel that varies and nothing against another constant one."""
    student, teacher, mask = random_maps((2, 3, 25, 34), dtype)
    teacher[:, 1:] = value
    student[:, 2] = 2 * value
    others = reference(student[:, :1], teacher[:, :1], mask)
    student.requires_grad_()
    loss = pkd(student, teacher, mask)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx((others + 0.5 + 0) / 3, abs=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[:, 0].any()
    assert not student.grad[:, 2].any()


def test_nothing_valid_gives_zero_with_zero_gradient() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    student.requires_grad_()
    loss = pkd(student, teacher, torch.zeros_like(mask))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_a_single_valid_cell_has_no_correlation() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    mask[:] = False
    mask[0, 0, 2, 3] = True
    student.requires_grad_()
    loss = pkd(student, teacher, mask)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
def test_masked_cells_do_not_leak(poison: float) -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    want = pkd(student, teacher, mask)
    student, teacher = (torch.where(mask, values, poison) for values in (student, teacher))
    student.requires_grad_()
    loss = pkd(student, teacher, mask)
    torch.autograd.backward(loss)
    assert torch.equal(loss, want)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[~mask.expand_as(student)].any()


def test_a_valid_nan_shows() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    student[0, 0, 0, 0] = math.nan
    assert pkd(student, teacher, mask).isnan()


def test_padding_and_resolution_change_nothing() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    want = pytest.approx(pkd(student, teacher, mask).item(), rel=1e-5)
    wide = (0, 6, 0, 4)
    assert pkd(pad(student, wide), pad(teacher, wide, value=9.0), pad(mask, wide)).item() == want
    finer = [interpolate(values.float(), scale_factor=3) for values in (student, teacher, mask)]
    assert pkd(finer[0], finer[1], finer[2].bool()).item() == want


def test_shapes_that_would_broadcast_are_refused() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    with pytest.raises(InputError, match='do not fit'):
        pkd(student, teacher[:, :1], mask)
    with pytest.raises(InputError, match='do not fit'):
        pkd(student, teacher, mask.float())
