"""What a student's RoI head says is caught as it goes, and nothing is left in the detector."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.detectors.detector_heads import captured_rois
from mtpd.detectors.models import build_detector, load_config


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
