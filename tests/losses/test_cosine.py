"""The cosine loss against vectors taken one by one in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.losses.cosine import cosine

Shape = tuple[int, int, int, int]
SHAPES: list[Shape] = [(2, 3, 5, 7), (3, 16, 1, 13), (2, 8, 25, 34), (1, 1, 2, 1)]


def random_maps(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    # Vectors that agree more and less, of lengths from 0.1 to 100.
    lengths = torch.logspace(-1, 2, shape[2] * shape[3], dtype=torch.float64).reshape(shape[2:])
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.6
    mask.view(-1)[:2] = True
    return ((student + teacher) * lengths).to(dtype), teacher.to(dtype), mask


def reference(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    valid = mask[:, 0].numpy()
    pairs = zip(
        student.double().permute(0, 2, 3, 1).numpy()[valid],
        teacher.double().permute(0, 2, 3, 1).numpy()[valid],
        strict=True,
    )
    return float(np.mean([1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other) for one, other in pairs]))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
def test_against_the_formula(shape: Shape, dtype: torch.dtype) -> None:
    maps = random_maps(shape, dtype)
    loss = cosine(*maps)
    assert loss.item() == pytest.approx(reference(*maps), abs=1e-6)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_from_right_to_wrong() -> None:
    student, _, mask = random_maps((2, 3, 5, 7))
    lengths = torch.rand(2, 1, 5, 7) + 0.1
    assert cosine(student, lengths * student, mask).item() == pytest.approx(0, abs=1e-6)
    assert cosine(student, -lengths * student, mask).item() == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize('size', [1e-30, 1e-4, 1e4, 1e30])
def test_the_size_of_values_does_not_count(size: float) -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    student.requires_grad_()
    loss = cosine(size * student, teacher, mask)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(reference(student.detach(), teacher, mask), abs=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_gradcheck() -> None:
    student, teacher, mask = random_maps((2, 3, 4, 5), torch.float64)
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cosine(a, b, mask), inputs)


def test_a_vector_without_direction_costs_one() -> None:
    student, teacher, mask = random_maps((1, 3, 2, 2))
    mask[:] = True
    teacher[..., 0, 0] = 0
    student[..., 1, 1] = 0
    student.requires_grad_()
    loss = cosine(student, teacher, mask)
    torch.autograd.backward(loss)
    others = [cosine(student[..., h, w, None, None], teacher[..., h, w, None, None], mask[..., :1, :1]).item()
              for h, w in ((0, 1), (1, 0))]  # fmt: skip
    assert loss.item() == pytest.approx((sum(others) + 2) / 4, rel=1e-6)
    assert student.grad is not None
    assert not student.grad[..., 0, 0].any()
    assert student.grad.isfinite().all()


def test_shapes_that_would_broadcast_are_refused() -> None:
    student, teacher, mask = random_maps((2, 3, 5, 7))
    with pytest.raises(InputError, match='do not fit'):
        cosine(student, teacher[:, :1], mask)
