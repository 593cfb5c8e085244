"""NMS through mmcv.ops against loops written from the definition."""

import math

import pytest
import torch
from torch import Tensor

Box = list[float]


def overlap(a: Box, b: Box, offset: float = 0) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    if width <= 0 or height <= 0:
        return 0.0
    area = sum((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    return width * height / (area - width * height)


def greedy(boxes: list[Box], scores: list[float], threshold: float, offset: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(overlap(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


def soft(
    boxes: list[Box], scores: list[float], method: str, threshold: float, sigma: float, minimum: float
) -> list[tuple[int, float]]:
    waiting = dict(enumerate(scores))
    taken = []
    while waiting:
        best = max(waiting, key=lambda i: waiting[i])
        taken.append((best, waiting.pop(best)))
        for i in list(waiting):
            shared = overlap(boxes[best], boxes[i])
            if method == 'gaussian':
                waiting[i] *= math.exp(-(shared**2) / sigma)
            elif shared >= threshold:
                waiting[i] *= 1 - shared if method == 'linear' else 0
            if waiting[i] < minimum:
                del waiting[i]
    return taken


def random_boxes(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator, dtype=torch.float64) * 40
    size = torch.rand(number, 2, generator=generator, dtype=torch.float64) * 30 + 1
    return torch.cat([corner, corner + size], dim=1), torch.rand(number, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7])
def test_nms_keeps_what_the_definition_keeps(offset: int, threshold: float) -> None:
    from mmcv.ops import nms

    boxes, scores = random_boxes(60)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == greedy(boxes.tolist(), scores.tolist(), threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_nms_takes_a_score_threshold_and_a_limit() -> None:
    from mmcv.ops import nms

    boxes, scores = random_boxes(60)
    above = [i for i in greedy(boxes.tolist(), scores.tolist(), 0.5, 0) if scores[i] > 0.4]
    assert nms(boxes, scores, 0.5, score_threshold=0.4, max_num=5)[1].tolist() == above[:5]


def test_nms_in_numpy_and_in_half_precision() -> None:
    from mmcv.ops import nms

    boxes, scores = random_boxes(20)
    boxes, scores = boxes.half(), scores.half()
    expected = greedy(boxes.tolist(), scores.tolist(), 0.5, 0)
    assert nms(boxes, scores, 0.5)[1].tolist() == expected
    assert nms(boxes.float().numpy(), scores.float().numpy(), 0.5)[1].tolist() == expected


def test_batched_nms_keeps_classes_apart() -> None:
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(60)
    classes = torch.arange(60) % 3
    _, kept = batched_nms(boxes, scores, classes, {'type': 'nms', 'iou_threshold': 0.4})
    expected = set()
    for label in range(3):
        chosen = (classes == label).nonzero()[:, 0].tolist()
        inside = greedy(boxes[chosen].tolist(), scores[chosen].tolist(), 0.4, 0)
        expected |= {chosen[i] for i in inside}
    assert set(kept.tolist()) == expected


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method: str) -> None:
    from mmcv.ops import soft_nms

    boxes, scores = random_boxes(40, seed=1)
    dets, indices = soft_nms(boxes, scores, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method)
    expected = soft(boxes.tolist(), scores.tolist(), method, 0.3, 0.5, 0.05)
    assert indices.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected], dtype=torch.float64))
    assert torch.equal(dets[:, :4], boxes[indices])


def test_soft_nms_of_empty_boxes_that_coincide() -> None:
    from mmcv.ops import soft_nms

    boxes = torch.tensor([[4.0, 3, 4, 3], [4, 3, 4, 3], [0, 0, 2, 2]])
    dets, indices = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method='gaussian')
    assert indices.tolist() == [0, 1, 2]
    assert dets[:, 4].tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_nms_match_groups_boxes_with_the_one_that_suppresses_them() -> None:
    from mmcv.ops import nms_match

    boxes, scores = random_boxes(40, seed=2)
    groups = nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.3)
    waiting = sorted(range(40), key=lambda i: -scores[i])
    expected = []
    while waiting:
        best, *others = waiting
        group = [i for i in others if overlap(boxes[best].tolist(), boxes[i].tolist()) >= 0.3]
        expected.append([best, *group])
        waiting = [i for i in others if i not in group]
    assert [group.tolist() for group in groups] == expected


def test_no_boxes() -> None:
    from mmcv.ops import nms, nms_match, soft_nms

    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for operator in (nms, soft_nms):
        dets, kept = operator(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
    assert nms_match(torch.zeros(0, 5), 0.5) == []
