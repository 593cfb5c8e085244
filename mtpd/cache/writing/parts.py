"""Dividing an extraction among processes that share nothing but the cache's folder, and the locks that separate them.

`.lock` belongs to a writer of the whole cache, `.lock.2-of-4` to one of a part. They are held for as long as the writer
runs, and the operating system releases those of a dead writer. `.lock.gate` is held for moments only, while a writer
checks that no process is alive that it must not work beside, or publishes. Beside each lock a `.holder` file names its
holder.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from mtpd.errors import UnavailableError
from mtpd.system.locks import LockHeldError, held

LOCK_FILE = '.lock'
GATE_FILE = '.lock.gate'
LOGGER = logging.getLogger(__name__)
GATE_SECONDS = 60.0
_PART_LOCK = re.compile(r'\.lock\.(\d+)-of-(\d+)')

Item = TypeVar('Item')


@dataclass(frozen=True)
class Part:
    """The share of one process: part `index` (from 1) of `count`."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f'part {self.index}/{self.count}: parts are numbered from 1 to their count')

    def __str__(self) -> str:
        return f'{self.index}/{self.count}'

    @property
    def is_whole(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    @property
    def label(self) -> str:
        """For file names."""
        return f'{self.index}-of-{self.count}'

    def share(self, items: Iterable[Item]) -> list[Item]:
        """This part's items: every `count`-th, so that parts get like numbers of every padded shape."""
        return [item for number, item in enumerate(items) if number % self.count == self.index - 1]

    def others(self) -> list['Part']:
        """The parts that may run concurrently with this one."""
        return [Part(index, self.count) for index in range(1, self.count + 1) if index != self.index]


WHOLE = Part()


@contextmanager
def cache_lock(root: Path, *, part: Part = WHOLE) -> Iterator[None]:
    """Holds the right to write a cache or a part of it; the folder must exist.

    UnavailableError on entering: another process is writing the same; the message names it.
    """
    with ExitStack() as stack:
        with gate(root):
            # The parts that have, or once had, a lock here.
            others = [WHOLE] if _lock_path(root, WHOLE).exists() else []
            for path in sorted(root.glob(f'{LOCK_FILE}.*')):
                if match := _PART_LOCK.fullmatch(path.name):
                    others.append(Part(int(match[1]), int(match[2])))
            for other in others:
                # In other numbers of parts the same shard could fall to both.
                if other.count != part.count:
                    with _busy_if_held(root, other, wanted=part), held(_lock_path(root, other)):
                        pass
                    # Only the holder of the gate takes locks, so no process is waiting for these.
                    _lock_path(root, other).unlink(missing_ok=True)
            with _busy_if_held(root, part, wanted=part):
                stack.enter_context(held(_lock_path(root, part), role='' if part.is_whole else f' as part {part}'))
        yield


@contextmanager
def gate(root: Path) -> Iterator[None]:
    """Keeps all other writers from starting or publishing; waits for as long as another process holds it."""
    lock, num_waits = FileLock(root / GATE_FILE), 0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=GATE_SECONDS)
        except Timeout:
            num_waits += 1
            LOGGER.warning(
                '%s: waiting; another process has held it for %.0f s; end that process if it hangs',
                root / GATE_FILE,
                num_waits * GATE_SECONDS,
            )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _busy_if_held(root: Path, part: Part, *, wanted: Part) -> Iterator[None]:
    try:
        yield
    except LockHeldError as error:
        is_of_others = not part.is_whole and not wanted.is_whole and part.count != wanted.count
        advice = f'give --part I/{part.count}, or wait for it' if is_of_others else 'wait for it'
        raise UnavailableError(f'{root}: {error} is writing this cache; {advice}, or choose another --out') from None


def _lock_path(root: Path, part: Part) -> Path:
    return root / (LOCK_FILE if part.is_whole else f'{LOCK_FILE}.{part.label}')
