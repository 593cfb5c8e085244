"""File system locks that name their holder."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout


class LockHeldError(Exception):
    """Another process holds the lock; the message names it."""


class HolderLock:
    """A lock that one process holds at a time; the operating system releases a dead one's. Use as a context manager.

    The file stays when the lock is free; its folder must exist when the lock is entered. A `.holder` file beside it
    names the process, with `role`. Entering raises LockHeldError when another process has it.
    """

    def __init__(self, path: Path, *, role: str = '') -> None:
        self._holder = path.with_name(f'{path.name}.holder')
        self._role = role
        self._lock = FileLock(path, timeout=0)

    def __enter__(self) -> 'HolderLock':
        try:
            self._lock.acquire()
        except Timeout:
            who = self._holder.read_text().strip() if self._holder.exists() else 'another process'
            raise LockHeldError(who) from None
        try:
            self._holder.write_text(f'process {os.getpid()} on {socket.gethostname()}{self._role}\n')
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the disk may have become read-only
            self._holder.unlink(missing_ok=True)
        self._lock.release()
