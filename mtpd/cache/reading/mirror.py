"""Shards of remote caches on a local disk, within a bound.

Files are named by the sha256 of their content, in a folder of their own: several caches and processes may share it, and
nothing but such files is ever deleted.
"""

import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from mtpd.cache.format.manifest import FileRecord
from mtpd.errors import CacheDamagedError, UnavailableError
from mtpd.system.files import TEMPORARY, sha256_bytes, sha256_file, write_atomically

FOLDER = 'mtpd-mirror'
_NAME = re.compile(r'[0-9a-f]{64}')


class Mirror:
    """Local copies of files, of at most `max_bytes` together. Safe to use from several threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder / FOLDER
        self._max_bytes = max_bytes
        self._verified: set[str] = set()
        self._num_added = 0
        self._unseen = -1.0  # how much may be added before the folder is looked through
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f'mirror {folder}: cannot be made ({error.strerror}); choose another') from error

    def read_range(self, record: FileRecord, *, offset: int, length: int) -> bytes | None:
        """Bytes of a file that is here, None where it is not. It was verified when this process first read of it."""
        path = self._folder / record.sha256
        with self._locks[record.sha256]:
            if record.sha256 not in self._verified:
                if not path.is_file():
                    return None
                if sha256_file(path) != record.sha256:
                    path.unlink(missing_ok=True)
                    return None
                self._verified.add(record.sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another process needed the space
            self._verified.discard(record.sha256)
            return None
        try:
            now = time.time_ns()  # what the system takes by itself is coarse
            with suppress(PermissionError):  # a file of another user
                os.utime(descriptor, ns=(now, now))
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def keep(self, record: FileRecord, content: bytes, *, name: str) -> None:
        """Keeps a file, in place of those that were used least recently; CacheDamagedError for another content."""
        if sha256_bytes(content) != record.sha256:
            raise CacheDamagedError(f'{name}: its content differs from what was written; copy the cache again')
        if record.num_bytes > self._max_bytes:
            return
        try:
            with FileLock(self._folder / '.lock'):
                self._make_room(record.num_bytes)
                write_atomically(self._folder / record.sha256, content, flush=False)
        except OSError as error:
            raise UnavailableError(
                f'mirror {self._folder}: cannot be written ({error.strerror}); free some space, or lower its size'
            ) from error
        self._verified.add(record.sha256)

    def lock(self, record: FileRecord) -> threading.Lock:
        """Held while a file is fetched, so that the threads of a process fetch it once."""
        return self._locks['fetch ' + record.sha256]

    def _make_room(self, num_bytes: int) -> None:
        """Deletes what was used least recently, to nine tenths of the bound where it would be exceeded.

        The folder is looked through only when this process has added a share of the bound that other processes may have
        added, too.
        """
        self._num_added += num_bytes
        if self._num_added <= self._unseen:
            return
        entries = sorted(self._entries(), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries) + num_bytes
        if total > self._max_bytes:
            for _, size, path in entries:
                if total <= max(num_bytes, 0.9 * self._max_bytes):
                    break
                path.unlink(missing_ok=True)
                self._verified.discard(path.name)
                total -= size
        self._num_added = 0
        self._unseen = min(0.01 * self._max_bytes, self._max_bytes - total)

    def _entries(self) -> Iterable[tuple[float, int, Path]]:
        """Time of the last use, bytes and path of each file; what a killed process left is the oldest."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) or entry.name.startswith(TEMPORARY):
                    status = entry.stat(follow_symlinks=False)
                    is_left = entry.name.startswith(TEMPORARY)
                    yield 0.0 if is_left else status.st_mtime, status.st_size, Path(entry.path)
