"""Parts that wrote folders of their own become one cache, equal to that of a single process."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Contents = Callable[[Path], dict[str, bytes]]
Run = Callable[..., Result]


@pytest.fixture(scope='module')
def single(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: Any) -> Path:
    """The cache of one process."""
    out = tmp_path_factory.mktemp('single') / 'cache'
    command.run(out, *many_shards)
    return Path(out)


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: Any) -> list[Path]:
    """What three parts wrote, each into its own folder. Not to be changed."""
    folders = [tmp_path_factory.mktemp('parts') / f'part{number}' for number in (1, 2, 3)]
    for number, folder in enumerate(folders, start=1):
        command.run(folder, *many_shards, '--part', f'{number}/3')
    return folders


@pytest.fixture
def parts(written: list[Path], tmp_path: Path) -> list[Path]:
    """Copies that may be changed."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in written]


def test_folders_are_joined(
    mtpd_cache: Run, parts: list[Path], single: Path, tmp_path: Path, contents: Contents
) -> None:
    before = [contents(part) for part in parts]
    result = mtpd_cache('merge', '--out', tmp_path / 'cache', *parts)
    assert result.stdout.startswith(f'{tmp_path / "cache"}: 24 images in 8 shards, ')
    assert contents(tmp_path / 'cache') == contents(single)
    assert [contents(part) for part in parts] == before
    assert 'sound' in mtpd_cache('verify', tmp_path / 'cache').stdout
    # Linked, not copied.
    file = next(parts[0].glob('*/plain/p3/c/0/0/0/0'))
    assert (tmp_path / 'cache' / file.relative_to(parts[0])).samefile(file)


def test_onto_another_file_system(mtpd_cache: Run, parts: list[Path], single: Path, contents: Contents) -> None:
    shared_memory = Path('/dev/shm')
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == parts[0].stat().st_dev:
        pytest.skip('there is no second file system')
    out = shared_memory / f'mtpd-merge-{os.getpid()}'
    try:
        mtpd_cache('merge', '--out', out, *parts)
        assert contents(out) == contents(single)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_a_merge_that_was_killed_goes_on(
    mtpd_cache: Run, parts: list[Path], single: Path, tmp_path: Path, contents: Contents
) -> None:
    out = tmp_path / 'cache'
    mtpd_cache('merge', '--out', out, *parts)
    # As after a kill: half of the journal, some files, no manifest.
    (out / 'manifest.json').unlink()
    for name in ('plan.json', 'journal.1-of-3.jsonl'):
        shutil.copy(parts[0] / name, out / name)
    (out / '128x128/plain/p3/c/1/0/0/0').unlink()
    (out / '128x128/plain/.tmp--0-0').write_bytes(b'')
    mtpd_cache('merge', '--out', out, *parts)
    assert contents(out) == contents(single)


def test_a_missing_part_is_named(mtpd_cache: Run, parts: list[Path], tmp_path: Path) -> None:
    error = mtpd_cache('merge', '--out', tmp_path / 'cache', *parts[:2], code=1).stderr.splitlines()[-1]
    assert '2 of 8 shards (the first is ' in error
    assert ' are missing from the 2 folders' in error


def test_a_damaged_file_is_named(mtpd_cache: Run, parts: list[Path], tmp_path: Path) -> None:
    file = next(parts[1].glob('*/flip/p4/c/*/0/0/0'))
    content = bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(content)
    error = mtpd_cache('merge', '--out', tmp_path / 'cache', *parts, code=1).stderr.splitlines()[-1]
    assert f'{file}: is missing or differs from what was written' in error
    assert not (tmp_path / 'cache' / 'manifest.json').exists()


def test_a_damaged_index_is_taken_from_another_part(
    mtpd_cache: Run, parts: list[Path], single: Path, tmp_path: Path, contents: Contents
) -> None:
    (parts[0] / 'teacher.safetensors').write_bytes(b'?')
    (parts[1] / 'index/row/c/0').unlink()
    mtpd_cache('merge', '--out', tmp_path / 'cache', *parts)
    assert contents(tmp_path / 'cache') == contents(single)


