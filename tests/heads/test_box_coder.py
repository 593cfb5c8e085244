"""Box arithmetic against mmdet's coder and torchvision's overlaps."""

import pytest
import torch
from torchvision.ops import box_iou

from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.heads.rois import BoxCoder, class_slice, decode, paired_iou

MEANS, STDS = (0.1, -0.2, 0.05, 0.0), (0.1, 0.1, 0.2, 0.3)


def boxes(num_boxes: int) -> torch.Tensor:
    corners = 100 * torch.rand(num_boxes, 2, dtype=torch.float64)
    return torch.cat([corners, corners + 60 * torch.rand(num_boxes, 2, dtype=torch.float64)], dim=1)


def test_decode_is_mmdets() -> None:
    prepare()
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    torch.manual_seed(0)
    proposals, deltas = boxes(50), 5 * torch.randn(50, 4, dtype=torch.float64)
    deltas[0, 2:] = 1000  # beyond what a box may grow
    wanted = DeltaXYWHBBoxCoder(target_means=MEANS, target_stds=STDS).decode(proposals, deltas)
    torch.testing.assert_close(decode(proposals, BoxCoder(MEANS, STDS).to_raw(deltas)), wanted)


def test_units_there_and_back() -> None:
    coder, deltas = BoxCoder(MEANS, STDS), torch.randn(5, 4)
    torch.testing.assert_close(coder.from_raw(coder.to_raw(deltas)), deltas)


def test_paired_iou() -> None:
    torch.manual_seed(1)
    first, second = boxes(40), boxes(40)
    torch.testing.assert_close(paired_iou(first, second), box_iou(first, second).diag())
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert paired_iou(point, point).item() == 0


@pytest.mark.parametrize('num_outputs', [4, 12])
def test_class_slice(num_outputs: int) -> None:
    deltas = torch.arange(3.0 * num_outputs).view(3, num_outputs)
    found = class_slice(deltas, torch.tensor([2, 0, 3]))
    if num_outputs == 4:
        assert torch.equal(found, deltas)
    else:
        assert torch.equal(found[:2], torch.stack([deltas[0, 8:12], deltas[1, 0:4]]))
        assert found.shape == (3, 4)
