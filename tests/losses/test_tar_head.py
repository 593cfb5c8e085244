"""TAR's losses of a batch: matching, class slices, units of deltas, weights and decay."""

import pytest
import torch

from mtpd.errors import InputError
from mtpd.heads.roi_head import RoiPredictions
from mtpd.heads.rois import BoxCoder, ImageRois, class_slice
from mtpd.losses.options import NO_DECAY
from mtpd.losses.tar_head import (
    LabelledBoxes,
    TarHeadOptions,
    answers_of_cache,
    answers_of_head,
    box_term,
    class_term,
    decay_factors,
    match_rois,
    tar_head_losses,
)

CODER = BoxCoder((0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.2, 0.2))
OTHER = BoxCoder((0.1, 0.0, -0.1, 0.0), (0.05, 0.2, 0.2, 0.4))
NUM_CLASSES = 3


def objects() -> list[LabelledBoxes]:
    """Three images, the second one without objects."""
    first = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 60.0, 50.0]])
    third = torch.tensor([[5.0, 5.0, 15.0, 25.0]])
    return [
        LabelledBoxes(first, torch.tensor([2, 0])),
        LabelledBoxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
        LabelledBoxes(third, torch.tensor([1])),
    ]


def rois() -> torch.Tensor:
    return torch.tensor(
        [
            [0, 1.0, 1.0, 21.0, 21.0],  # the first object
            [0, 0.0, 0.0, 5.0, 5.0],  # too little of it
            [0, 30.0, 30.0, 60.0, 45.0],
            [1, 0.0, 0.0, 20.0, 20.0],  # where another image has one
            [2, 5.0, 5.0, 15.0, 25.0],
            [2, 5.0, 5.0, 15.0, 15.0],  # IoU of just a half
        ]
    )


def predictions(seed: int, *, class_agnostic: bool) -> RoiPredictions:
    generator = torch.Generator().manual_seed(seed)
    num_outputs = 4 if class_agnostic else 4 * NUM_CLASSES
    return RoiPredictions(
        torch.randn(6, NUM_CLASSES + 1, generator=generator), torch.randn(6, num_outputs, generator=generator)
    )


def test_matching() -> None:
    matches = match_rois(rois(), objects(), num_classes=NUM_CLASSES, positive_iou=0.5)
    assert matches.labels.tolist() == [2, 3, 0, 3, 1, 1]
    assert matches.positive.tolist() == [True, False, True, False, True, True]
    assert matches.boxes[[0, 2, 4]].tolist() == [[0, 0, 20, 20], [30, 30, 60, 50], [5, 5, 15, 25]]
    assert not matches.boxes[[1, 3]].any()
    assert not match_rois(rois(), objects(), num_classes=3, positive_iou=0.51).positive[5]


def test_matching_without_rois() -> None:
    matches = match_rois(torch.zeros(0, 5), objects(), num_classes=NUM_CLASSES, positive_iou=0.5)
    assert [len(one) for one in matches] == [0, 0, 0]


@pytest.mark.parametrize('agnostic', [(False, False), (False, True), (True, False), (True, True)])
def test_losses_of_a_batch(agnostic: tuple[bool, bool]) -> None:
    term = TarHeadOptions(class_weight=2.0, box_weight=3.0, temperature=2.0, box_gate='none', class_gate='none')
    matches = match_rois(rois(), objects(), num_classes=NUM_CLASSES, positive_iou=0.5)
    student, teacher = (predictions(seed, class_agnostic=one) for seed, one in enumerate(agnostic))
    losses = tar_head_losses(
        term,
        rois=rois(),
        matches=matches,
        student=student,
        teacher=answers_of_head(teacher, matches, coder=OTHER),
        coder=CODER,
        progress=0.25,
    )
    assert list(losses) == ['distill/tar_head/class', 'distill/tar_head/box']
    want = 0.75 * 2 * class_term(student.logits, teacher.logits, matches.labels, temperature=2, gate='none')
    torch.testing.assert_close(losses['distill/tar_head/class'], want)
    # In the student's units, wherever the teacher measures in others.
    ours = class_slice(student.deltas, matches.labels)
    theirs = class_slice(teacher.deltas, matches.labels) * torch.tensor(OTHER.stds) + torch.tensor(OTHER.means)
    want = 0.75 * 3 * box_term(ours, theirs / torch.tensor(CODER.stds), matches.positive)
    torch.testing.assert_close(losses['distill/tar_head/box'], want)


def test_boxes_are_gated_by_the_proposal() -> None:
    """The default: a teacher that moves no box is no better than the proposal."""
    matches = match_rois(rois(), objects(), num_classes=NUM_CLASSES, positive_iou=0.5)
    student = predictions(0, class_agnostic=False)
    teacher = RoiPredictions(student.logits, torch.zeros(6, 4))
    answers = answers_of_head(teacher, matches, coder=CODER)
    found = tar_head_losses(
        TarHeadOptions(), rois=rois(), matches=matches, student=student, teacher=answers, coder=CODER
    )
    assert found['distill/tar_head/box'].item() == 0
    assert found['distill/tar_head/class'].item() == 0
    # One that grows the third RoI towards its object is.
    answers.raw[2] = torch.tensor([0.0, 0.1, 0.0, 0.2])
    found = tar_head_losses(
        TarHeadOptions(), rois=rois(), matches=matches, student=student, teacher=answers, coder=CODER
    )
    want = (student.deltas[2, :4] - torch.tensor([0.0, 1.0, 0.0, 1.0])).abs().sum().item()
    assert found['distill/tar_head/box'].item() == pytest.approx(want, rel=1e-5)


def test_stored_deltas_are_of_use_where_their_class_is_the_true_one() -> None:
    matches = match_rois(rois(), objects(), num_classes=NUM_CLASSES, positive_iou=0.5)
    student = predictions(0, class_agnostic=False)
    probabilities = torch.tensor([[0.1, 0.2, 0.7, 0.0]]).repeat(6, 1)
    raw = torch.arange(24.0).view(6, 4) / 100
    answers = answers_of_cache(ImageRois(rois()[:, 1:], probabilities, torch.full((6,), 2), raw), matches)
    term = TarHeadOptions(box_gate='none', class_gate='none')
    losses = tar_head_losses(term, rois=rois(), matches=matches, student=student, teacher=answers, coder=CODER)
    # Of four positive RoIs only the first is of class 2.
    want = (student.deltas[0, 8:] - raw[0] / torch.tensor(CODER.stds)).abs().sum()
    torch.testing.assert_close(losses['distill/tar_head/box'], want)
    p, q = probabilities.double(), student.logits.double().log_softmax(1)
    divergence = (torch.special.xlogy(p, p) - p * q).sum().item() / 6
    assert losses['distill/tar_head/class'].item() == pytest.approx(divergence, rel=1e-4)


def test_other_numbers_of_classes_are_refused() -> None:
    matches = match_rois(rois(), objects(), num_classes=NUM_CLASSES, positive_iou=0.5)
    student = predictions(0, class_agnostic=True)
    teacher = RoiPredictions(torch.zeros(6, 9), torch.zeros(6, 4))
    answers = answers_of_head(teacher, matches, coder=CODER)
    with pytest.raises(InputError, match='same classes'):
        tar_head_losses(TarHeadOptions(), rois=rois(), matches=matches, student=student, teacher=answers, coder=CODER)


def test_decay() -> None:
    assert decay_factors(TarHeadOptions(), progress=0.25) == {
        'distill/tar_head/class': 0.75,
        'distill/tar_head/box': 0.75,
    }
    assert decay_factors(TarHeadOptions(decay=NO_DECAY), progress=0.25) == {}
