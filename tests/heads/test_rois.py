"""RoIs follow an image through its resize and its mirroring as mmdet's boxes do."""

import numpy as np
import pytest
import torch

from mtpd.detectors.samples import Instance, View, make_sample
from mtpd.geometry import Geometry
from mtpd.heads.rois import ImageRois, decode, mirrored, scaled

BOXES = [(3.0, 5.0, 60.0, 44.0), (0.0, 0.0, 90.0, 70.0), (88.5, 10.0, 90.0, 70.0)]


def rois() -> ImageRois:
    generator = torch.Generator().manual_seed(0)
    return ImageRois(
        boxes=torch.tensor(BOXES),
        probabilities=torch.randn(3, 5, generator=generator).softmax(1),
        labels=torch.tensor([0, 3, 1]),
        deltas=0.1 * torch.randn(3, 4, generator=generator),
    )


@pytest.mark.parametrize('geometry', [Geometry((128, 96)), Geometry((100, 130), keep_ratio=False)])
@pytest.mark.parametrize('view', ['plain', 'flip'])
def test_views_are_mmdets(geometry: Geometry, view: View) -> None:
    sample = make_sample(
        np.zeros((70, 90, 3), dtype=np.uint8),
        image_id=1,
        geometry=geometry,
        view=view,
        instances=[Instance(box, 0) for box in BOXES],
    )
    placed = scaled(rois(), source=(70, 90), target=sample.resized)
    if view == 'flip':
        placed = mirrored(placed, width=sample.resized[1])
    torch.testing.assert_close(placed.boxes, sample.objects.boxes)
    assert torch.equal(placed.probabilities, rois().probabilities)


def test_decoded_boxes_follow_too() -> None:
    """Deltas know no scale, and mirror with their boxes."""
    moved = rois()._replace(boxes=decode(rois().boxes, rois().deltas))
    for there, back in (
        (scaled(rois(), source=(70, 90), target=(200, 100)), scaled(moved, source=(70, 90), target=(200, 100))),
        (mirrored(rois(), width=90), mirrored(moved, width=90)),
    ):
        torch.testing.assert_close(decode(there.boxes, there.deltas), back.boxes)


def test_no_rois() -> None:
    empty = ImageRois(torch.zeros(0, 4), torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    assert [len(one) for one in mirrored(scaled(empty, source=(70, 90), target=(7, 9)), width=9)] == [0, 0, 0, 0]
