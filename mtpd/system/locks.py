"""File system locks that name their holder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


class LockHeldError(Exception):
    """Another process holds the lock; the message names it."""


@contextmanager
def held(path: Path, *, role: str = '') -> Iterator[None]:
    """Holds a lock that one process has at a time; the operating system releases a dead one's.

    The file stays when the lock is free; its folder must exist. A `.holder` file beside it names the process, with
    `role`. Raises LockHeldError when another process has the lock.
    """
    holder, lock = path.with_name(f'{path.name}.holder'), FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LockHeldError(holder.read_text().strip() if holder.exists() else 'another process') from None
    try:
        holder.write_text(f'process {os.getpid()} on {socket.gethostname()}{role}\n')
        yield
    finally:
        with suppress(OSError):  # the disk may have become read-only
            holder.unlink(missing_ok=True)
        lock.release()
