"""Proposals that were made to hurt: every hash and checksum fits, so that only the checks of the values refuse them."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtpd.cache.checking import read_state, verify
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.roi_arrays import ROI_VALUES, rois_checksum

pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')

HEADS = 'heads/64x96'
NUM_ROWS = 2
DTYPES = {'boxes': '<f4', 'probabilities': '<f2', 'labels': '<i4', 'deltas': '<f4'}


def file_of(array: str) -> str:
    """The first shard of an array."""
    axes = {'labels': 1, 'boxes': 2, 'probabilities': 2, 'deltas': 2}
    return '/'.join([HEADS, array, 'c', '0', *['0'] * axes.get(array, 0)])


def forge_row(forgery: Any, array: str, value: float) -> None:
    """Puts a value at the first place of the first row, and makes the row's checksum fit."""
    forgery.edit_array(file_of(array), DTYPES[array], lambda values: values.__setitem__(0, value))
    contents = [(forgery.root / file_of(name)).read_bytes() for name in ROI_VALUES]
    number = rois_checksum([content[: len(content) // NUM_ROWS] for content in contents])
    forgery.edit_array(file_of('crc32c'), '<u4', lambda values: values.__setitem__(0, number))


def test_untouched_proposals_are_read(roi_forgery: Any) -> None:
    assert roi_forgery.read() == 'read'


@pytest.mark.parametrize('count', [-1, 6, 2**31 - 1, -(2**31)])
def test_counts(roi_forgery: Any, count: int) -> None:
    roi_forgery.edit_array(file_of('num_rois'), '<i4', lambda values: values.__setitem__(0, count))
    roi_forgery.require_refused(f'holds {count} RoIs in 5 places')


@pytest.mark.parametrize(
    ('array', 'value', 'message'),
    [
        ('boxes', math.nan, 'not finite'),
        ('boxes', 1e6, 'swapped corners'),
        ('deltas', math.inf, 'not finite'),
        ('probabilities', 1.5, 'outside 0 to 1'),
        ('probabilities', -math.inf, 'not finite'),
        ('labels', 3, 'outside its 3 classes'),
        ('labels', -1, 'outside its 3 classes'),
    ],
)
def test_values_in_a_row_whose_checksum_fits(roi_forgery: Any, array: str, value: float, message: str) -> None:
    forge_row(roi_forgery, array, value)
    roi_forgery.require_refused(message)
    (damage,) = verify(read_state(roi_forgery.root), num_threads=1, advance=lambda _: None)
    assert (damage.kind, damage.file, damage.key) == ('shard', HEADS, ShardKey('64x96', 0))
    assert message in damage.reason


@pytest.mark.parametrize('record', [(4096, 3), (4, 3), (6, 3), (5, 2), (5, 2**14)])
def test_a_record_of_other_shapes(roi_forgery: Any, record: tuple[int, int]) -> None:
    num_rois, num_classes = record
    stated = {'num_rois': num_rois, 'num_classes': num_classes}
    roi_forgery.sign(lambda manifest: manifest['description'].update(rois=stated))
    roi_forgery.require_refused('by its shape')


def test_a_record_without_arrays(forgery: Any) -> None:
    stated = {'num_rois': 5, 'num_classes': 3}
    forgery.sign(lambda manifest: manifest['description'].update(rois=stated))
    forgery.require_refused('heads/64x96/image_id/c/0 is not in the manifest')


def test_rows_of_other_images(roi_forgery: Any) -> None:
    def swap(values: np.ndarray) -> None:
        values[:] = values[::-1].copy()

    roi_forgery.edit_array(file_of('image_id'), '<i8', swap)
    roi_forgery.require_refused('row 0 of heads/64x96 belongs to image')


@pytest.mark.parametrize('array', ['image_id', 'boxes'])
def test_a_file_of_a_terabyte(roi_forgery: Any, array: str) -> None:
    file = file_of(array)
    os.truncate(roi_forgery.root / file, 2**40)
    roi_forgery.sign(lambda content: content['files'][file].update(num_bytes=2**40))
    roi_forgery.require_refused(array)


@pytest.mark.parametrize('place', ['heads', 'heads/64x96/boxes', 'heads/64x96/image_id/c/0'])
def test_links_that_lead_out_of_the_cache(roi_forgery: Any, tmp_path: Path, place: str) -> None:
    shutil.move(roi_forgery.root / place, tmp_path / 'outside')
    (roi_forgery.root / place).symlink_to(tmp_path / 'outside')
    roi_forgery.require_refused('is a link to a place outside the cache')


def test_more_probabilities_than_any_teacher_gives(roi_forgery: Any) -> None:
    stated = {'num_rois': 4096, 'num_classes': 2**14}
    roi_forgery.sign(lambda manifest: manifest['description'].update(rois=stated))
    roi_forgery.require_refused('4096 proposals of 16384 classes')


@pytest.mark.parametrize('is_intact', [False, True])
def test_the_largest_rows_that_a_manifest_may_state(roi_forgery: Any, is_intact: bool) -> None:
    """Files of the right sizes, all holes, take no more memory than their rows do."""
    num_rois, num_classes = 512, 2**14 - 1
    row_bytes = {'boxes': 16, 'probabilities': 2 * (num_classes + 1), 'labels': 4, 'deltas': 16}
    checksum = rois_checksum([bytes(num_rois * row_bytes[array]) for array in ROI_VALUES])
    sizes = {}
    for path in sorted((roi_forgery.root / 'heads').glob('*/*/c/**/*')):
        file = path.relative_to(roi_forgery.root).as_posix()
        _, bucket, array, *_ = path.relative_to(roi_forgery.root).parts
        if path.is_file() and array in row_bytes:
            num_rows = (roi_forgery.root / 'heads' / bucket / 'num_rois/c/0').stat().st_size // 4
            sizes[file] = num_rows * num_rois * row_bytes[array]
            path.write_bytes(b'')
            os.truncate(path, sizes[file])
        elif path.is_file() and array in ('num_rois', 'crc32c') and is_intact:
            value = num_rois if array == 'num_rois' else checksum
            roi_forgery.edit_array(file, '<u4', lambda values, value=value: values.fill(value))

    def edit(manifest: dict[str, Any]) -> None:
        manifest['description']['rois'] = {'num_rois': num_rois, 'num_classes': num_classes}
        for file, size in sizes.items():
            manifest['files'][file]['num_bytes'] = size

    roi_forgery.sign(edit)
    if is_intact:
        assert roi_forgery.read() == 'read'
    else:
        roi_forgery.require_refused('checksum mismatch')
