"""A disk that fills up, files that may not grow, and targets that are read-only, all of them real."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from torture.setting import Setting, duration, extract, extracting, num_committed
from torture.trials import Trial, judged, resumed

# `mtpd-extract` wants 64 MiB more than it needs, or it does not start.
DISK_MB = 80


def full_disks(setting: Setting, number: int) -> Iterator[Trial]:
    """Another program takes all space but a little at any moment, and gives it back later."""
    with _file_system(setting) as disk:
        if disk is None:
            return
        seconds = duration(setting.subject, disk / 'timing')
        for _ in range(number):
            out, delay = setting.fresh('full', below=disk), setting.random.uniform(0, seconds)
            left = setting.random.randrange(100_000)
            with extracting(setting.subject, out) as run:
                time.sleep(delay)
                _fill(disk, left=left)
                code, line = run.wait()
            what = f'filled up to {left} bytes after {delay:.3f} s with {num_committed(out)} shards'
            yield from _after_refusal('full disk', out, setting, code=code, line=line, what=what)
            (disk / 'ballast').unlink()
            yield resumed('full disk' if code else 'full disk that came too late', out, setting, what=what)


def size_limits(setting: Setting, number: int) -> Iterator[Trial]:
    """No file may grow beyond a limit; what is written of one stays as it is."""
    for _ in range(number):
        out, limit = setting.fresh('limit'), setting.random.randrange(100, 30_000)
        with extracting(setting.subject, out, file_size_limit=limit) as run:
            code, line = run.wait()
        what = f'no file beyond {limit} bytes, {num_committed(out)} shards'
        yield from _after_refusal('file-size limit', out, setting, code=code, line=line, what=what)
        yield resumed('file-size limit' if code else 'file-size limit that none met', out, setting, what=what)


def read_only(setting: Setting, number: int) -> Iterator[Trial]:
    """An extraction was killed; then its file system is mounted read-only, and later for writing again."""
    with _file_system(setting) as disk:
        if disk is None:
            return
        seconds = duration(setting.subject, disk / 'timing')
        for _ in range(number):
            out, delay = setting.fresh('read-only', below=disk), setting.random.uniform(0, seconds)
            with extracting(setting.subject, out) as run:
                time.sleep(delay)
                run.kill()
            _run('mount', '-o', 'remount,ro', disk)
            code, line = extract(setting.subject, out)
            what = f'read-only with {num_committed(out)} shards'
            if code != 1 or 'the file system is read-only' not in line:
                yield Trial('read-only disk', 'failed', f'{what}: ended with {code}: {line}')
            _run('mount', '-o', 'remount,rw', disk)
            yield resumed('read-only disk', out, setting, what=what)


def frozen_folders(setting: Setting, number: int) -> Iterator[Trial]:
    """All folders of a cache are made immutable while it is written, which stops root as well."""
    probe = setting.subject.folder / 'probe'
    probe.mkdir()
    if not _succeeds('chattr', '+i', probe):
        print('frozen folders: skipped, this needs root and a file system that knows chattr +i')
        return
    _run('chattr', '-i', probe)
    for _ in range(number):
        out, delay = setting.fresh('frozen'), setting.random.uniform(0, setting.seconds)
        with extracting(setting.subject, out) as run, ExitStack() as stack:
            time.sleep(delay)
            for folder in [out, *out.rglob('*')]:
                if folder.is_dir() and _succeeds('chattr', '+i', folder):
                    stack.callback(_run, 'chattr', '-i', folder)
            code, line = run.wait()
        what = f'frozen after {delay:.3f} s with {num_committed(out)} shards'
        yield from _after_refusal('frozen folders', out, setting, code=code, line=line, what=what)
        yield resumed('frozen folders' if code else 'frozen folders that came too late', out, setting, what=what)


def _after_refusal(
    kind: str, out: Path, setting: Setting, *, code: int | None, line: str, what: str
) -> Iterator[Trial]:
    """A failure if an extraction ended otherwise than in success or one line that says how to go on."""
    # The second is said by one that starts when the disk is full already.
    good = str(out) in line and ('run the same command again' in line or 'needs about' in line)
    if code != 0 and not (code == 1 and good):
        yield Trial(kind, 'failed', f'{what}: ended with {code}: {line}')
    elif code == 0 and judged(kind, out, setting, what=what).end != 'survived':
        yield Trial(kind, 'failed', f'{what}: ended well with a cache that is not')


def _fill(disk: Path, *, left: int) -> None:
    with (disk / 'ballast').open('wb') as ballast:
        while True:
            state = os.statvfs(disk)
            with suppress(OSError):  # the extraction was faster
                os.posix_fallocate(ballast.fileno(), 0, max(state.f_bavail * state.f_frsize - left, 1))
                return


@contextmanager
def _file_system(setting: Setting) -> Iterator[Path | None]:
    """A small file system of its own, None where this user may not mount one."""
    folder = setting.fresh('disk')
    folder.mkdir()
    if not _succeeds('mount', '-t', 'tmpfs', '-o', f'size={DISK_MB}m', 'tmpfs', folder):
        print('full and read-only disks: skipped, only root may mount a file system here')
        yield None
        return
    try:
        yield folder
    finally:
        _run('umount', '--lazy', folder)


def _succeeds(*command: object) -> bool:
    return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), capture_output=True, check=True)


ALL: dict[str, Callable[[Setting, int], Iterator[Trial]]] = {
    'full': full_disks,
    'limit': size_limits,
    'read-only': read_only,
    'frozen': frozen_folders,
}
