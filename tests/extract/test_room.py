"""`mtpd-extract` foretells what it takes of the disk, and refuses what does not fit before it writes anything."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtpd.cache.writing.writer import CacheWriter, ShardGroup
from mtpd_extract import estimate

Contents = Callable[[Path], dict[str, bytes]]


def test_dry_run_writes_nothing_and_bounds_what_is_written(
    command: Any, tmp_path: Path, many_shards: Any, contents: Contents
) -> None:
    out = tmp_path / 'deep' / 'cache'
    for options in (('--limit', 7), ('--codec', 'fp16', *many_shards), ('--views', 'plain', '--levels', 'p5')):
        result = command.run(out, '--dry-run', *options)
        assert not out.parent.exists()
        assert result.stderr == ''
        lines = result.stdout.splitlines()
        assert lines[-1] == 'Dry run: nothing was written.'
        assert f'images   {7 if "--limit" in options else 24} in ' in result.stdout
        bound = stated_bound(result.stdout)
        command.run(out, *options)
        # With the blocks of the file system and the folders.
        written = sum(path.lstat().st_blocks * 512 for path in out.rglob('*'))
        assert 0.05 * bound < written <= bound
        shutil.rmtree(out.parent)


def test_the_bound_is_close_for_large_maps(
    make_command: Any, noise_teacher: str, synthetic_set: Path, tmp_path: Path
) -> None:
    """The tiny maps of the other tests drown in blocks of the file system; here the codes are what counts."""
    command = make_command(noise_teacher, synthetic_set, ['--limit', 6])
    bound = stated_bound(command.run(tmp_path / 'cache', '--dry-run').stdout)
    command.run(tmp_path / 'cache')
    written = sum(path.lstat().st_blocks * 512 for path in (tmp_path / 'cache').rglob('*'))
    assert 0.9 * bound < written <= bound


def stated_bound(stdout: str) -> float:
    """The bytes that the summary states as the most."""
    (disk,) = [line.split() for line in stdout.splitlines() if line.startswith('disk')]
    assert disk[:3] == ['disk', 'at', 'most']
    return float(disk[3]) * {'kB,': 1e3, 'MB,': 1e6}[disk[4]]


def set_free_bytes(monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    """The one thing that a test cannot have: a small disk."""
    monkeypatch.setattr(estimate, 'free_bytes', lambda _: int(estimate.MARGIN_BYTES + num_bytes))


@pytest.mark.parametrize('dry_run', [(), ('--dry-run',)])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: tuple[str, ...]
) -> None:
    bound = stated_bound(command.run(tmp_path / 'cache', '--dry-run').stdout)
    set_free_bytes(monkeypatch, 0.8 * bound)
    assert 'free; store fewer levels (--levels)' in command.error(tmp_path / 'cache', *dry_run)
    assert not (tmp_path / 'cache').exists()
    # The advice helps.
    command.run(tmp_path / 'cache', '--views', 'plain', *dry_run)


def test_what_fits_by_a_trial_is_not_refused(
    make_command: Any, noise_teacher: str, synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of `lean` take a fraction of what is possible."""
    command = make_command(noise_teacher, synthetic_set, ['--codec', 'lean', '--error', '0.1', '--limit', 6])
    bound = stated_bound(command.run(tmp_path / 'cache', '--dry-run').stdout)
    set_free_bytes(monkeypatch, 0.1 * bound)
    assert 'estimated from a few images, with a margin' in command.error(tmp_path / 'cache')
    assert not (tmp_path / 'cache').exists()
    set_free_bytes(monkeypatch, 0.6 * bound)
    result = command.run(tmp_path / 'cache')
    assert result.stderr.count('are needed (estimated from a few images, with a margin)') == 2
    assert sum(path.lstat().st_blocks * 512 for path in (tmp_path / 'cache').rglob('*')) < 0.6 * bound


def test_room_for_the_rest_is_enough_to_go_on(
    command: Any, tmp_path: Path, many_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / 'cache', []

    def stop_after_five(writer: CacheWriter, group: ShardGroup) -> int:
        written.append(group)
        if len(written) > 5:
            raise KeyboardInterrupt
        return commit(writer, group)

    commit = CacheWriter.commit
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, 'commit', stop_after_five)
        assert command.invoke(out, *many_shards).exit_code == 130
    bound = stated_bound(command.run(out, '--dry-run', *many_shards).stdout)
    set_free_bytes(monkeypatch, 0.05 * bound)
    assert 'free; store fewer levels' in command.error(out, *many_shards)
    set_free_bytes(monkeypatch, 0.5 * bound)
    command.run(out, *many_shards)
    set_free_bytes(monkeypatch, 0)
    command.run(out, *many_shards)
