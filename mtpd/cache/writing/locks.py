"""Who may write a cache: one process for the whole of it, or one for each of N parts.

`.lock` belongs to a writer of the whole cache, `.lock.2-of-4` to one of a part. They are held for as long as the writer
runs, and the operating system lets go of a dead writer's. `.lock.gate` is held for moments only, while a writer looks
whether others are alive that it must not work beside, or publishes. Beside each lock a `.holder` file says who has it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.errors import UnavailableError
from mtpd.system.locks import HolderLock, LockHeldError

LOCK_FILE = '.lock'
GATE_FILE = '.lock.gate'
GATE_SECONDS = 60.0
_PART_LOCK = re.compile(r'\.lock\.(\d+)-of-(\d+)')


class CacheLock:
    """The right to write a cache or a part of it. Use as a context manager; the folder must exist.

    Raises (on entering):
        UnavailableError: another process is writing the same; the message names it.
    """

    def __init__(self, root: Path, *, part: Part = WHOLE) -> None:
        self._root = root
        self._part = part
        self._lock = HolderLock(_lock_path(root, part), role='' if part.is_whole else f' as part {part}')

    def __enter__(self) -> 'CacheLock':
        with self.gate():
            for other in _present_locks(self._root):
                if other != self._part and other.excludes(self._part):
                    self._require_dead(other)
            try:
                self._lock.__enter__()
            except LockHeldError as error:
                raise self._busy(self._part, str(error)) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, traceback)

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Keeps all other writers from starting or publishing.

        Raises:
            UnavailableError: another process does not let go of it.
        """
        gate = FileLock(self._root / GATE_FILE, timeout=GATE_SECONDS)
        try:
            gate.acquire()
        except Timeout:
            raise UnavailableError(
                f'{self._root / GATE_FILE}: another process has held it for {GATE_SECONDS:.0f} s; '
                'end that process if it hangs, then run the same command again'
            ) from None
        try:
            yield
        finally:
            gate.release()

    def _require_dead(self, other: Part) -> None:
        try:
            with HolderLock(_lock_path(self._root, other)):
                pass
        except LockHeldError as error:
            raise self._busy(other, str(error)) from None
        # Only the holder of the gate takes locks, so no process is waiting for these.
        _lock_path(self._root, other).unlink(missing_ok=True)

    def _busy(self, other: Part, who: str) -> UnavailableError:
        is_of_others = not other.is_whole and not self._part.is_whole and other.count != self._part.count
        advice = f'give --part I/{other.count}, or wait for it' if is_of_others else 'wait for it'
        return UnavailableError(f'{self._root}: {who} is writing this cache; {advice}, or choose another --out')


def _lock_path(root: Path, part: Part) -> Path:
    return root / (LOCK_FILE if part.is_whole else f'{LOCK_FILE}.{part.label}')


def _present_locks(root: Path) -> list[Part]:
    """The parts that have, or once had, a lock here."""
    found = [WHOLE] if (root / LOCK_FILE).exists() else []
    for path in sorted(root.glob(f'{LOCK_FILE}.*')):
        if match := _PART_LOCK.fullmatch(path.name):
            found.append(Part(int(match[1]), int(match[2])))
    return found
