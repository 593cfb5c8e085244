"""What all losses on maps have in common, through the distiller; every loss of the table `MapLoss` is tested."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.losses import MapLoss
from mtpd.losses.distiller import Distiller
from mtpd.losses.fine_grained import FineGrainedOptions
from mtpd.losses.maps import valid_cells
from mtpd.losses.mgd import MgdOptions
from mtpd.losses.options import LevelOptions
from mtpd.losses.tar_feature import TarFeatureOptions

STUDENT = [Level('p3', 8, 4), Level('p4', 16, 4)]
TEACHER = [Level('p3', 8, 6), Level('p4', 16, 4)]
ANCHORS = {8: torch.tensor([[-16.0, -16, 16, 16], [-23, -11, 23, 11]]), 16: torch.tensor([[-32.0, -32, 32, 32]])}
# MGD hides nothing: what it draws depends on the shape of the batch.
TERMS: list[LevelOptions] = [
    *(MgdOptions(mask_ratio=0.0) if options is MgdOptions else options() for options in get_args(MapLoss)),
    FineGrainedOptions(reference='pyramid'),
]
Maps = dict[str, Tensor]

by_loss = pytest.mark.parametrize('term', TERMS, ids=[f'{term.loss}-{number}' for number, term in enumerate(TERMS)])
OF_OBJECTS = [term for term in TERMS if term.looks_at_objects]
of_objects = pytest.mark.parametrize(
    'term', OF_OBJECTS, ids=[f'{one.loss}-{number}' for number, one in enumerate(OF_OBJECTS)]
)


def random_case(dtype: torch.dtype = torch.float32) -> tuple[Maps, Maps, Maps, list[Tensor]]:
    """Maps of two levels for an input of 48x80 px, of which the second image fills a part; it has no object."""
    generator = torch.Generator().manual_seed(0)

    def draw(levels: list[Level]) -> Maps:
        return {
            level.name: torch.randn(2, level.channels, *level.grid(48, 80), generator=generator).to(dtype)
            for level in levels
        }

    masks = {
        level.name: valid_cells([(48, 80), (24, 26)], stride=level.stride, grid=level.grid(48, 80)) for level in STUDENT
    }
    return draw(STUDENT), draw(TEACHER), masks, [torch.tensor([[3.0, 5, 40, 33], [20, 10, 71, 47]]), torch.zeros(0, 4)]


def channel_variance(values: Tensor, mask: Tensor) -> float:
    channels = [values.double()[:, channel][mask[:, 0]] for channel in range(values.shape[1])]
    return sum(channel.var(correction=0).item() for channel in channels) / len(channels)


def build(term: LevelOptions) -> Distiller:
    torch.manual_seed(1)
    return Distiller([term], student=STUDENT, teacher=TEACHER, anchors=ANCHORS)


def total(losses: Maps) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@by_loss
def test_a_keyword_that_no_loss_takes_is_refused(term: LevelOptions) -> None:
    """A misspelled `generator` would draw from torch's global one, with no other sign of it."""
    student, teacher, masks, _ = random_case()
    with pytest.raises(TypeError, match='generater'):
        next(iter(build(term).losses.values()))(
            student['p3'], EncodedMaps(teacher['p3']), masks['p3'], generater=torch.Generator()
        )


def test_tar_feature_is_a_mean_by_its_mask_and_a_share_of_the_variance() -> None:
    student, teacher, masks, boxes = random_case()
    (got,) = build(TarFeatureOptions(levels=('p4',), adapter='auto'))(student, teacher, masks, boxes=boxes).values()
    squares, weights = 0.0, 0.0
    for image, row, column in masks['p4'][:, 0].nonzero().tolist():
        x, y, weight = 16 * column + 8, 16 * row + 8, 0.0
        for x1, y1, x2, y2 in boxes[image].tolist():
            if x1 <= x <= x2 and y1 <= y <= y2:
                along = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2
                weight = max(weight, math.exp(-along))  # two half widths are the width
        error = student['p4'][image, :, row, column] - teacher['p4'][image, :, row, column]
        squares += weight * error.square().mean().item()
        weights += weight
    assert got.item() == pytest.approx(squares / weights / channel_variance(teacher['p4'], masks['p4']), rel=1e-5)


