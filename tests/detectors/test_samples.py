"""Pixels, boxes and masks of both views against arithmetic written from the geometry."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle

from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.samples import Instance, Sample, View, image_view, make_sample
from mtpd.geometry import Geometry

VIEWS: tuple[View, ...] = ('plain', 'flip')
GEOMETRY = Geometry((120, 80))


@pytest.fixture(scope='module', autouse=True)
def _prepared() -> None:
    """Importing mmdet takes longer than hypothesis grants an example."""
    prepare()


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sample(
    view: View, instances: list[Instance] | None, *, size: tuple[int, int] = (50, 70), with_masks: bool = False
) -> Sample:
    return make_sample(
        random_image(*size),
        image_id=17,
        geometry=GEOMETRY,
        view=view,
        instances=instances,
        with_masks=with_masks,
    )


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('size', [(50, 70), (70, 50), (80, 120), (1, 1), (3, 300)])
def test_pixels(view: View, size: tuple[int, int]) -> None:
    image = random_image(*size)
    height, width = GEOMETRY.resized(size)
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if view == 'flip':
        expected = expected[:, ::-1]
    found = image_view(image, geometry=GEOMETRY, view=view)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(found, torch.from_numpy(expected.transpose(2, 0, 1).copy()))
    assert torch.equal(sample(view, None, size=size).image, found)


def test_a_fixed_size_without_the_aspect_ratio() -> None:
    geometry = Geometry((64, 48), keep_ratio=False)
    assert image_view(random_image(50, 70), geometry=geometry, view='plain').shape == (3, 48, 64)


@given(
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
    height=st.integers(20, 200),
    width=st.integers(20, 200),
    view=st.sampled_from(VIEWS),
)
def test_boxes(boxes: list[tuple[float, float, float, float]], height: int, width: int, view: View) -> None:
    instances = []
    for number, (a, b, c, d) in enumerate(boxes):
        box = (min(a, b) * width, min(c, d) * height, max(a, b) * width, max(c, d) * height)
        instances.append(Instance(box, label=number, ignore=number == 1))
    found = sample(view, instances, size=(height, width))
    new_height, new_width = GEOMETRY.resized((height, width))
    scale_x, scale_y = new_width / width, new_height / height
    target = found.objects
    assert target.labels.tolist() == [number for number in range(len(boxes)) if number != 1]
    assert target.ignored_labels.tolist() == [1][: len(boxes) - 1]
    for labels, group in ((target.labels, target.boxes), (target.ignored_labels, target.ignored)):
        for label, box in zip(labels.tolist(), group.tolist(), strict=True):
            x1, y1, x2, y2 = instances[label].box
            expected = np.array([x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y])
            if view == 'flip':
                expected[[0, 2]] = new_width - expected[[2, 0]]
            np.testing.assert_allclose(box, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('view', VIEWS)
def test_masks_move_with_the_image(view: View) -> None:
    """A rectangle as polygon, as run-length code and as a bare box, on a bright spot of the image."""
    height, width = 50, 70
    box = (10.0, 20.0, 30.0, 40.0)
    bitmap = np.zeros((height, width), np.uint8)
    bitmap[20:40, 10:30] = 1
    counts = rle.encode(np.asfortranarray(bitmap))['counts'].decode()
    kinds: list[Any] = [
        [[10, 20, 30, 20, 30, 40, 10, 40]],
        {'size': [height, width], 'counts': counts},
        None,
    ]
    instances = [Instance(box, label=0, segmentation=kind) for kind in kinds]
    found = sample(view, instances, size=(height, width), with_masks=True)
    assert found.objects.masks is not None
    masks = found.objects.masks.numpy()
    assert masks.shape == (3, *found.resized)
    for mask, moved in zip(masks, found.objects.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        outline = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(outline, moved, atol=1.01)
        assert 0.93 < mask.sum() / ((moved[2] - moved[0]) * (moved[3] - moved[1])) < 1.07


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('with_masks', [False, True])
def test_an_image_without_annotations(view: View, with_masks: bool) -> None:
    found = sample(view, [], with_masks=with_masks)
    assert found.objects.boxes.shape == (0, 4)
    assert found.objects.labels.shape == (0,)
    assert (found.objects.masks is not None) is with_masks


@pytest.mark.parametrize('with_masks', [False, True])
def test_a_box_of_one_pixel(with_masks: bool) -> None:
    found = sample('flip', [Instance((69.0, 49.0, 70.0, 50.0), label=2)], with_masks=with_masks)
    (box,) = found.objects.boxes.tolist()
    height, width = found.resized
    np.testing.assert_allclose(box, [0, height * 49 / 50, width / 70, height], atol=1e-3)


@pytest.mark.parametrize('view', VIEWS)
def test_meta_data(view: View) -> None:
    found = sample(view, None)
    assert found.image_id == 17
    assert found.view == view
    assert found.resized == GEOMETRY.resized((50, 70))
    assert found.original == (50, 70)
    assert found.target is None


def test_the_image_given_is_not_changed() -> None:
    image = random_image(80, 120)
    before = image.copy()
    image_view(image, geometry=GEOMETRY, view='flip').zero_()
    np.testing.assert_array_equal(image, before)
