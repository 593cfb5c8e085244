"""A disk that fills up, files that may not grow, and targets that are read-only, all of them real."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from stress.extraction import Setting, ended, num_committed, undisturbed_seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning'),
]

# `mtpd-extract` wants 64 MiB more than it needs, or it does not start.
DISK_MB = 80


def succeeds(*command: object) -> bool:
    return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0


def run_command(*command: object) -> None:
    subprocess.run(list(map(str, command)), capture_output=True, check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if not succeeds('mount', '-t', 'tmpfs', '-o', f'size={DISK_MB}m', 'tmpfs', tmp_path):
        pytest.skip('only root may mount a file system here')
    yield tmp_path
    run_command('umount', '--lazy', tmp_path)


def require_handled(setting: Setting, out: Path, result: tuple[int | None, str], what: str) -> None:
    """It ended in success, or in one line that says how to resume."""
    code, line = result
    print(what, 'refused' if code else 'too late')
    if code == 0:
        assert setting.judge(out, what).is_right, f'{what}: ended well with a cache that is not'
        return
    assert code == 1, f'{what}: ended with {code}: {line}'
    assert str(out) in line
    # The second is said by one that starts when the disk is full already.
    assert 'run the same command again' in line or 'needs about' in line


def test_a_full_disk(setting: Setting, rounds: int, disk: Path) -> None:
    """Another program takes all space but a little at any moment, and gives it back later."""
    seconds = undisturbed_seconds(setting.extraction, disk / 'timing')
    for _ in range(rounds):
        out, delay = setting.extraction.fresh(below=disk), setting.random.uniform(0, seconds)
        left = setting.random.randrange(100_000)
        with setting.extraction.extracting(out) as run:
            time.sleep(delay)
            fill(disk, left=left)
            result = ended(run)
        what = f'filled up to {left} bytes after {delay:.3f} s with {num_committed(out)} shards'
        require_handled(setting, out, result, what)
        (disk / 'ballast').unlink()
        setting.require_resumable(out, what)
        shutil.rmtree(out)


def fill(disk: Path, *, left: int) -> None:
    with (disk / 'ballast').open('wb') as ballast:
        while True:
            state = os.statvfs(disk)
            with suppress(OSError):  # the extraction was faster
                os.posix_fallocate(ballast.fileno(), 0, max(state.f_bavail * state.f_frsize - left, 1))
                return


def test_a_limit_of_file_sizes(setting: Setting, rounds: int) -> None:
    """No file may grow beyond a limit; what is written of one stays as it is."""
    for _ in range(rounds):
        out, limit = setting.extraction.fresh(), setting.random.randrange(100, 30_000)
        with setting.extraction.extracting(out, file_size_limit=limit) as run:
            result = ended(run)
        what = f'no file beyond {limit} bytes, {num_committed(out)} shards'
        require_handled(setting, out, result, what)
        setting.require_resumable(out, what)
        shutil.rmtree(out)


def test_a_read_only_disk(setting: Setting, rounds: int, disk: Path) -> None:
    """An extraction was killed; then its file system is mounted read-only, and later for writing again."""
    seconds = undisturbed_seconds(setting.extraction, disk / 'timing')
    for _ in range(rounds):
        out, delay = setting.extraction.fresh(below=disk), setting.random.uniform(0, seconds)
        with setting.extraction.extracting(out) as run:
            time.sleep(delay)
            run.kill()
        run_command('mount', '-o', 'remount,ro', disk)
        code, line = setting.extraction.extract(out)
        what = f'read-only with {num_committed(out)} shards'
        run_command('mount', '-o', 'remount,rw', disk)
        assert code == 1, f'{what}: ended with {code}: {line}'
        assert 'the file system is read-only' in line
        setting.require_resumable(out, what)
        shutil.rmtree(out)


def test_immutable_folders(setting: Setting, rounds: int, tmp_path: Path) -> None:
    """All folders of a cache are made immutable while it is written, which stops root as well."""
    if not succeeds('chattr', '+i', tmp_path):
        pytest.skip('needs root and a file system that supports chattr +i')
    run_command('chattr', '-i', tmp_path)
    for _ in range(rounds):
        out, delay = setting.extraction.fresh(), setting.random.uniform(0, setting.seconds)
        with setting.extraction.extracting(out) as run, ExitStack() as stack:
            time.sleep(delay)
            for folder in [out, *out.rglob('*')]:
                if folder.is_dir() and succeeds('chattr', '+i', folder):
                    stack.callback(run_command, 'chattr', '-i', folder)
            result = ended(run)
        what = f'frozen after {delay:.3f} s with {num_committed(out)} shards'
        require_handled(setting, out, result, what)
        setting.require_resumable(out, what)
        shutil.rmtree(out)
