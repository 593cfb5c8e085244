"""Heads of mmdet's detectors: their anchors, and what is captured of a RoI head."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.detectors.of_mmdet.detector_heads import base_anchors, captured_rois
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.errors import InputError

TINY = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'


@pytest.mark.parametrize(
    ('name', 'num_anchors', 'head'),
    [
        (str(TINY), dict.fromkeys((4, 8, 16, 32), 2), 'bbox_head'),
        ('faster-rcnn_r50_fpn_1x_coco', dict.fromkeys((4, 8, 16, 32, 64), 3), 'rpn_head'),
    ],
)
def test_they_are_those_of_mmdet(name: str, num_anchors: dict[int, int], head: str) -> None:
    model = build_detector(load_config(name), init_weights=False)
    anchors = base_anchors(model)
    assert {stride: len(one) for stride, one in anchors.items()} == num_anchors
    generator = model.get_submodule(head).prior_generator
    # Column 3, row 2 of a grid of 5 columns.
    grids = generator.grid_priors([(4, 5)] * len(anchors), device='cpu')  # type: ignore[operator,union-attr]
    for (stride, one), grid in zip(anchors.items(), grids, strict=True):
        moved = one + torch.tensor([3.0, 2, 3, 2]) * stride
        torch.testing.assert_close(moved, grid.view(4, 5, -1, 4)[2, 3])


def test_a_detector_without_anchors() -> None:
    model = build_detector(load_config('reppoints-moment_r50_fpn_1x_coco'), init_weights=False)
    with pytest.raises(InputError, match='RepPointsDetector has none; use tar_feature or fgd') as caught:
        base_anchors(model)
    assert '\n' not in str(caught.value)


@pytest.fixture
def model(tiny_two_stage: Path) -> Any:
    return build_detector(load_config(str(tiny_two_stage)))


def hooks(model: Any) -> int:
    return sum(len(one._forward_hooks) for one in model.modules())


def test_the_first_pass_counts(model: Any) -> None:
    """Where a mask branch shares the extractor it comes second."""
    maps = tuple(torch.rand(1, 16, 128 // stride, 128 // stride) for stride in (4, 8, 16, 32))
    first, second = torch.tensor([[0.0, 3, 5, 40, 33]]), torch.tensor([[0.0, 2, 2, 9, 9], [0, 1, 1, 70, 80]])
    with captured_rois(model) as captured:
        wanted = model.roi_head._bbox_forward(maps, first)
        model.roi_head._bbox_forward(maps, second)
    rois, predictions = captured.require()
    assert torch.equal(rois, first)
    assert torch.equal(predictions.logits, wanted['cls_score'])
    assert torch.equal(predictions.deltas, wanted['bbox_pred'])
    assert hooks(model) == 0


def test_a_failure_leaves_nothing_behind(model: Any) -> None:
    with pytest.raises(RuntimeError), captured_rois(model):
        model.roi_head._bbox_forward((torch.rand(1, 3, 8, 8),) * 4, torch.tensor([[0.0, 3, 5, 40, 33]]))
    assert hooks(model) == 0
