"""Interrupted, killed, crowded out: the cache that comes of it equals an uninterrupted one, or does not open."""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mtpd.cache
from mtpd.cache.writing.journal import JOURNAL_FILE
from mtpd.errors import CacheMismatchError, InputError, UnavailableError
from stress.damages import contents, sign
from stress.processes import forked

# From Python 3.12 on; the child is careful, see `forked`.
pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')


@pytest.fixture(scope='module')
def complete(sound: Path) -> dict[str, bytes]:
    """Every file of an uninterrupted cache."""
    return contents(sound)


def test_a_finished_cache_holds_nothing_else(complete: dict[str, bytes]) -> None:
    assert not [name for name in complete if 'tmp' in name or 'journal' in name or 'plan' in name]


@pytest.mark.parametrize('num_groups', range(8))
def test_resume_after_any_group_gives_the_same_bytes(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes], num_groups: int
) -> None:
    make_recipe().write(tmp_path / 'cache', num_groups=num_groups)
    make_recipe().write(tmp_path / 'cache')
    assert contents(tmp_path / 'cache') == complete


def test_kill_9_at_random_moments_then_resume(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    generator = random.Random(0)
    killed_inside = 0
    for trial in range(4):
        root = tmp_path / f'cache{trial}'
        with forked(partial(make_recipe().write, root), tmp_path / 'stderr') as writer:
            while not (root / 'plan.json').exists() and writer.process.is_alive():
                time.sleep(0.001)
            time.sleep(generator.uniform(0.0, 0.1))
            writer.kill()
        killed_inside += not (root / 'manifest.json').exists()
        make_recipe().write(root)
        assert contents(root) == complete
    assert killed_inside, 'every kill came too late to test anything'


def test_a_torn_journal_line_is_written_again(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=3)
    journal = root / JOURNAL_FILE
    journal.write_bytes(journal.read_bytes()[:-20])
    make_recipe().write(root)
    assert contents(root) == complete


def test_a_lost_shard_is_written_again(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=3)
    (root / '64x96/plain/p3/c/1/0/0/0').unlink()
    make_recipe().write(root)
    assert contents(root) == complete


def test_a_full_disk_loses_nothing(tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]) -> None:
    root = tmp_path / 'cache'
    with forked(partial(make_recipe().write, root), tmp_path / 'stderr', file_size_limit=1200) as writer:
        code, errors = writer.wait()
    assert code == 1
    assert 'UnavailableError' in errors.splitlines()[-1]
    assert 'run the same command again' in errors.splitlines()[-1]
    assert not (root / 'manifest.json').exists()
    assert not list(root.rglob('.tmp-*'))
    make_recipe().write(root)
    assert contents(root) == complete


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / 'mounted'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('only root may mount a file system here')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


@pytest.mark.parametrize('num_groups', [0, 3])
def test_a_read_only_target(
    mounted: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes], num_groups: int
) -> None:
    root = mounted / 'cache'
    if num_groups:
        make_recipe().write(root, num_groups=num_groups)
    subprocess.run(['mount', '-o', 'remount,ro', mounted], check=True)
    with pytest.raises(UnavailableError, match='the file system is read-only; choose another --out'):
        make_recipe().write(root)
    subprocess.run(['mount', '-o', 'remount,rw', mounted], check=True)
    make_recipe().write(root)
    assert contents(root) == complete
    subprocess.run(['mount', '-o', 'remount,ro', mounted], check=True)
    mtpd.cache.open(root).read(100, 'flip')


@pytest.mark.parametrize(
    ('change', 'field'),
    [
        ({'fingerprint': {'weights': 'xyz'}}, 'fingerprint.weights is abc there and xyz here'),
        ({'codec': 'fp16'}, 'codec is int8 there and fp16 here'),
        ({'views': ('plain',)}, 'views'),
        ({'shard_bytes': 2000}, 'buckets'),
    ],
)
@pytest.mark.parametrize('num_groups', [2, None])
def test_another_extraction_is_refused(
    tmp_path: Path, make_recipe: Callable[..., Any], change: dict[str, object], field: str, num_groups: int | None
) -> None:
    make_recipe().write(tmp_path / 'cache', num_groups=num_groups)
    with pytest.raises(CacheMismatchError, match=field):
        make_recipe(**change).write(tmp_path / 'cache')


