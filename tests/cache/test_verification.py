"""Whatever bit of a cache changes, verification finds it and names the shard group that it is in."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mtpd.cache.checking.state import read_state
from mtpd.cache.checking.verification import Damage, verify
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


def test_a_sound_cache_with_rois(sound: Path) -> None:
    assert find_damages(sound) == []


@pytest.mark.parametrize('array', ['image_id', 'num_rois', 'crc32c', 'boxes', 'probabilities', 'labels', 'deltas'])
def test_any_bit_of_the_rois(sound: Path, array: str) -> None:
    for path in sorted((sound / 'heads').glob(f'*/{array}/c/**/*')):
        if path.is_file():
            with flipped_bit(path, random.Random(0)):
                (damage,) = find_damages(sound)
            file = path.relative_to(sound).as_posix()
            place = file_place(file)
            assert place is not None
            assert (damage.kind, damage.file, damage.key) == ('shard', file, place.key)


@pytest.fixture(scope='module')
def sound(tmp_path_factory: pytest.TempPathFactory, with_rois: Any) -> Path:
    """A cache with proposals, for tests that put back what they change."""
    root = tmp_path_factory.mktemp('sound') / 'cache'
    with_rois.write(root)
    return root


@contextmanager
def flipped_bit(path: Path, generator: random.Random) -> Iterator[bytes]:
    """Flips a bit and gives the byte that it was in; flips it back on leaving."""
    content = path.read_bytes()
    old = flip_bit(path, generator)
    try:
        yield old
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize('seed', range(60))
def test_any_bit_of_any_file(sound: Path, seed: int) -> None:
    generator = random.Random(seed)
    # Every part of a cache comes up, the metadata too.
    files = sorted(path for path in sound.rglob('*') if path.is_file() and path.stat().st_size)
    path = generator.choice([path for path in files if path.name != 'manifest.json' and path.name[0] != '.'])
    file = path.relative_to(sound).as_posix()
    with flipped_bit(path, generator) as byte:
        damages = find_damages(sound)
    if path.name == 'zarr.json':
        # A space that has become another blank says the same.
        assert {(damage.kind, damage.file) for damage in damages} <= {('metadata', file)}
        assert damages or not byte.strip()
        return
    place = file_place(file)
    assert {damage.key for damage in damages} == {None if place is None else place.key}
    assert {damage.kind for damage in damages} == {'head' if place is None else 'shard'}
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
    damages = verify(type(mine)(cache_root, True, manifest, mine.committed), num_threads=2, advance=lambda _: None)
    assert damages
    assert all('image' in damage.file and 'the index states' in damage.reason for damage in damages)
