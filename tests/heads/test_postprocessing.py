"""Boxes of fixed shapes, against loops in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mtpd.heads.postprocessing import (
    NONE,
    Candidates,
    aligned_rois,
    batch_rois,
    best,
    cleared,
    clipped,
    nms,
    nms_by_torchvision,
    suppressed,
    top_candidates,
    without_small,
)  # fmt: skip


def reference_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Greedy suppression, the best first; places of those that are kept, of those whose score is above NONE."""
    kept: list[int] = []
    for place in np.argsort(-scores, kind='stable'):
        if scores[place] > NONE and all(iou(boxes[place], boxes[other]) <= threshold for other in kept):
            kept.append(int(place))
    return kept


def iou(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(shared / (sum(areas) - shared))


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * 60
    return torch.cat([corners, corners + 5 + torch.rand(*shape, 2, generator=generator) * 40], dim=-1)


@pytest.mark.parametrize(('images', 'groups', 'places'), [(1, 1, 1), (2, 3, 40), (3, 1, 7)])
def test_suppression_of_each_group(images: int, groups: int, places: int) -> None:
    boxes = random_boxes(images, places)
    scores = torch.rand(images, groups, places, generator=torch.Generator().manual_seed(1))
    scores = torch.where(scores < 0.3, NONE, scores)
    kept = nms(boxes, scores, 0.4)
    assert kept.shape == scores.shape
    for image in range(images):
        for group in range(groups):
            wanted = reference_nms(boxes[image].double().numpy(), scores[image, group].numpy(), 0.4)
            assert kept[image, group].nonzero()[:, 0].tolist() == sorted(wanted)


def test_suppression_of_nothing() -> None:
    assert not nms(random_boxes(2, 5), torch.full((2, 3, 5), NONE), 0.5).any()


def test_suppression_of_far_images_and_large_boxes_is_exact() -> None:
    """Of many groups, whose offsets would round the corners of small boxes in float32."""
    boxes = random_boxes(1, 50) / 20
    scores = torch.rand(1, 5000, 50, generator=torch.Generator().manual_seed(2))
    scores[:, :-1] = NONE
    wanted = reference_nms(boxes[0].double().numpy(), scores[0, -1].numpy(), 0.5)
    assert nms(boxes, scores, 0.5)[0, -1].nonzero()[:, 0].tolist() == sorted(wanted)


def test_classes_suppress_only_their_own() -> None:
    box = torch.tensor([10.0, 10, 20, 20])
    candidates = Candidates(box.expand(1, 3, 4), torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[1, 0, 1]]))
    own = suppressed(candidates, iou_threshold=0.5, num_classes=2)
    assert own.scores.tolist() == [[pytest.approx(0.9), pytest.approx(0.8), NONE]]
    assert suppressed(candidates, iou_threshold=0.5, num_classes=None).scores[0, 1:].tolist() == [NONE, NONE]


@pytest.mark.parametrize('limit', [1, 5, 1000])
def test_top_candidates(limit: int) -> None:
    scores = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0))
    boxes, factors = random_boxes(2, 6), torch.rand(2, 6, generator=torch.Generator().manual_seed(3))
    found = top_candidates(scores, boxes, threshold=0.5, limit=limit, factors=factors)
    assert found.scores.shape == (2, limit)
    for image in range(2):
        pairs = [(float(scores[image, place, label]), place, label) for place in range(6) for label in range(4)]
        wanted = [one for one in sorted(pairs, reverse=True) if one[0] > 0.5][:limit]
        count = int((found.scores[image] > NONE).sum())
        assert count == len(wanted)
        for number, (score, place, label) in enumerate(wanted):
            assert float(found.scores[image, number]) == pytest.approx(score * float(factors[image, place]))
            assert int(found.labels[image, number]) == label
            assert torch.equal(found.boxes[image, number], boxes[image, place])


def test_best_and_cleared() -> None:
    candidates = Candidates(random_boxes(1, 3), torch.tensor([[0.2, NONE, 0.6]]), torch.tensor([[4, 5, 6]]))
    found = cleared(best(candidates, 5))
    assert found.scores.tolist() == [[pytest.approx(0.6), pytest.approx(0.2), 0, 0, 0]]
    assert found.labels.tolist() == [[6, 4, -1, -1, -1]]
    assert torch.equal(found.boxes[0, :2], candidates.boxes[0, [2, 0]])
    assert not found.boxes[0, 2:].any()


def test_clipping_of_each_image() -> None:
    boxes = torch.tensor([[[-3.0, -4, 90, 80]], [[5.0, 5, 200, 200]]])
    assert clipped(boxes, torch.tensor([[50, 60], [70, 100]])).tolist() == [[[0, 0, 60, 50]], [[5, 5, 100, 70]]]


def test_small_boxes() -> None:
    boxes = torch.tensor([[[0.0, 0, 0, 5], [0, 0, 1, 5], [0, 0, 3, 3]]])
    candidates = Candidates(boxes, torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.int64))
    assert (without_small(candidates, above=0).scores > 0).tolist() == [[False, True, True]]
    assert (without_small(candidates, least=1).scores > 0).tolist() == [[False, True, True]]
    assert (without_small(candidates, above=1).scores > 0).tolist() == [[False, False, True]]


def test_rois_of_each_level() -> None:
    """Against torchvision's operator for one RoI at a time, from its level."""
    from torchvision.ops import roi_align

    maps = [torch.rand(2, 3, 16, 12), torch.rand(2, 3, 8, 6)]
    rois = batch_rois(random_boxes(2, 4) / 2)
    assert rois[:, 0].tolist() == [0.0] * 4 + [1.0] * 4
    levels = torch.tensor([0, 1, 1, 0, 0, 0, 1, 1])
    found = aligned_rois(maps, rois, levels, strides=[4, 8], output_size=3, sampling_ratio=0, aligned=True)
    for number, (roi, level) in enumerate(zip(rois, levels.tolist(), strict=True)):
        wanted = roi_align(maps[level], roi[None], 3, 1 / (4, 8)[level], 0, True)[0]
        assert torch.equal(found[number], wanted)


class _Suppression(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        kept: Tensor = nms(boxes, scores, 0.5)
        return kept


@pytest.mark.filterwarnings('ignore:`create_unbacked_symint')  # in torchvision itself
def test_a_recorded_graph_takes_any_number_of_candidates() -> None:
    """Also none and one, which PyTorch's recording takes for special."""
    boxes, many = random_boxes(2, 6), torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(4))
    graph = torch.export.export(_Suppression(), (boxes, many), strict=False)
    plain = graph.run_decompositions({torch.ops.mtpd.nms.default: nms_by_torchvision})
    assert 'mtpd' not in str(plain.graph)
    one = torch.full_like(many, NONE)
    one[1, 2, 3] = 0.5
    for scores in (many, one, torch.full_like(many, NONE)):
        assert torch.equal(plain.module()(boxes, scores), nms(boxes, scores, 0.5))
