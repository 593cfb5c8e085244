"""Anchors of mmdet's heads."""

from pathlib import Path

import pytest
import torch

from mtpd.detectors.detector_heads import base_anchors
from mtpd.detectors.models import build_detector, load_config
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
