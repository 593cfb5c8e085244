"""What is said of annotation files: what is not used of them, and what looks like a mistake in all of a file."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mtpd.data.account import evaluation_account, nothing_to_train_on, suspicions, training_account
from mtpd.data.coco import CocoSet, read_annotations

WIDTH, HEIGHT = 200, 100


def checked(folder: Path, annotations: list[dict[str, Any]], *, names: tuple[str, ...] = ('1.jpg', '2.jpg')) -> CocoSet:
    """A set of images of 200 x 100 px and one category; objects are in the first image unless they say otherwise."""
    document = {
        'images': [
            {'id': number, 'file_name': name, 'height': HEIGHT, 'width': WIDTH} for number, name in enumerate(names, 1)
        ],
        'annotations': [{'image_id': 1, 'category_id': 1} | one for one in annotations],
        'categories': [{'id': 1, 'name': 'thing'}],
    }
    (folder / 'a.json').write_text(json.dumps(document))
    return read_annotations(folder / 'a.json')


SOUND = {'bbox': [10, 10, 30, 40]}
ODD: list[dict[str, Any]] = [
    {'bbox': [10, 10, 0.5, 40]},
    {'bbox': [10, 10, 40, 0.9]},
    {'bbox': [10, 10, 0, 40]},
    {'bbox': [300, 10, 5, 5]},
    SOUND | {'area': 0},
    SOUND | {'ignore': 1},
    SOUND | {'segmentation': [[1, 2, 3, 4], [10, 10, 40, 10, 40, 50], [1, 2, 3, 4, 5, 6, 7]]},
    SOUND | {'iscrowd': 1},
]


def test_nothing_is_said_of_a_sound_file(tmp_path: Path) -> None:
    coco = checked(tmp_path, [SOUND, SOUND | {'iscrowd': 1}])
    assert training_account(coco) is None
    assert evaluation_account(coco, with_masks=False) is None
    assert 'masks are not evaluated' in str(evaluation_account(coco, with_masks=True))
    assert suspicions(coco) == []


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    coco = checked(tmp_path, [SOUND, *ODD])
    account = training_account(coco)
    assert account is not None
    for part in (
        f'{coco.path}: 6 of 9 objects',
        '2 thinner than 1 px',
        '1 without width or height',
        '1 outside the image',
        '1 without area',
        '1 marked ignore',
        '2 polygons',
    ):
        assert part in account
    account = evaluation_account(coco, with_masks=True)
    assert account is not None
    for part in (
        '1 without width or height',
        '1 outside the image',
        '1 marked ignore',
        '7 without a mask',
        '2 polygons',
    ):
        assert part in account
    assert 'mask' not in str(evaluation_account(coco, with_masks=False))


def test_why_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    assert 'no annotations' in nothing_to_train_on(checked(tmp_path, []))
    text = nothing_to_train_on(checked(tmp_path, [SOUND | {'iscrowd': 1}, {'bbox': [0.1, 0.2, 0.3, 0.4]}]))
    assert '1 crowds' in text
    assert '1 thinner than 1 px' in text
    shares = nothing_to_train_on(checked(tmp_path, [{'bbox': [0.1, 0.2, 0.3, 0.4]}]))
    assert 'normalized' in shares


@pytest.mark.parametrize(
    ('boxes', 'word'),
    [
        ([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]], 'normalized'),
        ([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1.5]], None),
        ([[10, 10, 40, 50], [120, 60, 190, 95], [150, 5, 180, 20]], 'x1, y1, x2, y2'),
        ([[0, 0, 200, 100], [1, 1, 200, 100]], None),  # a px too large is a common slip
        ([[10, 10, 40, 50], [120, 60, 190, 95], [150, 50, 20, 20]], None),  # no corners, as the second is the smaller
        ([[10, 10, 40, 50], [120, 60, 210, 95]], None),  # corners would leave the image, too
        ([[10, 10, 40, 50]], None),
    ],
)
def test_boxes_that_are_no_boxes_in_px(boxes: list[list[float]], word: str | None, tmp_path: Path) -> None:
    found = suspicions(checked(tmp_path, [{'bbox': box} for box in boxes]))
    assert len(found) == (word is not None)
    assert word is None or word in found[0]


OUTLINE = {'segmentation': [[10, 10, 40, 10, 40, 50, 10, 50]]}
# Runs of (height, width) = (100, 200) px that an export wrote row by row; COCO's go column by column.
ROWS = [10 * WIDTH + 10, *[30, WIDTH - 30] * 39, 30, 50 * WIDTH + 160]


@pytest.mark.parametrize(
    ('one', 'is_odd'),
    [
        (SOUND | OUTLINE, False),
        (SOUND | {'segmentation': [[11, 9, 38, 52, 20, 49]]}, False),
        ({'bbox': [10, 10, 1, 40], 'segmentation': [[10, 10, 11.5, 10, 11.5, 50, 10, 50]]}, False),
        ({'bbox': [25, 30, 30, 40]} | OUTLINE, True),  # the centre in place of the corner
        ({'bbox': [5, 10, 15, 40]} | OUTLINE, True),  # in percent
        (SOUND | {'segmentation': [[0.05, 0.1, 0.2, 0.1, 0.2, 0.5]]}, True),
        (SOUND | {'segmentation': {'size': [HEIGHT, WIDTH], 'counts': ROWS}}, True),
        (SOUND | {'segmentation': {'size': [HEIGHT, WIDTH], 'counts': [HEIGHT * WIDTH]}}, True),
    ],
)
def test_masks_that_lie_aside_of_their_boxes(one: dict[str, Any], is_odd: bool, tmp_path: Path) -> None:
    found = suspicions(checked(tmp_path, [one, SOUND]))
    assert len(found) == is_odd
    assert not is_odd or ('1 of 1 compared masks' in found[0] and '1.jpg' in found[0])


def test_most_annotations_are_crowds(tmp_path: Path) -> None:
    (line,) = suspicions(checked(tmp_path, [SOUND, *[SOUND | {'iscrowd': 1}] * 2]))
    assert line.startswith('2 annotations')
    assert 'iscrowd' in line


@pytest.mark.parametrize('annotations', [[], [SOUND | {'iscrowd': 1}]])
def test_nothing_to_find(annotations: list[dict[str, Any]], tmp_path: Path) -> None:
    assert 'all objects are crowds' in str(evaluation_account(checked(tmp_path, annotations), with_masks=False))


def test_objects_that_stand_twice(tmp_path: Path) -> None:
    coco = checked(tmp_path, [SOUND, SOUND, SOUND | {'image_id': 2}, *[SOUND | {'iscrowd': 1}] * 2])
    for account in (training_account(coco), evaluation_account(coco, with_masks=False)):
        assert '1 objects repeat' in str(account)


def test_accounts_take_little_memory(tmp_path: Path) -> None:
    """Of Objects365 there are 25 million annotations: no copy of the 32 bytes of all boxes."""
    count = 20_000
    coco = checked(tmp_path, [{'bbox': [number % 50, number % 37, 20, 20]} for number in range(count)])
    tracemalloc.start()
    try:
        for account, most in ((training_account, 40), (suspicions, 20)):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            account(coco)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < most * count
    finally:
        tracemalloc.stop()


def test_one_file_under_two_ids(tmp_path: Path) -> None:
    (line,) = suspicions(checked(tmp_path, [SOUND], names=('a/1.jpg', 'b.jpg', './a//1.jpg', 'b.jpg')))
    assert line.startswith('2 image files')
    assert 'a/1.jpg' in line
