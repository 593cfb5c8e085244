"""The kernels against the formula in float64: compiled on a GPU, else in Triton's interpreter."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from mtpd.kernels.fused_mse import fused_weighted_mse

# The interpreter computes in numpy, which warns of inf - inf and of what half precision cannot hold.
pytestmark = pytest.mark.filterwarnings('ignore:(invalid value|overflow) encountered:RuntimeWarning')

Layout = Literal['contiguous', 'channels_last', 'apart', 'channels_last_apart', 'sliced', 'transposed']
Scale = Literal['none', 'level', 'channel', 'image']
Weights = Literal['mask', 'weights', 'half']


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        shape: (B, C, H, W).
        student: dtype.
        teacher: dtype; codes if int8.
        layouts: of student and teacher.
        scale: whether codes have one step and offset per level, channel, or image and channel.
        weights: bool; or floats.
        channel_weights: None, per channel (1) or per image and channel (2).
    """

    shape: tuple[int, int, int, int] = (2, 3, 5, 7)
    student: torch.dtype = torch.float32
    teacher: torch.dtype = torch.int8
    layouts: tuple[Layout, Layout] = ('contiguous', 'contiguous')
    scale: Scale = 'image'
    weights: Weights = 'mask'
    channel_weights: Literal[0, 1, 2] = 0

    def __str__(self) -> str:
        dtypes = f'{self.student}-{self.teacher}'.replace('torch.', '')
        shape = 'x'.join(map(str, self.shape))
        return f'{shape}-{dtypes}-{"-".join(self.layouts)}-{self.scale}-{self.weights}-{self.channel_weights}'


