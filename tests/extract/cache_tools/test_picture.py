"""`mtpd-cache picture` draws what the cache holds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

import mtpd.cache

Run = Callable[..., Result]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == 'PNG'
        return np.asarray(image)


def test_a_sheet(mtpd_cache: Run, whole: Path, synthetic_set: Path, tmp_path: Path) -> None:
    images, annotations = synthetic_set / 'train2017', synthetic_set / 'annotations' / 'instances_train2017.json'
    image_id = mtpd.cache.open(whole).image_ids[-1]
    options = ['--image', image_id, '--images', images, '--annotations', annotations]
    result = mtpd_cache('picture', whole, '--out', tmp_path / 'sheet.png', *options)
    assert f'image {image_id}, 3 levels' in result.stdout
    sheet = pixels(tmp_path / 'sheet.png')
    # The network's input is in it.
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100
    mtpd_cache('picture', whole, '--out', tmp_path / 'maps.png', '--image', image_id)
    mtpd_cache('picture', whole, '--out', tmp_path / 'flip.png', '--image', image_id, '--view', 'flip')
    maps, flip = pixels(tmp_path / 'maps.png'), pixels(tmp_path / 'flip.png')
    assert flip.shape[1] < maps.shape[1] == sheet.shape[1]
    assert flip.shape[0] == maps.shape[0] < sheet.shape[0]
    # Below the input the sheet is the same.
    tail = maps.shape[0] // 2
    assert np.array_equal(sheet[-tail:], maps[-tail:])


def test_names_as_coco_gives_them(mtpd_cache: Run, whole: Path, tmp_path: Path) -> None:
    cache = mtpd.cache.open(whole)
    image_id = cache.image_ids[0]
    error = mtpd_cache('picture', whole, '--out', tmp_path / 'a.png', '--images', tmp_path, code=1).stderr
    assert f'has no {image_id:012d}.jpg; give --annotations' in error
    height, width = cache.sizes(image_id).original
    Image.new('RGB', (width, height), (200, 30, 40)).save(tmp_path / f'{image_id:012d}.jpg')
    mtpd_cache('picture', whole, '--out', tmp_path / 'a.png', '--images', tmp_path)
    red = pixels(tmp_path / 'a.png').astype(int)
    assert (np.abs(red - (200, 30, 40)).max(-1) < 8).sum() > 10_000


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--out', '{}/sheet.jpg'], 'the picture is a PNG file'),
        (['--out', '{}/no/file.png/sheet.png', '--image', '1234567'], 'image 1234567 is not among its 24 images'),
        (['--out', '/dev/null/sheet.png'], 'cannot be written'),
    ],
)
def test_refusals(mtpd_cache: Run, whole: Path, tmp_path: Path, options: list[str], message: str) -> None:
    error = mtpd_cache('picture', whole, *[option.format(tmp_path) for option in options], code=1).stderr
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_view_that_is_not_stored(mtpd_cache: Run, command: Run, tmp_path: Path) -> None:
    command.run(tmp_path / 'cache', '--limit', 1, '--views', 'plain')  # type: ignore[attr-defined]
    error = mtpd_cache('picture', tmp_path / 'cache', '--out', tmp_path / 'a.png', '--view', 'flip', code=1).stderr
    assert 'holds the views plain, not flip' in error


def test_an_annotation_file_needs_the_folder(mtpd_cache: Run, whole: Path, tmp_path: Path) -> None:
    options = ['--out', tmp_path / 'a.png', '--annotations', 'instances.json']
    assert '--annotations requires --images' in mtpd_cache('picture', whole, *options, code=2).stderr