@pytest.mark.parametrize('term', [TarFeatureOptions(), FineGrainedOptions()], ids=['tar_feature', 'fine_grained'])
def test_squared_errors_are_shares_of_the_variance_when_asked(term: FineGrainedOptions | TarFeatureOptions) -> None:
    student, teacher, masks, boxes = random_case()
    share, error = (
        build(term.model_copy(update={'levels': ('p4',), 'scale': scale}))(student, teacher, masks, boxes=boxes)[
            f'distill/{term.loss}/p4'
        ].item()
        for scale in ('teacher_std', 'none')
    )
    assert error > 0
    assert share == pytest.approx(error / channel_variance(teacher['p4'], masks['p4']), rel=1e-5)


@by_loss
def test_padding_does_not_leak(term: LevelOptions) -> None:
    student, teacher, masks, boxes = random_case()
    distiller = build(term)
    want = distiller(student, teacher, masks, boxes=boxes)
    for poison in (math.nan, math.inf, -math.inf, 1e4):
        spoiled = [
            {name: torch.where(masks[name], values, poison) for name, values in maps.items()}
            for maps in (student, teacher)
        ]
        for values in spoiled[0].values():
            values.requires_grad_()
        distiller.zero_grad()
        got = distiller(*spoiled, masks, boxes=boxes)
        assert all(torch.equal(got[name], loss) for name, loss in want.items())
        torch.autograd.backward(total(got))
        for name, values in spoiled[0].items():
            assert values.grad is not None
            assert values.grad.isfinite().all()
            assert values.grad.any()
            assert not values.grad[~masks[name].expand_as(values)].any()
        assert all(
            parameter.grad is not None and parameter.grad.isfinite().all() for parameter in distiller.parameters()
        )


@by_loss
def test_padding_of_the_batch_changes_nothing(term: LevelOptions) -> None:
    student, teacher, masks, boxes = random_case()
    distiller = build(term)
    want = distiller(student, teacher, masks, boxes=boxes)
    wider = [
        {name: pad(values, (0, 6, 0, 4), value=value) for name, values in maps.items()}
        for maps, value in ((student, 3.0), (teacher, -2.0), (masks, 0))
    ]
    torch.testing.assert_close(distiller(*wider, boxes=boxes), want)


@by_loss
def test_no_objects_and_no_valid_cells(term: LevelOptions) -> None:
    student, teacher, masks, boxes = random_case()
    distiller = build(term)
    nothing = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    # Boxes without width, without height, turned inside out, and outside of the image, where only padding is.
    odd = torch.tensor([[9.0, 9, 9, 30], [9, 9, 30, 9], [30, 30, 9, 9], [60, 40, 78, 47]])
    for given, valid in (([torch.zeros(0, 4)] * 2, masks), ([odd[:3], odd], masks), (boxes, nothing)):
        for values in student.values():
            values.grad = None
            values.requires_grad_()
        losses = distiller(student, teacher, valid, boxes=given)
        assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
        torch.autograd.backward(total(losses))
        assert all(values.grad is not None and values.grad.isfinite().all() for values in student.values())
        if valid is nothing:
            assert total(losses) == 0
            assert not any(values.grad.any() for values in student.values() if values.grad is not None)


@by_loss
def test_the_same_images_twice_cost_the_same(term: LevelOptions) -> None:
    student, teacher, masks, boxes = random_case()
    distiller = build(term)
    want = distiller(student, teacher, masks, boxes=boxes)
    twice = [{name: torch.cat([values, values]) for name, values in maps.items()} for maps in (student, teacher, masks)]
    torch.testing.assert_close(distiller(*twice, boxes=boxes + boxes), want)


@by_loss
def test_half_precision_under_autocast(term: LevelOptions) -> None:
    student, teacher, masks, boxes = random_case()
    distiller = build(term)
    want = distiller(student, teacher, masks, boxes=boxes)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = {name: values.bfloat16() for name, values in student.items()}
        got = distiller(half, teacher, masks, boxes=boxes)
    for name, loss in got.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(want[name].item(), rel=0.03)


@of_objects
def test_the_boxes_matter_and_must_be_there(term: LevelOptions) -> None:
    student, teacher, masks, boxes = random_case()
    distiller = build(term)
    want = distiller(student, teacher, masks, boxes=boxes)
    moved = distiller(student, teacher, masks, boxes=[boxes[0] + 7, boxes[1]])
    assert all(loss.item() != pytest.approx(want[name].item(), rel=1e-5) for name, loss in moved.items())
    for missing in (None, boxes[:1]):
        with pytest.raises(InputError, match=f'{term.loss}/p3 needs the boxes of the objects'):
            distiller(student, teacher, masks, boxes=missing)
