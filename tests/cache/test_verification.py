"""Whatever bit of a cache changes, verification finds it and names the shard group that it is in."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtpd.cache.checking import Damage, read_state, verify
from mtpd.cache.format.arrays import file_place
from stress.damages import flip_bit


def find_damages(root: Path, *, num_threads: int = 2) -> list[Damage]:
    state = read_state(root)
    num_bytes: list[int] = []
    damages = verify(state, num_threads=num_threads, advance=num_bytes.append)
    assert sum(num_bytes) == sum(record.num_bytes for record in state.manifest.files.values())
    return damages


@pytest.mark.parametrize('codec', ['fp16', 'int8', 'lean'])
@pytest.mark.parametrize('num_threads', [0, 1, 3])
def test_a_sound_cache(tmp_path: Path, make_recipe: Callable[..., Any], codec: str, num_threads: int) -> None:
    make_recipe(codec=codec).write(tmp_path / 'cache')
    assert find_damages(tmp_path / 'cache', num_threads=num_threads) == []


def test_a_sound_cache_with_rois(sound_with_rois: Path) -> None:
    assert find_damages(sound_with_rois) == []


@pytest.fixture(scope='module')
def copy_with_rois(tmp_path_factory: pytest.TempPathFactory, sound_with_rois: Path) -> Path:
    """A cache with proposals, for tests that put back what they change."""
    return Path(shutil.copytree(sound_with_rois, tmp_path_factory.mktemp('copy') / 'cache'))


@pytest.mark.parametrize('array', ['image_id', 'num_rois', 'crc32c', 'boxes', 'probabilities', 'labels', 'deltas'])
def test_any_bit_of_the_rois(copy_with_rois: Path, array: str) -> None:
    for path in sorted((copy_with_rois / 'heads').glob(f'*/{array}/c/**/*')):
        if path.is_file():
            with flipped_bit(path, random.Random(0)):
                (damage,) = find_damages(copy_with_rois)
            file = path.relative_to(copy_with_rois).as_posix()
            place = file_place(file)
            assert place is not None
            assert (damage.kind, damage.file, damage.key) == ('shard', file, place.key)


@contextmanager
def flipped_bit(path: Path, generator: random.Random) -> Iterator[bytes]:
    """Flips a bit and gives the byte that it was in; flips it back on leaving."""
    content = path.read_bytes()
    old = flip_bit(path, generator)
    try:
        yield old
    finally:
        path.write_bytes(content)


def test_any_bit_of_any_file(copy_with_rois: Path) -> None:
    """Random bits of random files of every array, and of every file that belongs to none."""
    files: dict[str, list[Path]] = {}
    for path in sorted(copy_with_rois.rglob('*')):
        if path.is_file() and path.stat().st_size and path.name != 'manifest.json' and path.name[0] != '.':
            array = next((folder.parent.name for folder in path.parents if folder.name == 'c'), path.name)
            files.setdefault(array, []).append(path)
    assert {'p3', 'p4.scale', 'error', 'crc32c', 'boxes', 'row', 'zarr.json', 'teacher.safetensors'} <= files.keys()
    for seed, paths in enumerate([*files.values(), *files.values()]):
        generator = random.Random(seed)
        path = generator.choice(paths)
        file = path.relative_to(copy_with_rois).as_posix()
        with flipped_bit(path, generator) as byte:
            damages = find_damages(copy_with_rois)
        if path.name == 'zarr.json':
            # A space that has become another blank says the same.
            assert {(damage.kind, damage.file) for damage in damages} <= {('metadata', file)}
            assert damages or not byte.strip()
            continue
        place = file_place(file)
        assert {damage.key for damage in damages} == {None if place is None else place.key}, file
        assert {damage.kind for damage in damages} == {'head' if place is None else 'shard'}, file
        assert file in {damage.file for damage in damages}


def test_an_index_of_other_images_with_a_hash_of_its_own(cache_root: Path, make_recipe: Callable[..., Any]) -> None:
    """As a writer with an error in it would leave it: every hash is right, and rows belong to other images."""
    images = list(make_recipe().images)
    images[1], images[2] = images[2], images[1]
    other = cache_root.with_name('other')
    make_recipe(images=images).write(other)
    for root in (cache_root, other):
        assert find_damages(root) == []
    mine, state = read_state(cache_root), read_state(other)
    mixed = dict(mine.manifest.files)
    for file, record in state.manifest.files.items():
        if file.startswith('index/'):
            (cache_root / file).write_bytes((other / file).read_bytes())
            mixed[file] = record
    manifest = mine.manifest.model_copy(update={'files': mixed})
    damages = verify(replace(mine, manifest=manifest), num_threads=2, advance=lambda _: None)
    assert damages
    assert all('image' in damage.file and 'the index states' in damage.reason for damage in damages)