def test_parts_of_another_extraction(
    mtpd_cache: Run, command: Any, parts: list[Path], many_shards: Any, tmp_path: Path
) -> None:
    command.run(tmp_path / 'other', *many_shards, '--part', '3/3', '--codec', 'fp16')
    error = mtpd_cache('merge', '--out', tmp_path / 'cache', *parts[:2], tmp_path / 'other', code=1).stderr
    assert f'{tmp_path / "other"}: is not a part of the same extraction as {parts[0]}: codec is fp16' in error
    assert not (tmp_path / 'cache').exists()


def test_places_that_will_not_do(mtpd_cache: Run, parts: list[Path], single: Path, tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').touch()
    for out, message in (
        (parts[0], 'is one of the parts'),
        (single, 'holds a finished cache'),
        (tmp_path / 'mine', 'holds thesis.tex but no cache'),
    ):
        assert message in mtpd_cache('merge', '--out', out, *parts, code=1).stderr
    out = tmp_path / 'cache'
    assert 'is a finished cache, not a part' in mtpd_cache('merge', '--out', out, *parts, single, code=1).stderr
    assert 'no extraction here' in mtpd_cache('merge', '--out', out, tmp_path / 'none', code=1).stderr
    assert 'give --out' in mtpd_cache('merge', *parts, code=2).stderr


def test_lean_parts_need_one_basis(
    mtpd_cache: Run, command: Any, many_shards: Any, tmp_path: Path, contents: Contents
) -> None:
    parts = [tmp_path / 'part1', tmp_path / 'part2']
    options = (*many_shards, '--codec', 'lean')
    for number, part in enumerate(parts, start=1):
        command.run(part, *options, '--part', f'{number}/2')
    mtpd_cache('merge', '--out', tmp_path / 'cache', *parts)
    assert 'sound' in mtpd_cache('verify', tmp_path / 'cache').stdout
    shutil.rmtree(parts[1])
    # As on another machine, whose arithmetic gave other rotations.
    import mtpd.cache
    from mtpd.cache.format.tensor_files import BASIS_FILE, plan_of_basis, save_basis

    bases = {name: -basis for name, basis in mtpd.cache.open(tmp_path / 'cache').bases.items()}
    parts[1].mkdir()
    command.run(parts[1], *options, '--part', '1/2')
    plan = plan_of_basis((parts[1] / BASIS_FILE).read_bytes())
    assert plan is not None
    (parts[1] / BASIS_FILE).write_bytes(save_basis(bases, plan=plan))
    (parts[1] / 'journal.1-of-2.jsonl').unlink()
    command.run(parts[1], *options, '--part', '2/2')
    error = mtpd_cache('merge', '--out', tmp_path / 'again', *parts, code=1).stderr
    assert f'{parts[1]}: its {BASIS_FILE} differs from that of {parts[0]}; copy the latter over it and run' in error
    shutil.copy(parts[0] / BASIS_FILE, parts[1])
    command.run(parts[1], *options, '--part', '2/2')
    mtpd_cache('merge', '--out', tmp_path / 'again', *parts)
    assert contents(tmp_path / 'again') == contents(tmp_path / 'cache')


def test_a_cache_in_place(mtpd_cache: Run, parts: list[Path], single: Path, tmp_path: Path, contents: Contents) -> None:
    """As when the last part was killed just before it published."""
    root = tmp_path / 'cache'
    mtpd_cache('merge', '--out', root, *parts)
    (root / 'manifest.json').unlink()
    for number, part in enumerate(parts, start=1):
        shutil.copy(part / f'journal.{number}-of-3.jsonl', root)
    shutil.copy(parts[0] / 'plan.json', root)
    (root / 'index' / '.tmp-2-of-3-0-zarr.json').touch()
    assert '24 images in 8 shards' in mtpd_cache('merge', root).stdout
    assert contents(root) == contents(single)
    assert '24 images in 8 shards' in mtpd_cache('merge', root).stdout


def test_a_cache_in_place_that_lacks_shards(mtpd_cache: Run, parts: list[Path]) -> None:
    error = mtpd_cache('merge', parts[1], code=1).stderr
    assert f'{parts[1]}: 5 of 8 shards (the first is ' in error
    assert (parts[1] / 'plan.json').exists()
