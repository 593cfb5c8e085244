"""The weighted mean squared error as its callers see it: its formula in plain PyTorch, and when the kernel runs."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mtpd.errors import InputError
from mtpd.kernels import fused_mse
from mtpd.kernels.weighted_mse import WeightedError, weighted_mses

SHAPE = (2, 3, 4, 5)


def weighted_mse(*maps: Tensor, **others: Any) -> Tensor:
    return weighted_mses([WeightedError(*maps, **others)])[0]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def some_weights() -> Tensor:
    weights = random(2, 1, 4, 5)
    return torch.where(weights < 0.4, 0.0, weights)


@pytest.mark.parametrize('scale', [(2, 1), (2, 3), (2, 2, 3), None], ids=str)
@pytest.mark.parametrize('channel_weights', [(3,), (2, 3), None], ids=str)
def test_against_the_formula(scale: tuple[int, ...] | None, channel_weights: tuple[int, ...] | None) -> None:
    student, weights = random(*SHAPE), some_weights()
    codes = torch.arange(120).reshape(SHAPE).to(torch.int8)
    steps = None if scale is None else random(*scale)
    factors = None if channel_weights is None else random(*channel_weights)
    total = 0.0
    for b, c, h, w in torch.cartesian_prod(*(torch.arange(size) for size in SHAPE)).tolist():
        step, offset = (1.0, 0.0) if steps is None else steps.expand(2, 2, 3)[b, :, c].tolist()
        factor = 1.0 if factors is None else factors.expand(2, 3)[b, c].item()
        error = student[b, c, h, w].item() - (step * codes[b, c, h, w].item() + offset)
        total += factor * weights[b, 0, h, w].item() * error**2
    loss = weighted_mse(student, codes, weights > 0, weights=weights, scale=steps, channel_weights=factors)
    assert loss.item() == pytest.approx(total / (3 * weights.sum().item()), rel=1e-12)
    assert loss.dtype == torch.float64


def test_without_weights_they_are_ones() -> None:
    student, teacher, mask = random(*SHAPE, dtype=torch.float32), random(*SHAPE).half(), some_weights() > 0
    ones = torch.ones_like(mask, dtype=torch.float32)
    assert torch.equal(weighted_mse(student, teacher, mask), weighted_mse(student, teacher, mask, weights=ones))


def test_gradcheck() -> None:
    student, teacher = random(*SHAPE).requires_grad_(), random(1, *SHAPE)[0].flip(0).requires_grad_()
    weights, scale, channel_weights = some_weights(), random(2, 3), random(2, 3)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return weighted_mse(
            student, teacher, weights > 0, weights=weights, scale=scale, channel_weights=channel_weights
        )

    assert torch.autograd.gradcheck(loss, (student, teacher))


@pytest.mark.parametrize('poison', [math.nan, math.inf])
def test_cells_without_weight(poison: float) -> None:
    weights = some_weights()
    student, teacher = (torch.where(weights > 0, random(*SHAPE), poison) for _ in range(2))
    student = (student + 1).requires_grad_()
    mask = torch.ones_like(weights, dtype=torch.bool)
    loss = weighted_mse(student, teacher, mask, weights=weights)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(1)
    assert not gradient[weights.expand(SHAPE) == 0].any()
    (gradient,) = torch.autograd.grad(weighted_mse(student, teacher, ~mask, weights=weights), student)
    assert not gradient.any()


@pytest.mark.parametrize('shape', [(0, 3, 5, 7), (2, 3, 0, 7)])
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_empty_maps(shape: tuple[int, int, int, int], device: str) -> None:
    if device == 'cuda' and not torch.cuda.is_available():
        pytest.skip('there is no GPU')
    student = torch.zeros(shape, device=device, requires_grad=True)
    teacher, mask = student.detach().clone(), torch.ones((shape[0], 1, *shape[2:]), dtype=torch.bool, device=device)
    loss = weighted_mse(student, teacher, mask)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert gradient.shape == shape


@pytest.mark.parametrize(
    ('teacher', 'mask', 'weights'),
    [
        ((2, 1, 4, 5), (2, 1, 4, 5), None),
        (SHAPE, (1, 1, 4, 5), None),
        (SHAPE, SHAPE, None),
        (SHAPE, (1, 1, 4, 5), (2, 1, 4, 5)),
        (SHAPE, (2, 1, 4, 5), (1, 1, 4, 5)),
        (SHAPE, (2, 1, 4, 5), SHAPE),
    ],
)
def test_shapes_that_would_broadcast_are_refused(
    teacher: tuple[int, ...], mask: tuple[int, ...], weights: tuple[int, ...] | None
) -> None:
    given = None if weights is None else torch.ones(weights)
    with pytest.raises(InputError, match='do not fit'):
        weighted_mse(torch.zeros(SHAPE), torch.zeros(teacher), torch.ones(mask) > 0, weights=given)


def test_a_mask_that_is_not_bool_is_refused() -> None:
    with pytest.raises(InputError, match='float32 do not fit'):
        weighted_mse(torch.zeros(SHAPE), torch.zeros(SHAPE), torch.ones(2, 1, 4, 5))


class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def runs_fused(device: str, student: torch.dtype, teacher: torch.dtype, *, gradient_of: str = 'student') -> bool:
    """Which way a call goes, on a device that need not be there."""
    with FakeTensorMode():
        tensors = {
            'student': torch.empty(SHAPE, device=device, dtype=student),
            'teacher': torch.empty(SHAPE, device=device, dtype=teacher),
            'weights': torch.empty((2, 1, 4, 5), device=device),
        }
        tensors[gradient_of].requires_grad_()
        mask = torch.ones((2, 1, 4, 5), device=device, dtype=torch.bool)
        with Names() as recorded:
            loss = weighted_mse(tensors['student'], tensors['teacher'], mask, weights=tensors['weights'])
    assert loss.dtype == (torch.float64 if torch.float64 in (student, teacher) else torch.float32)
    return 'mtpd.weighted_mse.default' in recorded.names


def test_the_kernel_runs_on_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_mse, 'HAS_TRITON', True)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert runs_fused('cuda', dtype, torch.int8)
        assert runs_fused('cuda', torch.float16, dtype)
        assert not runs_fused('cpu', dtype, torch.int8)
    assert not runs_fused('cuda', torch.float64, torch.int8)
    assert not runs_fused('cuda', torch.float32, torch.float64)
    for name in ('teacher', 'weights'):
        assert not runs_fused('cuda', torch.float32, torch.float32, gradient_of=name)
    monkeypatch.setattr(fused_mse, 'HAS_TRITON', False)
    assert not runs_fused('cuda', torch.float32, torch.int8)


def test_triton_is_not_imported_before_it_is_used() -> None:
    code = 'import sys, mtpd.kernels.weighted_mse; print("triton" in sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout == 'False\n'


def test_torch_compile_sees_one_graph() -> None:
    student, teacher, weights = random(*SHAPE).half(), random(*SHAPE).flip(0), some_weights()
    compiled = torch.compile(weighted_mse, backend='aot_eager', fullgraph=True)
    found, wanted = (one(student, teacher, weights > 0, weights=weights) for one in (compiled, weighted_mse))
    assert torch.equal(found, wanted)
