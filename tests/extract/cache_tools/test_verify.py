"""`mtpd-cache verify` finds every damage; repaired and extracted again, the cache is what it was."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import mtpd.cache
from mtpd.errors import CacheError

Run = Callable[..., Result]
Contents = Callable[[Path], dict[str, bytes]]
Damage = Callable[[Path], object]


def flip_bit(path: Path, *, at: int = 10) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def flip_bits(*paths: Path) -> None:
    for path in paths:
        flip_bit(path)


def swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


P3, P5_FLIP = '128x128/plain/p3/c/0/0/0/0', '128x128/flip/p5/c/1/0/0/0'
SHARD_0, SHARD_1 = '128x128 shard 0', '128x128 shard 1'

# What is done to a cache -> the places that are named, and the shard groups that are extracted again.
SHARD_DAMAGES: dict[str, tuple[Damage, set[str]]] = {
    'a bit in a chunk': (lambda c: flip_bit(c / P3), {SHARD_0}),
    'a bit in the index of a shard': (lambda c: flip_bit(c / P3, at=-7), {SHARD_0}),
    'a bit in a scale': (lambda c: flip_bit(c / '128x128/plain/p4.scale/c/1/0/0'), {SHARD_1}),
    'a bit in a checksum': (lambda c: flip_bit(c / '128x128/plain/crc32c/c/1/0'), {SHARD_1}),
    'a truncated shard': (lambda c: os.truncate(c / P5_FLIP, 30), {SHARD_1}),
    'an empty file': (lambda c: os.truncate(c / '128x128/flip/image_id/c/0', 0), {SHARD_0}),
    'a deleted shard': (lambda c: (c / P3).unlink(), {SHARD_0}),
    'a deleted array': (lambda c: shutil.rmtree(c / '128x96/flip/p3/c'), {'128x96 shard 0', '128x96 shard 1'}),
    'swapped shards': (lambda c: swap(c / P3, c / '128x128/plain/p3/c/1/0/0/0'), {SHARD_0, SHARD_1}),
    'several': (lambda c: flip_bits(c / P3, c / P5_FLIP), {SHARD_0, SHARD_1}),
}
OTHER_DAMAGES: dict[str, tuple[Damage, set[str]]] = {
    'a bit in the index': (lambda c: flip_bit(c / 'index/image_id/c/0'), {'index/image_id/c/0'}),
    'a deleted index': (lambda c: (c / 'index/row/c/0').unlink(), {'index/row/c/0'}),
    'teacher weights': (lambda c: flip_bit(c / 'teacher.safetensors'), {'teacher.safetensors'}),
    'index and shard': (
        lambda c: flip_bits(c / 'index/image_id/c/0', c / P3),
        {'index/image_id/c/0', SHARD_0},
    ),
}


def groups(places: set[str]) -> set[str]:
    """The shard groups among places, as `bucket/shard`."""
    return {place.replace(' shard ', '/') for place in places if ' shard ' in place}


def named(lines: list[str]) -> set[str]:
    """The places that indented lines name."""
    return {line.strip().split(': ')[0] for line in lines if line.startswith('  ')}


def times(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()}


def test_a_sound_cache(mtpd_cache: Run, sharded: Path, whole: Path) -> None:
    before = times(sharded)
    result = mtpd_cache('verify', sharded, whole)
    first, second = result.stdout.splitlines()
    assert first.startswith(f'{sharded}: sound; 24 images in 8 shards, ')
    assert second.startswith(f'{whole}: sound; 24 images in 3 shards, ')
    assert 'B/s]' in result.stderr
    assert times(sharded) == before


@pytest.mark.parametrize('name', [*SHARD_DAMAGES, *OTHER_DAMAGES])
def test_damage_repair_extract(
    mtpd_cache: Run, command: Any, many_shards: Any, cache: Path, sharded: Path, contents: Contents, name: str
) -> None:
    damage, places = (SHARD_DAMAGES | OTHER_DAMAGES)[name]
    damage(cache)
    before = times(cache)
    error = mtpd_cache('verify', cache, code=1).stderr.split('Error: ')[1].splitlines()
    assert named(error) == places
    assert 'repair with mtpd-cache verify --repair' in error[0]
    assert times(cache) == before

    repaired = mtpd_cache('verify', cache, '--repair').stdout.splitlines()
    assert named(repaired) == places
    again = groups(places)
    assert f'it extracts {len(again)} of 8 shards' in repaired[-1]
    with pytest.raises(CacheError, match='run the same mtpd-extract or mtpd-cache copy command again'):
        mtpd.cache.open(cache)
    result = command.run(cache, *many_shards)
    assert 'warning' not in result.stderr
    assert contents(cache) == contents(sharded)
    # Nothing else was written again.
    after = times(cache)
    written = {file for file in after if after[file] != before.get(file)}
    heads = {file for file in written if '/c/' not in file or file.startswith('index/')} - {'manifest.json'}
    assert {'/'.join(file.split('/')[i] for i in (0, 4)) for file in written - heads - {'manifest.json'}} == again
    assert {file for file in heads if not file.startswith('.lock')} == places - {p for p in places if ' shard ' in p}
    assert 'sound' in mtpd_cache('verify', cache).stdout


@pytest.mark.parametrize(
    ('damage', 'place', 'reason'),
    [
        (lambda c: (c / '128x128/plain/p3/zarr.json').unlink(), '128x128/plain/p3/zarr.json', 'is missing'),
        (lambda c: (c / 'zarr.json').write_text('{'), 'zarr.json', 'not valid JSON'),
        (
            lambda c: edit_json(c / '128x128/flip/p4/zarr.json', shape=[9, 9]),
            '128x128/flip/p4/zarr.json',
            'states shape',
        ),
        (lambda c: edit_json(c / 'index/row/zarr.json', codecs=[{'name': 'pickle'}]), 'index/row/zarr.json', 'codecs'),
    ],
)
def test_metadata_that_others_would_believe(
    mtpd_cache: Run, cache: Path, sharded: Path, contents: Contents, damage: Damage, place: str, reason: str
) -> None:
    damage(cache)
    error = mtpd_cache('verify', cache, code=1).stderr
    assert f'\n  {place}: ' in error
    assert reason in error
    assert 'rewritten' in mtpd_cache('verify', cache, '--repair').stdout
    assert contents(cache) == contents(sharded)


def test_strays_are_named_and_left(mtpd_cache: Run, cache: Path) -> None:
    strays = {'128x128/plain/p3/c/9/0/0/0', 'index/notes.txt', '32x32/plain/p3/zarr.json', '128x96/.tmp-1-x'}
    for name in strays:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).touch()
    before = times(cache)
    for options in ((), ('--repair',)):
        error = mtpd_cache('verify', cache, *options, code=1).stderr.split('Error: ')[1].splitlines()
        assert named(error) == strays
        assert '4 files that are not part of the cache' in error[0]
    assert {file: time for file, time in times(cache).items() if not file.startswith('.lock')} == before
    # They harm nobody.
    mtpd.cache.open(cache)


def test_a_damaged_manifest_cannot_be_repaired(mtpd_cache: Run, cache: Path, contents: Contents) -> None:
    flip_bit(cache / 'manifest.json', at=2000)
    before = contents(cache)
    for options in ((), ('--repair',)):
        error = mtpd_cache('verify', cache, *options, code=1).stderr
        assert 'restore a copy of manifest.json, or extract again with --overwrite' in error
        assert len(error.splitlines()) == 1
    assert contents(cache) == before


def test_several_caches(mtpd_cache: Run, cache: Path, sharded: Path) -> None:
    flip_bit(cache / P3)
    other = cache.with_name('other')
    shutil.copytree(sharded, other)
    (other / 'manifest.json').write_text('{')
    result = mtpd_cache('verify', cache, sharded, other, code=1)
    assert result.stdout.startswith(f'{sharded}: sound')
    error = result.stderr.split('Error: ')[1].splitlines()
    assert error[0] == '2 of 3 caches are not sound'
    assert error[1].startswith(f'  {cache}: 1 of 8 shards damaged')
    assert error[2].startswith(f'    {SHARD_0}: {P3}: ')
    assert error[3].startswith(f'  {other}/manifest.json: not valid JSON')


def test_no_cache(mtpd_cache: Run, tmp_path: Path) -> None:
    for options in ((), ('--repair',)):
        assert 'no cache here' in mtpd_cache('verify', tmp_path, *options, code=1).stderr
        assert 'no cache here' in mtpd_cache('verify', tmp_path / 'none', *options, code=1).stderr


def test_an_unfinished_cache(
    mtpd_cache: Run, command: Any, many_shards: Any, cache: Path, sharded: Path, contents: Contents
) -> None:
    """Made so by a repair: its first shard is not committed."""
    flip_bit(cache / P3)
    mtpd_cache('verify', cache, '--repair')
    (cache / '128x128/plain/.tmp-1-p3').touch()
    result = mtpd_cache('verify', cache)
    assert 'sound; 7 of 8 shards are committed' in result.stdout
    flip_bit(cache / P5_FLIP)
    error = mtpd_cache('verify', cache, code=1).stderr.split('Error: ')[1].splitlines()
    assert named(error) == {SHARD_1}
    assert 'it extracts 2 of 8 shards' in mtpd_cache('verify', cache, '--repair').stdout
    assert 'sound; 6 of 8 shards are committed' in mtpd_cache('verify', cache).stdout
    command.run(cache, *many_shards)
    assert contents(cache) == contents(sharded)


@pytest.mark.parametrize('is_finished', [True, False], ids=['finished', 'unfinished'])
@pytest.mark.parametrize('damage', [flip_bit, Path.unlink], ids=['bit', 'deleted'])
def test_rotations_of_lean(
    mtpd_cache: Run, command: Any, tmp_path: Path, contents: Contents, damage: Damage, is_finished: bool
) -> None:
    """No stored map means anything without them."""
    options, root = ['--codec', 'lean', '--limit', 6, '--shard-mb', '0.01'], tmp_path / 'cache'
    command.run(root, *options)
    before = contents(root)
    assert 'sound' in mtpd_cache('verify', root).stdout
    if not is_finished:
        flip_bit(root / P3)
        mtpd_cache('verify', root, '--repair')
    damage(root / 'basis.safetensors')
    if not is_finished and damage == flip_bit:
        assert 'basis.safetensors' in command.error(root, *options)
    assert '\n  basis.safetensors: ' in mtpd_cache('verify', root, code=1).stderr
    num_shards = int(mtpd_cache('verify', root, '--repair').stdout.split(' shards, repairs')[0].split()[-1])
    assert num_shards > 1
    assert f'0 of {num_shards} shards' in mtpd_cache('verify', root).stdout
    command.run(root, *options)
    assert contents(root) == before


def test_parts_of_an_extraction(
    mtpd_cache: Run, command: Any, many_shards: Any, tmp_path: Path, sharded: Path, contents: Contents
) -> None:
    """Each part has a journal; a repair makes one of them."""
    root = tmp_path / 'cache'
    command.run(root, *many_shards, '--part', '1/3')
    command.run(root, *many_shards, '--part', '3/3')
    assert 'sound; 5 of 8 shards are committed' in mtpd_cache('verify', root).stdout
    flip_bits(root / P3, root / 'teacher.safetensors')
    error = mtpd_cache('verify', root, code=1).stderr.split('Error: ')[1].splitlines()
    assert named(error) == {SHARD_0, 'teacher.safetensors'}
    assert 'it extracts 4 of 8 shards' in mtpd_cache('verify', root, '--repair').stdout
    assert [path.name for path in root.glob('journal*')] == ['journal.jsonl']
    for part in ('2/3', '3/3'):
        command.run(root, *many_shards, '--part', part)
    assert contents(root) == contents(sharded)
