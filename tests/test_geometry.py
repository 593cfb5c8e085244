"""Sizes against mmdet's own Resize and Pad."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.errors import InputError
from mtpd.geometry import Geometry, Level, level_name

sides = st.integers(1, 400)
scales = st.tuples(st.integers(1, 300), st.integers(1, 300))


@pytest.fixture(scope='module')
def transforms() -> Any:
    prepare()
    from mmdet.datasets import transforms

    return transforms


def shape_after(steps: list[Any], height: int, width: int) -> tuple[int, int]:
    results: dict[str, Any] = {'img': np.zeros((height, width, 1), np.uint8), 'img_shape': (height, width)}
    for step in steps:
        results = step(results)
    assert results['img'].shape[:2] == results['img_shape'][:2]
    rows, columns = results['img'].shape[:2]
    return rows, columns


@given(height=sides, width=sides, scale=scales, keep_ratio=st.booleans())
@example(height=5, width=10, scale=(5, 5), keep_ratio=True)  # 2.5 px, which Python would round to 2
def test_resized_equals_mmdet(
    transforms: Any, height: int, width: int, scale: tuple[int, int], keep_ratio: bool
) -> None:
    found = Geometry(scale, keep_ratio=keep_ratio).resized((height, width))
    if min(found) < 1:
        # OpenCV refuses to make such an image, and so does the extraction.
        return
    resize = transforms.Resize(scale=scale, keep_ratio=keep_ratio)
    assert found == shape_after([resize], height, width)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_resized_by_the_common_scale_equals_mmcv(transforms: Any, height: int, width: int) -> None:
    """Without pixels, so that all sizes of COCO and beyond can be drawn."""
    del transforms
    import mmcv

    new_width, new_height = mmcv.rescale_size((width, height), (1333, 800))
    assert Geometry((1333, 800)).resized((height, width)) == (new_height, new_width)


@given(height=sides, width=sides, scale=scales, divisor=st.integers(1, 70))
def test_padded_to_a_divisor_equals_mmdet(
    transforms: Any, height: int, width: int, scale: tuple[int, int], divisor: int
) -> None:
    geometry = Geometry(scale, pad_divisor=divisor)
    if min(geometry.resized((height, width))) < 1:
        return
    steps = [transforms.Resize(scale=scale, keep_ratio=True), transforms.Pad(size_divisor=divisor)]
    assert geometry.padded((height, width)) == shape_after(steps, height, width)


@given(height=sides, width=sides, long_edge=st.integers(20, 200), divisor=st.sampled_from([1, 32]))
def test_padded_to_a_size_equals_mmdet(transforms: Any, height: int, width: int, long_edge: int, divisor: int) -> None:
    """A letterbox, as YOLOX has it, then the divisor of the data preprocessor."""
    size = (long_edge, long_edge + 7)
    geometry = Geometry((long_edge, long_edge), pad_divisor=divisor, pad_size=size)
    if min(geometry.resized((height, width))) < 1:
        return
    steps = [
        transforms.Resize(scale=(long_edge, long_edge), keep_ratio=True),
        transforms.Pad(size=size[::-1]),
        transforms.Pad(size_divisor=divisor),
    ]
    assert geometry.padded((height, width)) == shape_after(steps, height, width)


def test_sizes_known_from_coco() -> None:
    geometry = Geometry((1333, 800))
    assert geometry.resized((480, 640)) == (800, 1067)
    assert geometry.padded((480, 640)) == (800, 1088)
    assert geometry.resized((427, 640)) == (800, 1199)
    assert geometry.resized((640, 360)) == (1333, 750)


@pytest.mark.parametrize('wrong', [{'scale': (0, 5)}, {'scale': (5, -1)}, {'scale': (5, 5), 'pad_divisor': 0}])
def test_sizes_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match='must be positive'):
        Geometry(**wrong)


@given(stride=st.integers(1, 200), height=st.integers(1, 2000), width=st.integers(1, 2000))
def test_the_grid_covers_the_input(stride: int, height: int, width: int) -> None:
    rows, columns = Level('p', stride, 1).grid(height, width)
    assert (rows - 1) * stride < height <= rows * stride
    assert (columns - 1) * stride < width <= columns * stride


def test_names_of_levels() -> None:
    assert [level_name(stride) for stride in (1, 4, 8, 128, 100, 12)] == ['p0', 'p2', 'p3', 'p7', 's100', 's12']


def test_rarer_values_are_stored_only_where_they_are_not_the_default() -> None:
    from mtpd.cache.format.manifest import GeometryRecord

    usual = Geometry((96, 64))
    assert usual.to_dict().keys() == {'scale', 'keep_ratio', 'pad_divisor', 'pad_size'}
    rare = Geometry((96, 64), interpolation='nearest', backend='pillow', rounds_down=True, pad_square=True)
    for geometry in (usual, rare):
        stored = GeometryRecord(**vars(geometry)).model_dump(mode='json')
        assert stored.keys() == geometry.to_dict().keys()
        assert GeometryRecord(**stored).to_geometry() == geometry
