"""The teacher's proposals in a cache: written with its shard groups, resumed, merged and repaired like these."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.cache.checking import read_state, repair, verify
from mtpd.cache.format.arrays import RoisRecord
from mtpd.cache.format.manifest import write_manifest
from mtpd.cache.format.plan import SourceImage
from mtpd.cache.writing.merge import merge_parts
from mtpd.cache.writing.parts import Part
from mtpd.errors import CacheDamagedError, CacheMismatchError, InputError
from mtpd_extract.cache_tools.info import describe_cache
from stress.damages import contents


@pytest.fixture
def whole(tmp_path: Path, sound_with_rois: Path) -> Path:
    return Path(shutil.copytree(sound_with_rois, tmp_path / 'whole'))


def test_caches_without_say_so(cache_root: Path) -> None:
    assert mtpd.cache.open(cache_root).manifest.description.rois is None
    assert b'rois' not in (cache_root / 'manifest.json').read_bytes()
    assert not (cache_root / 'heads').exists()
    with pytest.raises(CacheMismatchError, match='extract it with --rois'):
        mtpd.cache.open(cache_root).rois(100)


def test_an_unknown_image(whole: Path) -> None:
    with pytest.raises(CacheMismatchError, match='not among its'):
        mtpd.cache.open(whole).rois(5)


@pytest.mark.parametrize('num_groups', range(0, 7, 2))
def test_resumed_after_any_group_it_is_the_same(tmp_path: Path, whole: Path, with_rois: Any, num_groups: int) -> None:
    with_rois.write(tmp_path / 'cache', num_groups=num_groups)
    with_rois.write(tmp_path / 'cache')
    assert contents(tmp_path / 'cache') == contents(whole)


def test_a_group_whose_rois_were_lost_is_written_again(tmp_path: Path, whole: Path, with_rois: Any) -> None:
    with_rois.write(tmp_path / 'cache', num_groups=3)
    (tmp_path / 'cache/heads/64x96/deltas/c/1/0/0').unlink()
    with with_rois.writer(tmp_path / 'cache') as writer:
        assert ('64x96', 1) in writer.pending()
    with_rois.write(tmp_path / 'cache')
    assert contents(tmp_path / 'cache') == contents(whole)


def test_parts_make_one_cache(tmp_path: Path, whole: Path, with_rois: Any) -> None:
    for index in (1, 2):
        with_rois.write(tmp_path / str(index), part=Part(index, 2))
    merge_parts([tmp_path / '1', tmp_path / '2'], tmp_path / 'merged', advance=lambda _: None)
    assert contents(tmp_path / 'merged') == contents(whole)


@pytest.mark.parametrize('rois', [None, RoisRecord(num_rois=4, num_classes=3), RoisRecord(num_rois=5, num_classes=4)])
def test_other_rois_are_another_extraction(
    tmp_path: Path, with_rois: Any, make_recipe: Callable[..., Any], rois: RoisRecord | None
) -> None:
    with_rois.write(tmp_path / 'cache', num_groups=1)
    with pytest.raises(CacheMismatchError, match='rois'), make_recipe(rois=rois).writer(tmp_path / 'cache'):
        pass
    make_recipe(rois=rois).write(tmp_path / 'other', num_groups=1)
    with pytest.raises(CacheMismatchError, match='rois'), with_rois.writer(tmp_path / 'other'):
        pass


def test_repaired(whole: Path, with_rois: Any) -> None:
    before = contents(whole)
    path = whole / 'heads/96x64/labels/c/0/0'
    path.write_bytes(b'\x01' + path.read_bytes()[1:])
    state = read_state(whole)
    damages = verify(state, num_threads=1, advance=lambda _: None)
    assert [damage.key for damage in damages] == [('96x64', 0)]
    assert repair(state, damages).num_queued == 1
    with_rois.write(whole)
    assert contents(whole) == before


def test_strays_among_the_rois(whole: Path) -> None:
    (whole / 'heads/64x96/boxes/c/99').mkdir()
    (whole / 'heads/64x96/boxes/c/99/0').write_bytes(b'')
    (damage,) = verify(read_state(whole), num_threads=1, advance=lambda _: None)
    assert (damage.kind, damage.file) == ('stray', 'heads/64x96/boxes/c/99/0')


def test_they_are_counted_apart(whole: Path, cache_root: Path) -> None:
    with_rois, without = (describe_cache(read_state(root))['bytes'] for root in (whole, cache_root))
    files = [path for path in (whole / 'heads').rglob('*') if path.is_file() and path.name != 'zarr.json']
    assert with_rois['rois'] == sum(path.stat().st_size for path in files)
    assert without['rois'] == 0
    assert with_rois['row_tables'] == without['row_tables']


def test_another_cache_under_the_same_manifest(tmp_path: Path, whole: Path, make_recipe: Callable[..., Any]) -> None:
    """As a writer with an error in it would leave it: every hash is right, and rows belong to other images."""
    recipe = make_recipe(rois=RoisRecord(num_rois=5, num_classes=3))
    images = list(recipe.images)
    images[1], images[2] = images[2], images[1]
    make_recipe(rois=recipe.rois, images=images).write(tmp_path / 'other')
    state, other = read_state(whole), read_state(tmp_path / 'other')
    mixed = dict(state.manifest.files)
    for file, record in other.manifest.files.items():
        if file.startswith('heads/'):
            (whole / file).write_bytes((tmp_path / 'other' / file).read_bytes())
            mixed[file] = record
    write_manifest(whole, state.manifest.model_copy(update={'files': mixed}))
    cache = mtpd.cache.open(whole)
    refused = 0
    for image in recipe.images:
        try:
            assert torch.equal(cache.rois(image.image_id).boxes, recipe.rois_of(image).boxes)
        except CacheDamagedError:
            refused += 1
    assert refused >= 2


@pytest.mark.parametrize(
    ('column', 'value', 'problem'),
    [
        ('boxes', math.nan, 'not finite'),
        ('deltas', math.inf, 'not finite'),
        ('labels', 3, 'outside its 3 classes'),
        ('labels', -1, 'outside its 3 classes'),
        ('probabilities', 1.5, 'outside 0 to 1'),
        ('boxes', [9.0, 9.0, 1.0, 1.0], 'swapped corners'),
    ],
)
def test_values_that_no_teacher_means_are_not_stored(
    tmp_path: Path, with_rois: Any, column: str, value: Any, problem: str
) -> None:
    with with_rois.writer(tmp_path / 'cache') as writer:
        key = writer.pending()[0]
        group = writer.start_group(key)
        image = next(one for one in writer.plan.images(key) if one.image_id % 6)
        rois = with_rois.rois_of(image)
        getattr(rois, column)[0] = torch.tensor(value)
        with pytest.raises(InputError, match=problem):
            group.append_rois([rois])


def test_more_probabilities_than_a_reader_takes(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe(rois=RoisRecord(num_rois=4096, num_classes=2048))
    with pytest.raises(InputError, match='4096 proposals of 2048 classes'), recipe.writer(tmp_path / 'cache'):
        pass


def test_rois_that_would_make_a_file_too_large(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    images = [SourceImage(number, (64, 96)) for number in range(9)]
    rois = RoisRecord(num_rois=4096, num_classes=2**14)
    recipe = make_recipe(rois=rois, images=images, shard_bytes=10**6)
    with pytest.raises(InputError, match='lower --rois or --shard-mb'), recipe.writer(tmp_path / 'cache'):
        pass