@dataclass(frozen=True)
class Call:
    """The tensors of a call; `scale` and `channel_weights` are as `WeightedError` has them."""

    student: Tensor
    teacher: Tensor
    weights: Tensor
    scale: Tensor | None
    channel_weights: Tensor | None

    @property
    def full(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """As the operator takes them: a value for each image and channel."""
        batch, channels = self.student.shape[:2]
        scale = None if self.scale is None else self.scale.expand(batch, 2, channels)
        channel_weights = None if self.channel_weights is None else self.channel_weights.expand(batch, channels)
        return self.student, self.teacher, self.weights, scale, channel_weights


def make(case: Case, device: torch.device | None = None) -> Call:
    """The same tensors in every call, on any device."""
    generator = torch.Generator().manual_seed(sum(case.shape))
    batch, channels, height, width = case.shape
    student = torch.randn(case.shape, generator=generator).to(case.student)
    teacher, scale = torch.randn(case.shape, generator=generator).to(case.teacher), None
    if case.teacher == torch.int8:
        teacher = torch.randint(-128, 128, case.shape, generator=generator, dtype=torch.int8)
        shape = {'none': None, 'level': (2, 1), 'channel': (2, channels), 'image': (batch, 2, channels)}[case.scale]
        scale = None if shape is None else 0.01 + 0.02 * torch.rand(shape, generator=generator)
    weights = torch.rand((batch, 1, height, width), generator=generator)
    weights = torch.where(weights < 0.3, 0.0, weights)
    weights.flatten()[:1] = 1.0
    weights = weights.to({'mask': torch.bool, 'weights': torch.float32, 'half': torch.float16}[case.weights])
    channel_weights = None
    if case.channel_weights:
        channel_weights = torch.rand((batch, channels)[-case.channel_weights :], generator=generator)
    student, teacher = (lay_out(one.to(device), how) for one, how in zip((student, teacher), case.layouts, strict=True))
    small = (None if one is None else one.to(device) for one in (scale, channel_weights))
    return Call(student, teacher, weights.to(device), *small)


def lay_out(values: Tensor, layout: Layout) -> Tensor:
    """The same values with other strides; what lies between them is NaN where the dtype has it."""
    is_last = layout.startswith('channels_last')
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    if layout.endswith('apart'):
        around = values.new_full((2 * len(values), *values.shape[1:]), 127).contiguous(memory_format=memory_format)
        return around[::2].copy_(values)
    if is_last:
        return values.contiguous(memory_format=memory_format)
    if layout == 'transposed':
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == 'sliced':
        batch, channels, height, width = values.shape
        around = values.new_full((batch, channels + 2, 2 * height, width + 3), 127)
        if values.is_floating_point():
            around.fill_(torch.nan)
        inner = around[:, 1:-1, ::2, 2:-1]
        return inner.copy_(values)
    return values


def formula(call: Call) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the student, float64 on the CPU, image by image and channel by channel."""
    student, teacher, weights, scale, channel_weights = (
        None if one is None else one.cpu().double() for one in call.full
    )
    assert student is not None
    assert teacher is not None
    assert weights is not None
    batch, channels = student.shape[:2]
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(student)
    denominator = channels * weights.sum() if weights.any() else torch.ones(())
    for image in range(batch):
        counts = weights[image, 0] > 0
        for channel in range(channels):
            step, offset = (1.0, 0.0) if scale is None else scale[image, :, channel].tolist()
            factor = 1.0 if channel_weights is None else channel_weights[image, channel].item()
            error = student[image, channel][counts] - (step * teacher[image, channel][counts] + offset)
            weight = factor * weights[image, 0][counts] / denominator
            loss += (weight * error**2).sum()
            gradient[image, channel][counts] = 2 * weight * error
    return loss, gradient


LAYOUTS: tuple[Layout, ...] = (
    'contiguous', 'channels_last', 'apart', 'channels_last_apart', 'sliced', 'transposed',
)  # fmt: skip
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One cell; a tile that no side fills; a level of one channel; several blocks of channels, of cells; aligned planes.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 13, 21), (2, 37, 9, 15), (1, 3, 33, 35), (2, 16, 4, 8)]

CASES = [
    *(Case(shape) for shape in SHAPES),
    *(Case(shape, torch.float16, torch.float16, ('channels_last', 'contiguous')) for shape in SHAPES),
    *(Case((2, 5, 6, 8), student, teacher) for student, teacher in itertools.product(DTYPES, (torch.int8, *DTYPES))),
    *(Case((2, 9, 5, 15), torch.float16, layouts=pair) for pair in itertools.product(LAYOUTS, LAYOUTS)),
    Case((1, 70, 4, 17), torch.float16, layouts=('channels_last', 'channels_last')),
    Case(scale='none'),
    Case(scale='level'),
    Case(scale='channel', channel_weights=1),
    Case(weights='weights', channel_weights=2),
    Case(weights='half', layouts=('channels_last', 'sliced'), channel_weights=2),
]


def needs_bfloat16(case: Case, device: torch.device) -> None:
    if torch.bfloat16 in (case.student, case.teacher) and device.type == 'cpu':
        pytest.skip('the interpreter has no bfloat16')


def run(call: Call, grad_loss: float = 1.0) -> tuple[Tensor, Tensor]:
    """The loss and the student's gradient."""
    student = call.student.detach().requires_grad_()
    (loss,) = fused_weighted_mse([replace(call, student=student).full])
    (gradient,) = torch.autograd.grad(loss, student, torch.tensor(grad_loss, device=loss.device))
    return loss.detach(), gradient


def assert_gradient(gradient: Tensor, wanted: Tensor) -> None:
    """Equal up to the rounding of its dtype."""
    eps, tiny = torch.finfo(gradient.dtype).eps, torch.finfo(gradient.dtype).smallest_normal * 1e-3
    torch.testing.assert_close(gradient.cpu().double(), wanted, rtol=max(eps, 1e-5), atol=max(tiny, 1e-9))


@pytest.mark.parametrize('case', CASES, ids=str)
def test_against_the_formula(case: Case, device: torch.device) -> None:
    needs_bfloat16(case, device)
    call = make(case, device)
    loss, gradient = run(call)
    wanted_loss, wanted_gradient = formula(call)
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    assert loss.dtype == torch.float32
    assert_gradient(gradient, wanted_gradient)
    assert gradient.dtype == call.student.dtype
    is_last = case.layouts[0].startswith('channels_last')
    assert gradient.is_contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def test_a_gradient_too_small_for_half_precision_is_scaled_before_it_is_rounded(device: torch.device) -> None:
    call = make(Case(student=torch.float16, weights='weights'), device)
    # One cell weighs so much that the share of the others is far below 6e-8, the least half-precision value.
    call.weights.flatten()[0] = 1e8
    _, wanted = formula(call)
    _, flushed = run(call)
    others = call.weights.cpu().expand(call.student.shape) < 2
    assert not flushed.cpu()[others].any()
    _, gradient = run(call, grad_loss=2.0**24)
    assert_gradient(gradient.cpu()[others], (wanted * 2.0**24)[others])


@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_what_stands_in_cells_without_weight_does_not_leak(poison: float, layout: Layout, device: torch.device) -> None:
    clean = make(Case(student=torch.float16, teacher=torch.float16, layouts=(layout, layout)), device)
    loss, gradient = run(clean)
    spoilt = [torch.where(clean.weights, one, poison) for one in (clean.student, clean.teacher)]
    spoilt_loss, spoilt_gradient = run(replace(clean, student=spoilt[0], teacher=spoilt[1]))
    assert torch.equal(spoilt_loss, loss)
    assert torch.equal(spoilt_gradient, gradient)


def test_a_nan_that_counts_shows(device: torch.device) -> None:
    call = make(Case(), device)
    call.student[0, 1, 0, 0] = math.nan
    loss, gradient = run(call)
    assert loss.isnan()
    assert gradient.isnan().nonzero().tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize('grad_loss', [1.0, math.inf])
def test_no_weight_at_all(grad_loss: float, device: torch.device) -> None:
    call = make(Case(), device)
    loss, gradient = run(replace(call, weights=torch.zeros_like(call.weights)), grad_loss)
    assert loss.item() == 0
    assert not gradient.any()


def test_levels_together(device: torch.device) -> None:
    """Each has the bits that it has alone, whatever the others are; some have no gradient."""
    cases = [
        Case((2, 16, 4, 8), torch.float16),
        Case((2, 3, 5, 7), torch.float16, torch.float16, ('channels_last', 'contiguous'), scale='none'),
        Case((1, 70, 9, 15), weights='weights', channel_weights=2),
        Case((3, 1, 13, 21), torch.float16, layouts=('sliced', 'transposed')),
    ]
    calls = [make(case, device) for case in cases]
    alone = [run(call, grad_loss=number + 1.0) for number, call in enumerate(calls)]
    students = [call.student.detach().requires_grad_(number != 2) for number, call in enumerate(calls)]
    losses = fused_weighted_mse([replace(call, student=one).full for call, one in zip(calls, students, strict=True)])
    assert all(torch.equal(loss, wanted) for loss, (wanted, _) in zip(losses, alone, strict=True))
    total = torch.stack([(number + 1.0) * loss for number, loss in enumerate(losses)]).sum()
    del students[2], alone[2]
    gradients = torch.autograd.grad(total, students)
    assert all(torch.equal(one, wanted) for one, (_, wanted) in zip(gradients, alone, strict=True))


def test_a_level_that_is_not_used(device: torch.device) -> None:
    calls = [make(Case(shape), device) for shape in ((2, 3, 5, 7), (2, 16, 4, 8))]
    students = [call.student.detach().requires_grad_() for call in calls]
    losses = fused_weighted_mse([replace(call, student=one).full for call, one in zip(calls, students, strict=True)])
    used, unused = torch.autograd.grad(losses[0], students)
    assert torch.equal(used, run(calls[0])[1])
    assert not unused.any()


def test_no_second_derivative(device: torch.device) -> None:
    call = make(Case(), device)
    student = call.student.detach().requires_grad_()
    (loss,) = fused_weighted_mse([replace(call, student=student).full])
    (gradient,) = torch.autograd.grad(loss.square(), student, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        torch.autograd.backward(gradient.sum())


@pytest.mark.parametrize('teacher', [torch.int8, torch.float16, torch.float32])
def test_against_nothing(teacher: torch.dtype, device: torch.device) -> None:
    """As variances are computed: the student is one 0 for all, and values have a scale too."""
    call = make(Case((2, 5, 6, 7), teacher=teacher), device)
    scale = torch.rand((2, 2, 5), generator=torch.Generator().manual_seed(0)).to(device)
    call = replace(call, student=torch.zeros((), device=device).expand(2, 5, 6, 7), scale=scale)
    wanted, _ = formula(call)
    (loss,) = fused_weighted_mse([call.full])
    torch.testing.assert_close(loss.cpu().double(), wanted, rtol=1e-5, atol=0)


def test_the_gradient_of_one_value_for_all(device: torch.device) -> None:
    call = make(Case((2, 5, 6, 7)), device)
    value = torch.tensor(0.3, device=device, requires_grad=True)
    (loss,) = fused_weighted_mse([replace(call, student=value.expand(2, 5, 6, 7)).full])
    (gradient,) = torch.autograd.grad(loss, value)
    _, wanted = formula(replace(call, student=value.detach().expand(2, 5, 6, 7)))
    torch.testing.assert_close(gradient.cpu().double(), wanted.sum(), rtol=1e-5, atol=0)


def test_images_that_lie_apart(device: torch.device) -> None:
    """As the codes of a stream do, between those of other levels."""
    call = make(Case((3, 4, 5, 7)), device)
    around = torch.full((3, 1000), 99, dtype=torch.int8, device=device)
    teacher = around[:, 120:260].view(call.teacher.shape).copy_(call.teacher)
    assert teacher.stride(0) == 1000
    near, far = run(call), run(replace(call, teacher=teacher))
    assert torch.equal(far[0], near[0])
    assert torch.equal(far[1], near[1])


def test_the_same_bits_in_every_run(device: torch.device) -> None:
    shape = (4, 64, 50, 84) if device.type == 'cuda' else (2, 37, 9, 15)
    call = make(Case(shape, torch.float16, weights='weights'), device)
    loss, gradient = run(call)
    for _ in range(3):
        again = run(call)
        assert torch.equal(again[0], loss)
        assert torch.equal(again[1], gradient)


def test_offsets_beyond_32_bits(device: torch.device) -> None:
    # Three images 2^30 elements apart; on a CPU the memory between them is never touched.
    around = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    call = make(Case((3, 2, 3, 5), torch.float16), device)
    student = around.as_strided((3, 2, 3, 5), (2**30, 15, 5, 1)).copy_(call.student)
    far, near = run(replace(call, student=student)), run(call)
    assert torch.equal(far[0], near[0])
    assert torch.equal(far[1], near[1])
