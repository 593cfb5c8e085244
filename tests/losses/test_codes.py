"""Every loss on stored codes, of every form that a cache gives, against the same loss in float64 on decoded values.

Losses agree to 1e-5 of themselves and gradients to 1e-5 of the largest of all: the rounding of float32, in which a
rotation is a sum over channels, whichever side is rotated. In half precision (autocast) they agree to 1% and 5% with
float32, whether codes or values are given.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.geometry import Level
from mtpd.kernels.weighted_mse import weighted_mses
from mtpd.losses.cwd import CwdOptions
from mtpd.losses.distiller import Distiller
from mtpd.losses.fgd import FgdOptions
from mtpd.losses.fine_grained import FineGrainedOptions
from mtpd.losses.maps import valid_cells
from mtpd.losses.masked_mse import MaskedMseOptions, squared_error
from mtpd.losses.mgd import MgdOptions
from mtpd.losses.options import LevelOptions
from mtpd.losses.pkd import PkdOptions
from mtpd.losses.tar_feature import TarFeatureOptions

Shape = tuple[int, int, int, int]
Coded = Callable[[Shape], EncodedMaps]
Exact = Callable[[EncodedMaps], Tensor]
Spoil = Callable[[EncodedMaps, Tensor], EncodedMaps]
Results = tuple[Tensor, list[Tensor]]

STRIDE, CHANNELS = 8, 5
ANCHORS = {STRIDE: torch.tensor([[-8.0, -8, 16, 16]])}
SIZES, GRID = [(40, 56), (21, 37)], (5, 7)
BOXES = [torch.tensor([[3.0, 5, 40, 33]]), torch.tensor([[2.0, 2, 30, 19], [9, 1, 20, 8]])]
MGD = MgdOptions(mask_ratio=0.3, scale='teacher_std')
SQUARES: list[LevelOptions] = [MaskedMseOptions(), MGD, TarFeatureOptions(), FineGrainedOptions()]
TERMS: list[LevelOptions] = [*SQUARES, PkdOptions(), CwdOptions(), FgdOptions()]


def build(term: LevelOptions, student_channels: int) -> Distiller:
    """With layers that are no identity."""
    torch.manual_seed(3)
    levels = Level('p3', STRIDE, student_channels), Level('p3', STRIDE, CHANNELS)
    distiller = Distiller([term], student=levels[:1], teacher=levels[1:], anchors=ANCHORS)
    for parameter in distiller.parameters():
        nn.init.normal_(parameter, std=0.5)
    return distiller


def run(distiller: Distiller, student: Tensor, teacher: EncodedMaps | Tensor, mask: Tensor) -> Results:
    """The loss, and the gradients of the student and of all layers."""
    student = student.detach().requires_grad_()
    maps: tuple[Mapping[str, Tensor], Mapping[str, EncodedMaps | Tensor]] = {'p3': student}, {'p3': teacher}
    generator = torch.Generator().manual_seed(7)
    (loss,) = distiller(*maps, {'p3': mask}, boxes=BOXES[: len(mask)], generator=generator).values()
    leaves = [student, *distiller.parameters()]
    return loss.detach(), list(torch.autograd.grad(loss, leaves, materialize_grads=True))


def require_equal(found: Results, wanted: Results, *, loss: float = 1e-5, gradient: float = 1e-5) -> None:
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=loss)
    largest = max(one.abs().max().item() for one in wanted[1])
    for one, other in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=gradient * largest)


def some_student(channels: int, grid: tuple[int, int] = GRID) -> tuple[Tensor, Tensor]:
    student = torch.randn((2, channels, *grid), generator=torch.Generator().manual_seed(2))
    return student, valid_cells(SIZES, stride=STRIDE, grid=grid)


@pytest.mark.parametrize('term', TERMS, ids=lambda term: term.loss)
def test_against_decoded_values_in_float64(term: LevelOptions, coded: Coded, exact: Exact, with_garbage: Spoil) -> None:
    teacher = coded((2, CHANNELS, *GRID))
    for student_channels in (CHANNELS, 3):  # the second needs an adapter
        distiller = build(term, student_channels)
        student, mask = some_student(student_channels)
        wanted = run(copy.deepcopy(distiller).double(), student.double(), exact(teacher), mask)
        assert wanted[0].dtype == torch.float64
        found = run(distiller, student, teacher, mask)
        require_equal(found, wanted)
        # What stands outside of the images changes no bit.
        spoiled = run(distiller, torch.where(mask, student, torch.nan), with_garbage(teacher, mask), mask)
        assert torch.equal(spoiled[0], found[0])
        assert all(torch.equal(*pair) for pair in zip(spoiled[1], found[1], strict=True))


def test_maps_beside_which_the_batch_is_padded(coded: Coded, exact: Exact) -> None:
    student, mask = some_student(3, (6, 9))
    teacher = replace(coded((2, CHANNELS, 6, 9)), sizes=[(5, 7), (4, 6)])
    for term in TERMS:
        distiller = build(term, 3)
        wanted = run(copy.deepcopy(distiller).double(), student.double(), exact(teacher), mask)
        require_equal(run(distiller, student, teacher, mask), wanted)


@pytest.mark.parametrize('term', SQUARES, ids=lambda term: term.loss)
def test_in_half_precision(term: LevelOptions, coded: Coded, exact: Exact) -> None:
    teacher = coded((2, CHANNELS, *GRID))
    for student_channels in (CHANNELS, 3):
        distiller = build(term, student_channels)
        student, mask = some_student(student_channels)
        wanted = run(distiller, student.bfloat16().float(), teacher, mask)
        for given in (teacher, exact(teacher).float()):
            with torch.autocast('cpu', torch.bfloat16):
                found = run(distiller, student.bfloat16(), given, mask)
            assert found[0].dtype == torch.float32
            assert found[1][0].dtype == torch.bfloat16
            require_equal(found, wanted, loss=1e-2, gradient=5e-2)


def test_without_any_cell(coded: Coded) -> None:
    for term, grid in product(SQUARES, (GRID, (1, 1))):
        student, nothing = torch.randn(2, 3, *grid), torch.zeros(2, 1, *grid, dtype=torch.bool)
        loss, gradients = run(build(term, 3), student, coded((2, CHANNELS, *grid)), nothing)
        assert loss.item() == 0, term.loss
        assert not any(gradient.any() for gradient in gradients), term.loss


def test_an_empty_batch(coded: Coded) -> None:
    nothing = torch.zeros(0, 1, *GRID, dtype=torch.bool)
    loss, _ = run(build(MaskedMseOptions(), 3), torch.randn(0, 3, *GRID), coded((0, CHANNELS, *GRID)), nothing)
    assert loss.item() == 0


@pytest.mark.parametrize('student_channels', [CHANNELS, 3], ids=['equal channels', 'adapter'])
def test_torch_compile_sees_one_graph(student_channels: int, coded: Coded) -> None:
    layer = None if student_channels == CHANNELS else nn.Conv2d(3, CHANNELS, 1)
    student, mask = some_student(student_channels)
    teacher = coded((2, CHANNELS, *GRID))

    def loss(student: Tensor, codes: Tensor) -> Tensor:
        maps = EncodedMaps(codes, teacher.scale, teacher.basis)
        return weighted_mses([squared_error(student, maps, mask, layer=layer)])[0]

    torch.compiler.reset()
    compiled = torch.compile(loss, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher.codes), loss(student, teacher.codes))


def test_squares_decode_nothing(coded: Coded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: EncodedMaps) -> Tensor:
        raise AssertionError(f'{self.codes.dtype} codes were decoded')

    monkeypatch.setattr(EncodedMaps, 'values', refused)
    student, mask = some_student(3)
    for term in SQUARES:
        run(build(term, 3), student, coded((2, CHANNELS, *GRID)), mask)
