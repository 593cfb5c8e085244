"""Pairs of levels of other strides, through the distiller; and that no loss makes the host wait."""

import dataclasses
import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import interpolate

from mtpd.geometry import Level
from mtpd.losses.cwd import CwdOptions
from mtpd.losses.distiller import Distiller
from mtpd.losses.fgd import FgdOptions
from mtpd.losses.fine_grained import FineGrainedOptions
from mtpd.losses.maps import valid_cells
from mtpd.losses.masked_mse import MaskedMseOptions
from mtpd.losses.mgd import MgdOptions
from mtpd.losses.options import LevelOptions
from mtpd.losses.pkd import PkdOptions
from mtpd.losses.tar_feature import TarFeatureOptions

STUDENT = [Level('p3', 8, 4), Level('p4', 16, 4), Level('p5', 32, 4)]
TEACHER = [Level('p2', 4, 6), Level('p3', 8, 6), Level('p4', 16, 4)]
Maps = dict[str, Tensor]


def random_maps(*, height: int = 48, width: int = 80) -> tuple[Maps, Maps]:
    generator = torch.Generator().manual_seed(0)

    def draw(levels: list[Level]) -> Maps:
        grids = {level.name: level.grid(height, width) for level in levels}
        return {level.name: torch.randn(2, level.channels, *grids[level.name], generator=generator) for level in levels}

    return draw(STUDENT), draw(TEACHER)


def all_masks(sizes: list[tuple[int, int]], *, height: int = 48, width: int = 80) -> Maps:
    levels = {level.name: level for level in (*STUDENT, *TEACHER)}.values()
    return {level.name: valid_cells(sizes, stride=level.stride, grid=level.grid(height, width)) for level in levels}


EVERY: list[LevelOptions] = [
    MaskedMseOptions(),
    MgdOptions(mask_ratio=0.0),
    PkdOptions(),
    CwdOptions(),
    TarFeatureOptions(),
    FineGrainedOptions(),
    FgdOptions(),
]


@pytest.mark.parametrize('resize', ['student', 'teacher'])
@pytest.mark.parametrize('term', EVERY, ids=[term.loss for term in EVERY])
def test_a_resized_level_without_padding(term: LevelOptions, resize: Literal['student', 'teacher']) -> None:
    """The loss is that of a level of the target's stride, of which torch's interpolation made the map."""
    student, teacher = random_maps(height=64, width=96)
    masks, boxes = all_masks([(64, 96)] * 2, height=64, width=96), [torch.tensor([[3.0, 5, 60, 53]])] * 2
    anchors = {stride: torch.tensor([[-2.0, -2, 2, 2]]) * stride for stride in (8, 16, 32)}
    asked = term.model_copy(update={'levels': ('p4',), 'teacher_levels': ('p3',), 'resize': resize})
    torch.manual_seed(5)
    distiller = Distiller([asked], student=STUDENT, teacher=TEACHER, anchors=anchors)
    assert distiller.teacher_levels == (TEACHER[1],)
    got = distiller(student, teacher, masks, boxes=boxes, generator=torch.Generator().manual_seed(1))
    assert list(got) == [f'distill/{term.loss}/p4-p3']

    one, other = student['p4'], teacher['p3']
    target = Level('p3', 8, 4) if resize == 'student' else Level('p4', 16, 4)
    if resize == 'student':
        one = interpolate(one, size=other.shape[2:], mode='bilinear', align_corners=False)
        # The anchors stay those of the student's level: at twice the stride, and on every other cell.
        if isinstance(term, FineGrainedOptions):
            return
    else:
        other = interpolate(other, size=one.shape[2:], mode='bilinear', align_corners=False)
    torch.manual_seed(5)
    levels = {'student': [target], 'teacher': [dataclasses.replace(target, channels=6)]}
    plain = Distiller([term], **levels, anchors=anchors)
    maps = {target.name: one}, {target.name: other}, masks
    (want,) = plain(*maps, boxes=boxes, generator=torch.Generator().manual_seed(1)).values()
    assert got[f'distill/{term.loss}/p4-p3'].item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize(('sides', 'resize'), [(('p5', 'p2'), 'teacher'), (('p2', 'p5'), 'student')])
