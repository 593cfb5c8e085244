"""TAR's class and box terms against their formulae, computed RoI by RoI in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.losses.tar_head import BoxGate, ClassGate, box_gate, box_term, class_term

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 1), (7, 3), (64, 20)]


def random_logits(num_rois: int, num_classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rois)
    student, teacher = (3 * torch.randn(num_rois, num_classes + 1, generator=generator) for _ in range(2))
    return student.to(dtype), teacher.to(dtype), torch.randint(0, num_classes + 1, (num_rois,), generator=generator)


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    weights = np.exp(logits.double().numpy() / temperature)
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities


def class_reference(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, gate: ClassGate) -> float:
    total = 0.0
    for s, t, label in zip(student, teacher, labels.tolist(), strict=True):
        if gate == 'none' or softmax(t)[label] > softmax(s)[label]:
            p, q = softmax(t, temperature), softmax(s, temperature)
            total += sum(p[c] * math.log(p[c] / q[c]) for c in range(len(p)))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize('gate', ['better', 'none'])
@pytest.mark.parametrize('temperature', [1.0, 3.0])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', SIZES)
def test_class_term(size: tuple[int, int], dtype: torch.dtype, temperature: float, gate: ClassGate) -> None:
    logits = random_logits(*size, dtype)
    loss = class_term(*logits, temperature=temperature, gate=gate)
    want = class_reference(*logits, temperature, gate)
    # Logits are rounded before both, so half precision must cost nothing.
    assert loss.item() == pytest.approx(want, rel=1e-12 if dtype == torch.float64 else 1e-5, abs=1e-12)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_class_term_takes_log_probabilities() -> None:
    student, teacher, labels = random_logits(7, 3)
    want = class_term(student, teacher, labels, temperature=2).item()
    assert class_term(student, teacher.log_softmax(1), labels, temperature=2).item() == pytest.approx(want, rel=1e-5)


def test_a_closed_gate_gives_no_gradient() -> None:
    student, teacher, labels = random_logits(30, 4, torch.float64)
    student.requires_grad_()
    teacher.requires_grad_()
    torch.autograd.backward(class_term(student, teacher, labels))
    assert student.grad is not None
    assert teacher.grad is None
    rows = torch.arange(30)
    better = (teacher.softmax(1) > student.softmax(1))[rows, labels]
    assert 0 < better.sum() < 30
    assert torch.equal(student.grad.abs().sum(1) > 0, better)


def test_class_term_gradcheck() -> None:
    student, teacher, labels = random_logits(9, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda one: class_term(one, teacher, labels, temperature=2), student.requires_grad_()
    )


def test_without_rois() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    deltas = torch.zeros(0, 4, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    loss = class_term(student, torch.zeros(0, 5), empty) + box_term(deltas, torch.zeros(0, 4), empty.bool())
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert student.grad is not None
    assert deltas.grad is not None


def test_impossible_probabilities_give_no_nan() -> None:
    """A teacher that is sure beyond float32, a student that is sure of the opposite."""
    student = torch.tensor([[-3e4, 3e4]], requires_grad=True)
    teacher = torch.tensor([[3e4, -3e4]])
    loss = class_term(student, teacher, torch.tensor([0]))
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(6e4)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('owner', [0, 1])
def test_a_nan_shows(owner: int) -> None:
    logits = random_logits(7, 3)
    logits[owner][2, 1] = math.nan
    assert class_term(*logits).isnan()


def test_shapes_that_would_broadcast_are_refused() -> None:
    student, teacher, labels = random_logits(7, 3)
    with pytest.raises(InputError, match='do not fit'):
        class_term(student, teacher[:1], labels)
    with pytest.raises(InputError, match='do not fit'):
        class_term(student, teacher, labels[:1])
    with pytest.raises(InputError, match='do not fit'):
        box_term(student, teacher[:, :1], labels.bool())


def random_boxes(num_boxes: int, generator: torch.Generator) -> Tensor:
    corners = 50 * torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64)
    sizes = 10 + 50 * torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corners, corners + sizes], dim=1)


def moved(box: list[float], raw: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + raw[0] * width, (y1 + y2) / 2 + raw[1] * height
    width, height = width * math.exp(raw[2]), height * math.exp(raw[3])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def overlap(one: list[float], other: list[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize('gate', ['proposal', 'student', 'none'])
def test_box_gate_and_term(gate: BoxGate) -> None:
    generator = torch.Generator().manual_seed(5)
    proposals, objects = random_boxes(40, generator), random_boxes(40, generator)
    objects[::2] = proposals[::2] + 3
    student, teacher = (0.2 * torch.randn(40, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    positive = torch.rand(40, generator=generator) < 0.7
    found = box_gate(gate, proposals=proposals, teacher=teacher, student=student, objects=objects, positive=positive)
    wanted, total = [], 0.0
    for proposal, object_, s, t, is_positive in zip(
        *(one.tolist() for one in (proposals, objects, student, teacher, positive)), strict=True
    ):
        rival = {'proposal': proposal, 'student': moved(proposal, s), 'none': None}[gate]
        is_open = is_positive and (rival is None or overlap(moved(proposal, t), object_) > overlap(rival, object_))
        wanted.append(is_open)
        total += sum(abs(a - b) for a, b in zip(s, t, strict=True)) if is_open else 0.0
    assert found.tolist() == wanted
    assert 0 < sum(wanted) < 40
    assert box_term(student, teacher, found).item() == pytest.approx(total / sum(wanted), rel=1e-12)


@pytest.mark.parametrize('dtype', DTYPES)
def test_box_term_in_every_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(20, 4, generator=generator).to(dtype) for _ in range(2))
    is_open = torch.arange(20) % 3 == 0
    want = (student.double() - teacher.double())[is_open].abs().sum().item() / 7
    loss = box_term(student, teacher, is_open)
    assert loss.item() == pytest.approx(want, rel=1e-12 if dtype == torch.float64 else 1e-5)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_box_term_gradcheck() -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    is_open = torch.tensor([True, False, True, True, False, False])
    assert torch.autograd.gradcheck(lambda one: box_term(one, teacher, is_open), student.requires_grad_())


@pytest.mark.parametrize('poison', [math.nan, math.inf])
def test_nothing_open_gives_zero_with_zero_gradient(poison: float) -> None:
    student = torch.full((3, 4), poison, requires_grad=True)
    loss = box_term(student, torch.ones(3, 4), torch.zeros(3, dtype=torch.bool))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(3, 4))


def test_a_nan_of_the_student_opens_its_gate() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    nan = torch.full((1, 4), math.nan)
    zeros = torch.zeros(1, 4)
    positive = torch.tensor([True])
    found = box_gate('student', proposals=box, teacher=zeros, student=nan, objects=box + 1, positive=positive)
    assert found.item()