def test_a_folder_with_other_things_is_refused(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(CacheMismatchError, match=r'thesis\.tex'):
        make_recipe().write(tmp_path)


def test_a_second_writer_is_told_who_holds_the_cache(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe()
    with recipe.writer(tmp_path / 'cache'):
        with forked(partial(recipe.write, tmp_path / 'cache'), tmp_path / 'stderr') as second:
            code, errors = second.wait()
        assert code == 1
        assert f'process {os.getpid()} on' in errors.splitlines()[-1]
    recipe.write(tmp_path / 'cache')
    mtpd.cache.open(tmp_path / 'cache')


def test_shards_and_journal_of_another_teacher_are_written_again(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    root, other = tmp_path / 'cache', tmp_path / 'other'
    make_recipe().write(root, num_groups=1)
    make_recipe(fingerprint={'weights': 'xyz'}, bias=2.0).write(other, num_groups=4)
    # All but the plan, as an `rsync` of the wrong folder would bring it.
    for path in other.rglob('*'):
        if path.is_file() and path.name != 'plan.json':
            (root / path.relative_to(other)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path.relative_to(other))
    make_recipe().write(root)
    assert contents(root) == complete


@pytest.mark.parametrize('line', [b'null\n', b'[]\n', b'{}\n', b'[' * 100_000 + b'\n', b'{"digest": 1}\n', b'\xff\n'])
def test_a_journal_line_of_something_else_ends_what_counts(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes], line: bytes
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=3)
    lines = (root / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    (root / JOURNAL_FILE).write_bytes(b''.join([lines[0], line, *lines[1:]]))
    make_recipe().write(root)
    assert contents(root) == complete


@pytest.mark.parametrize('change', [{'bucket': ['64x96']}, {'plan': 1}])
def test_a_closed_journal_line_with_fields_of_other_types(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes], change: dict[str, Any]
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=3)
    content = json.loads((root / JOURNAL_FILE).read_bytes().splitlines()[0]) | change
    (root / JOURNAL_FILE).write_text(json.dumps(sign(content)) + '\n')
    make_recipe().write(root)
    assert contents(root) == complete


def test_a_kill_right_after_publishing_leaves_nothing_for_good(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=3)
    unfinished = {name: (root / name).read_bytes() for name in ('plan.json', JOURNAL_FILE)}
    make_recipe().write(root)
    for name, content in unfinished.items():
        (root / name).write_bytes(content)
    mtpd.cache.open(root)
    make_recipe().write(root)
    assert contents(root) == complete


def test_a_torn_zarr_json_is_written_again(
    tmp_path: Path, make_recipe: Callable[..., Any], complete: dict[str, bytes]
) -> None:
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=3)
    (root / 'zarr.json').write_bytes(b'{"zarr_format": 3, "node')
    (root / '64x96/plain/p3/zarr.json').write_bytes(b'')
    make_recipe().write(root)
    assert contents(root) == complete


def test_what_no_manifest_can_hold_is_refused_before_anything_is_written(
    tmp_path: Path, make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mtpd.cache.format.manifest.MAX_FILES', 50)
    with pytest.raises(InputError, match='increase --shard-mb'):
        make_recipe().write(tmp_path / 'cache')
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('codec', ['int8', 'fp16'])
def test_the_limit_of_files_is_exact(
    codec: str, tmp_path: Path, make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_recipe(codec=codec).write(tmp_path / 'cache')
    num_files = len(mtpd.cache.open(tmp_path / 'cache').manifest.files)
    # One more than there are: the rotations that only `lean` has.
    monkeypatch.setattr('mtpd.cache.format.manifest.MAX_FILES', num_files + 1)
    make_recipe(codec=codec).write(tmp_path / 'other')
    monkeypatch.setattr('mtpd.cache.format.manifest.MAX_FILES', num_files - 1)
    with pytest.raises(InputError, match='increase --shard-mb'):
        make_recipe(codec=codec).write(tmp_path / 'refused')


def test_folders_of_committed_groups_are_not_looked_into(
    tmp_path: Path, make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO has 60,000 of them, each of which takes a network file system a millisecond."""
    root = tmp_path / 'cache'
    make_recipe().write(root, num_groups=3)
    keys = make_recipe().plan().shard_keys()
    left = root / keys[3].bucket / 'plain' / 'p3' / 'c' / str(keys[3].shard) / '0' / '0' / '0' / '.tmp-1-of-1-a-x'
    left.parent.mkdir(parents=True)
    left.write_bytes(b'half')
    seen: list[str] = []
    scan = os.scandir

    def spied(path: Any) -> Any:
        seen.append(str(path))
        return scan(path)

    monkeypatch.setattr('os.scandir', spied)
    with make_recipe().writer(root):
        pass
    assert not left.exists()
    inside = [path for path in seen if '/c/' in path]
    assert inside
    committed = {f'{key.bucket}/plain/p3/c/{key.shard}' for key in keys[:3]}
    assert not [path for path in inside if any(f'/{one}/' in f'{path}/' for one in committed)]
