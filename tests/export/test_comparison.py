"""Which differences of an exported file are refused, and which are those of rounding."""

import torch

from mtpd.detectors.detector import Detections
from mtpd.export.comparison import Comparison, compare

BOX = [10.0, 10.0, 50.0, 50.0]


def found(*rows: tuple[list[float], float, int], masks: torch.Tensor | None = None) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for _, _, label in rows], dtype=torch.int64),
        masks,
    )


def compared(expected: Detections, other: Detections, *, limit: int = 10) -> Comparison:
    return compare([expected], [other], iou_threshold=0.5, limit=limit)


def moved(by: float) -> list[float]:
    return [BOX[0] + by, BOX[1], BOX[2] + by, BOX[3]]


def test_equal_and_nothing() -> None:
    one = found((BOX, 0.9, 1))
    comparison = compared(one, one)
    assert comparison.failure() is None
    assert comparison.line() == '1 detections agree: scores within 0, boxes within 0 px'
    assert compared(found(), found()).failure() is None


def test_what_differs_is_named_with_its_error() -> None:
    one = found((BOX, 0.9, 1))
    assert compared(one, found((moved(0.04), 0.9, 1))).failure() is None
    failure = compared(one, found((moved(0.06), 0.9, 1))).failure()
    assert failure == 'boxes differ by 0.06 px, expected at most 0.05 px'
    failure = compared(one, found((BOX, 0.9002, 1))).failure()
    assert failure is not None
    assert failure.startswith('scores differ by 0.0002')
    failure = compared(one, found((BOX, 0.9, 2))).failure()
    assert failure == 'only the detector finds class 1 with score 0.9000 at (10.0, 10.0, 50.0, 50.0) in sample 1'
    failure = compared(one, found((BOX, 0.9, 1), (moved(200), 0.3, 1))).failure()
    assert failure is not None
    assert failure.startswith('only the file finds class 1 with score 0.3000')


def test_scores_that_are_no_numbers_differ() -> None:
    assert compared(found((BOX, 0.9, 1)), found((BOX, float('nan'), 1))).failure() is not None


def test_masks() -> None:
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    other = mask.clone()
    other[0, 0, :4] = True
    failure = compared(found((BOX, 0.9, 1), masks=mask), found((BOX, 0.9, 1), masks=other)).failure()
    assert failure == 'masks differ by 0.0025 of their pixels, expected at most 0.001 of their pixels'


def test_an_overlap_at_the_threshold_is_rounded() -> None:
    """Moved by a third of its side, a box overlaps by 0.5."""
    one = found((BOX, 0.9, 1), (moved(40 / 3), 0.8, 1))
    comparison = compared(one, found((BOX, 0.9, 1)))
    assert comparison.failure() is None
    assert comparison.num_rounded == 1
    # Not one of another class, nor one that overlaps much less.
    assert compared(found((BOX, 0.9, 1), (moved(40 / 3), 0.8, 2)), found((BOX, 0.9, 1))).failure() is not None
    assert compared(found((BOX, 0.9, 1), (moved(20), 0.8, 1)), found((BOX, 0.9, 1))).failure() is not None


def test_what_follows_from_a_rounded_overlap() -> None:
    """The first file lacks the second box, and so has the third one, which that box suppresses."""
    first = found((BOX, 0.9, 1), (moved(24), 0.7, 1))
    second = found((BOX, 0.9, 1), (moved(40 / 3), 0.8, 1))
    comparison = compared(first, second)
    assert comparison.failure() is None
    assert comparison.num_rounded == 2


def test_the_last_ones_of_a_full_list() -> None:
    far = [[200.0 * number, 0.0, 200.0 * number + 30, 30.0] for number in range(4)]
    one = found((far[0], 0.9, 1), (far[1], 0.5, 1))
    other = found((far[0], 0.9, 1), (far[2], 0.50001, 1))
    assert compared(one, other, limit=2).failure() is None
    assert compared(one, other, limit=3).failure() is not None
