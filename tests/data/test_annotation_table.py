"""Annotations in flat arrays are those of the file."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpd.data.annotation_table import CocoAnnotation
from mtpd.data.coco import LEFT_OUT, read_annotations, training_annotations
from mtpd.errors import InputError

HEIGHT, WIDTH = 40, 60
numbers = st.floats(-50, 100)
polygons = st.lists(st.lists(numbers, max_size=9), min_size=1, max_size=3).filter(
    lambda some: not (len(some) > 2 and all(len(one) == 2 for one in some))
)
run_lengths = st.integers(0, HEIGHT * WIDTH).map(
    lambda start: {'size': [HEIGHT, WIDTH], 'counts': [start, HEIGHT * WIDTH - start]}
)
annotations = st.fixed_dictionaries(
    {
        'image_id': st.sampled_from([9, 2, 5]),
        'category_id': st.sampled_from([7, 3]),
        'bbox': st.lists(numbers, min_size=4, max_size=4),
        'area': numbers,
    },
    optional={
        'iscrowd': st.integers(0, 1),
        'ignore': st.booleans(),
        'segmentation': st.none() | polygons | run_lengths,
    },
)


@pytest.fixture(scope='module')
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('table') / 'a.json'


def document(some: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        'images': [{'id': one, 'file_name': f'{one}.jpg', 'height': HEIGHT, 'width': WIDTH} for one in (9, 2, 5)],
        'categories': [{'id': 7, 'name': 'b'}, {'id': 3, 'name': 'a'}],
        'annotations': some,
    }


def expected(record: dict[str, Any]) -> CocoAnnotation:
    mask, num_bad = record.get('segmentation'), 0
    if isinstance(mask, list):
        sound = [one for one in mask if len(one) >= 6 and len(one) % 2 == 0]
        num_bad, mask = len(mask) - len(sound), sound or None
    return CocoAnnotation(
        tuple(record['bbox']),
        {3: 0, 7: 1}[record['category_id']],
        bool(record.get('iscrowd', 0)),
        record['area'],
        mask,
        record.get('ignore', False),
        num_bad,
    )


def why_left_out(one: CocoAnnotation) -> str:
    """By mmdet's rules, an annotation at a time."""
    x, y, width, height = one.bbox
    if one.is_ignored:
        return 'marked ignore'
    if width <= 0 or height <= 0:
        return 'without width or height'
    if width < 1 or height < 1:
        return 'thinner than 1 px'
    if x >= WIDTH or y >= HEIGHT or x + width <= 0 or y + height <= 0:
        return 'outside the image'
    return 'without area' if one.area <= 0 else ''


@given(st.lists(annotations, max_size=12), st.permutations(['images', 'annotations', 'categories']))
def test_round_trip(path: Path, some: list[dict[str, Any]], order: list[str]) -> None:
    content = document(some)
    path.write_text(json.dumps({key: content[key] for key in order}))
    coco = read_annotations(path)
    wanted = {image.id: tuple(expected(one) for one in some if one['image_id'] == image.id) for image in coco.images}
    assert dict(coco.annotations) == wanted
    assert list(coco.annotations) == [9, 2, 5]
    in_order = [one for several in wanted.values() for one in several]
    assert [LEFT_OUT[number] for number in coco.left_out.tolist()] == list(map(why_left_out, in_order))
    assert coco.annotations.has_mask.tolist() == [one.segmentation is not None for one in in_order]
    assert coco.has_masks == any(one.segmentation is not None for one in in_order)
    for image, has_objects in zip(coco.images, coco.with_objects.tolist(), strict=True):
        seen = tuple(one for one in wanted[image.id] if not why_left_out(one))
        assert training_annotations(coco, image) == seen
        assert has_objects == any(one.is_object for one in seen)


@pytest.mark.parametrize('order', [('annotations', 'images', 'categories'), ('images', 'categories', 'annotations')])
@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        ({'image_id': 4}, r"annotations\[1\]: image_id 4 is not among 'images'"),
        ({'category_id': 4}, r"annotations\[1\]: category_id 4 is not among 'categories'"),
        ({'bbox': [1, 2, 3]}, r'annotations\[1\]: bbox is \[1, 2, 3\]'),
    ],
)
def test_refused_in_any_order(path: Path, order: tuple[str, ...], change: dict[str, Any], problem: str) -> None:
    sound = {'image_id': 9, 'category_id': 7, 'bbox': [1, 2, 3, 4]}
    content = document([sound, sound | change, sound])
    path.write_text(json.dumps({key: content[key] for key in order}))
    with pytest.raises(InputError, match=problem):
        read_annotations(path)


def test_annotations_of_no_images(path: Path) -> None:
    content = document([{'image_id': 9, 'category_id': 7, 'bbox': [1, 2, 3, 4]}])
    path.write_text(json.dumps(content | {'images': []}))
    with pytest.raises(InputError, match=r"annotations\[0\]: .*'images'"):
        read_annotations(path)


def test_forgotten_masks(path: Path) -> None:
    num_points = 100_000
    record = {'image_id': 9, 'category_id': 7, 'bbox': [1, 2, 3, 4], 'area': 5.0}
    path.write_text(json.dumps(document([record | {'segmentation': [[1.5, 2.5] * num_points]}, record])))
    coco = read_annotations(path)
    first, second = coco.annotations[9]
    assert first.segmentation is not None
    tracemalloc.start()
    try:
        coco = read_annotations(path)
        before, _ = tracemalloc.get_traced_memory()
        coco.annotations.forget_masks()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before - after > 16 * num_points - 1000
    assert coco.annotations[9] == (replace(first, segmentation=None), second)
    assert not coco.has_masks