def test_cells_that_nothing_was_interpolated_for_do_not_count(
    sides: tuple[str, str], resize: Literal['student', 'teacher']
) -> None:
    """Of the second cell at stride 32 the image shows one column of pixels: too little for its centre at stride 4."""
    levels = {'p2': Level('p2', 4, 1), 'p5': Level('p5', 32, 1)}
    one, other = ([levels[name]] for name in sides)
    term = MaskedMseOptions(levels=sides[:1], teacher_levels=sides[1:], resize=resize, scale='none')
    masks = {
        name: valid_cells([(32, 33)], stride=level.stride, grid=level.grid(32, 64)) for name, level in levels.items()
    }
    maps = {name: torch.full((1, 1, *level.grid(32, 64)), 2.0) for name, level in levels.items()}
    maps['p5'][..., 1] = 7
    losses = Distiller([term], student=one, teacher=other)(maps, maps, masks)
    assert [loss.item() for loss in losses.values()] == [0]


@pytest.mark.parametrize('resize', ['student', 'teacher'])
@pytest.mark.parametrize('term', EVERY, ids=[term.loss for term in EVERY])
def test_padding_does_not_bleed_in_through_a_resize(term: LevelOptions, resize: Literal['student', 'teacher']) -> None:
    """Several pairs at once: a coarser and a finer student, and one of the teacher's own stride."""
    student, teacher = random_maps()
    masks = all_masks([(48, 80), (21, 37)])
    boxes = [torch.tensor([[3.0, 5, 40, 33]]), torch.tensor([[2.0, 2, 30, 19]])]
    pairs = {'levels': ('p3', 'p4', 'p5'), 'teacher_levels': ('p2', 'p4', 'p4')}
    asked = term.model_copy(update={'resize': resize, **pairs})
    anchors = {stride: torch.tensor([[-2.0, -2, 2, 2]]) * stride for stride in (8, 16, 32)}
    distiller = Distiller([asked], student=STUDENT, teacher=TEACHER, anchors=anchors)
    assert distiller.teacher_levels == (TEACHER[0], TEACHER[2])
    want = distiller(student, teacher, masks, boxes=boxes)
    assert [name.split('/')[2] for name in want] == ['p3-p2', 'p4', 'p5-p4']
    assert all(loss > 0 for loss in want.values())
    spoiled = [
        {name: torch.where(masks[name], values, math.nan) for name, values in maps.items()}
        for maps in (student, teacher)
    ]
    for values in spoiled[0].values():
        values.requires_grad_()
    got = distiller(*spoiled, masks, boxes=boxes)
    assert all(torch.equal(got[name], loss) for name, loss in want.items())
    torch.autograd.backward(torch.stack(list(got.values())).sum())
    assert all(values.grad is not None and values.grad.isfinite().all() for values in spoiled[0].values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in distiller.parameters())


@pytest.mark.parametrize('term', EVERY, ids=[term.loss for term in EVERY])
def test_no_loss_makes_the_host_wait_for_the_device(term: LevelOptions) -> None:
    """Fake tensors have no values: reading one, or a shape that depends on one, raises."""
    anchors = {stride: torch.tensor([[-2.0, -2, 2, 2]]) * stride for stride in (8, 16, 32)}
    asked = term.model_copy(update={'levels': ('p3', 'p4'), 'teacher_levels': ('p2', 'p4'), 'resize': 'student'})
    with FakeTensorMode(allow_non_fake_inputs=True):
        distiller = Distiller([asked], student=STUDENT, teacher=TEACHER, anchors=anchors)
        student, teacher = random_maps()
        masks = all_masks([(48, 80), (21, 37)])
        with pytest.raises(DataDependentOutputException):
            masks['p3'].sum().item()
        losses = distiller(student, teacher, masks, boxes=[torch.rand(3, 4), torch.zeros(0, 4)])
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert len(losses) == 2
