"""Killed, asked to stop, crowded out: what was committed stays, and the same command ends in the same cache."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from mtpd.cache.writing.journal import JOURNAL_FILE, recorded_entries
from mtpd.system.interrupt import ONE_PRESS_SECONDS

# From Python 3.12 on; the child is careful, see `Command.forked`.
pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')

LINE = 'run the same command again'


def num_committed(out: Path) -> int:
    journal = out / JOURNAL_FILE
    return journal.read_bytes().count(b'\n') if journal.exists() else 0


def wait_for_shards(child: Any, out: Path, number: int) -> None:
    while num_committed(out) < number:
        child.require_running()
        time.sleep(0.005)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: tuple[str, str]) -> Path:
    """The cache of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp('undisturbed') / 'cache'
    command.run(out, *many_shards)
    return out


def test_kill_9_twice_and_then_the_same_command(
    command: Any,
    slow: Path,
    many_shards: tuple[str, str],
    tmp_path: Path,
    undisturbed: Path,
    contents: Callable[[Path], dict[str, bytes]],
    read_maps: Callable[[Path], dict[object, torch.Tensor]],
) -> None:
    out, options = tmp_path / 'cache', ('--checkpoint', slow, *many_shards)
    for kill_after in (1, 4):
        with command.forked(out, *options) as child:
            wait_for_shards(child, out, kill_after)
            child.signal(signal.SIGKILL)
            assert child.wait()[0] == -signal.SIGKILL
        assert not (out / 'manifest.json').exists()
    committed = {path: path.stat().st_mtime_ns for path in out.rglob('c/**/*') if path.is_file()}
    command.run(out, *options)
    found, wanted = read_maps(out), read_maps(undisturbed)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(maps, wanted[key]) for key, maps in found.items())
    assert contents(out) == contents(undisturbed)
    kept = sum(path.exists() and path.stat().st_mtime_ns == written for path, written in committed.items())
    assert kept > 0.4 * len(committed), 'committed shards were made again'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_shard_in_hand_and_says_how_to_go_on(
    command: Any,
    slow: Path,
    many_shards: tuple[str, str],
    tmp_path: Path,
    undisturbed: Path,
    contents: Callable[[Path], dict[str, bytes]],
    number: signal.Signals,
) -> None:
    out = tmp_path / 'cache'
    with command.forked(out, '--checkpoint', slow, *many_shards) as child:
        wait_for_shards(child, out, 1)
        child.signal(number)
        code, errors = child.wait()
    assert code == 130, errors
    shards = num_committed(out)
    assert 1 <= shards < 8
    line = errors.splitlines()[-1]
    assert line == f'stopped with {shards} of 8 shards saved; {LINE} to resume'
    assert 'Traceback' not in errors
    assert not (out / 'manifest.json').exists()
    assert not list(out.rglob('.tmp-*'))
    command.run(out, *many_shards)
    assert contents(out) == contents(undisturbed)


def test_a_second_interrupt_stops_at_once(command: Any, tmp_path: Path) -> None:
    torch.save({'sleep': 60.0}, tmp_path / 'very_slow.pth')
    out = tmp_path / 'cache'
    with command.forked(out, '--checkpoint', tmp_path / 'very_slow.pth', '--limit', 3) as child:
        while 'at work' not in child.stderr.read_text():
            child.require_running()
            time.sleep(0.01)
        child.signal(signal.SIGINT)
        time.sleep(ONE_PRESS_SECONDS + 0.1)
        child.require_running()
        child.signal(signal.SIGINT)
        start = time.monotonic()
        code, errors = child.wait()
    assert time.monotonic() - start < 30
    assert code == 130
    assert errors.splitlines()[-1] == 'Error: interrupted immediately; earlier saves are kept'


def test_a_truncated_image_in_the_middle(
    command: Any,
    make_command: Any,
    many_shards: tuple[str, str],
    synthetic_set: Path,
    undisturbed: Path,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    coco, out = tmp_path / 'coco', tmp_path / 'cache'
    shutil.copytree(synthetic_set, coco)
    damaged = sorted((coco / 'train2017').iterdir())[20]
    intact = damaged.read_bytes()
    damaged.write_bytes(intact[: len(intact) // 2])
    broken = make_command(command.teacher, coco)
    error = broken.error(out, *many_shards)
    assert f'{damaged}: not a complete image' in error
    kept = num_committed(out)
    assert 0 < kept < 8
    damaged.write_bytes(intact)
    broken.run(out, *many_shards)
    # The manifest remembers the file's size when the extraction began.
    found, wanted = contents(out), contents(undisturbed)
    assert found.keys() == wanted.keys()
    assert {name for name, content in found.items() if content != wanted[name]} == {'manifest.json'}


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_refuses_in_the_middle(
    command: Any, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    out, options = tmp_path / 'cache', ('--shard-mb', '0.001', '--views', 'plain')
    counts = []
    # The journal is what grows beyond it, and is cut in the middle of a line; the second run goes on behind that.
    for limit in (20_000, 25_000):
        with file_size_limit(limit):
            error = command.error(out, *options)
        assert str(out) in error
        assert LINE in error
        assert (out / JOURNAL_FILE).stat().st_size == limit
        counts.append(len(recorded_entries(out)))
    assert 0 < counts[0] < counts[1] < 24
    command.run(out, *options)
    command.run(tmp_path / 'other', *options)
    assert contents(out) == contents(tmp_path / 'other')


def test_a_second_run_on_the_same_cache(command: Any, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / 'cache'
    shutil.copytree(whole, out)
    (out / '.lock.holder').write_text('process 12 on elsewhere\n')
    with FileLock(out / '.lock'):
        assert 'process 12 on elsewhere is writing this cache' in command.error(out)
        assert 'process 12 on elsewhere is writing this cache' in command.error(out, '--overwrite')
    assert (out / 'manifest.json').exists()
    command.run(out)


@contextmanager
def unprivileged(*readable: Path) -> Iterator[None]:
    """Root may write everywhere: work as nobody, who can read these files."""
    if os.geteuid() != 0:
        yield
        return
    for path in readable:
        # pytest keeps its folders to itself.
        for folder in (path, *path.parents[: len(path.parts) - 3]):
            folder.chmod(folder.stat().st_mode | 0o111)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission(command: Any, teacher_file: Path, synthetic_set: Path, tmp_path: Path) -> None:
    command.run(tmp_path / 'cache', '--limit', 1)  # imports everything, which nobody might not
    parent = tmp_path / 'locked'
    parent.mkdir(mode=0o555)
    with unprivileged(parent, teacher_file, synthetic_set / 'annotations', synthetic_set / 'train2017'):
        error = command.error(parent / 'cache')
    assert 'no permission to write here; choose another --out' in error
