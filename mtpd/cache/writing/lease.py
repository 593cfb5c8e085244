"""The right to write a cache in an object store, which has no locks that end with their holder.

A writer creates an object that was not there, `.lock/PART.NUMBER`, and rewrites another one beside it every few
seconds. A process that finds both unchanged for long enough takes over: it creates the next number, which the store
lets one process do, and deletes what it found. A writer that was only slow then misses its object, and commits nothing
more. No clock is compared with that of another machine.
"""

import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from mtpd.cache.format.strict_json import short
from mtpd.cache.object_store import ObjectStore, StoredObject
from mtpd.cache.writing.parts import Part
from mtpd.errors import MtpdError, UnavailableError

LOCKS = '.lock'
LOGGER = logging.getLogger(__name__)
# After as long without a sign of life a writer counts as dead; it gives four in that time.
SILENCE_SECONDS = 30.0
_NAME = re.compile(rf'{re.escape(LOCKS)}/(\d+-of-(\d+))\.(\d+)(?:\.beat)?')


class Lease:
    """The right of a part to write below a URL."""

    def __init__(self, store: ObjectStore, part: Part) -> None:
        self._store = store
        self._part = part
        self._path, self._tag = '', ''
        self._end = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds it; UnavailableError on entering where another process does."""
        dead = self._silent(self._others())
        self._path = f'{LOCKS}/{self._part.label}.{max(map(self._number, dead), default=0) + 1}'
        # The random end tells it from that of another process, where the answer to the first request was lost.
        content = f'process {os.getpid()} on {socket.gethostname()} {secrets.token_hex(8)}'.encode()
        present, self._tag = self._store.create(self._path, content)
        if present != content:
            raise self._busy(self._path)
        thread = threading.Thread(target=self._beat, name='lease', daemon=True)
        try:
            # A part of another count may have come at the same moment.
            for path in self._others().keys() - dead.keys():
                raise self._busy(path)
            self.require()
            self._store.delete(dead)
            thread.start()
            yield
        finally:
            self._end.set()
            if thread.ident is not None:
                thread.join()
            with suppress(MtpdError):  # what remains is found silent
                # Another process may have the number now; to it a beat that is missing is nothing.
                self._store.delete([f'{self._path}.beat', *([self._path] if self._is_own() else [])])

    def require(self) -> None:
        """UnavailableError where another process has taken over."""
        if not self._is_held():
            raise UnavailableError(
                f'{self._store.name}: another process has taken over, because this one gave no sign of life for '
                f'{SILENCE_SECONDS:.0f} s; wait for it, then run the same command again'
            )

    def _is_held(self) -> bool:
        stored = self._store.objects(LOCKS)
        return self._is_own(stored) and not any(map(self._is_later, stored))

    def _is_own(self, stored: Mapping[str, StoredObject] | None = None) -> bool:
        """Whether the lock is there, and not one of the same number that another process has made since."""
        own = (self._store.objects(LOCKS) if stored is None else stored).get(self._path)
        return own is not None and own.tag == self._tag

    def _is_later(self, path: str) -> bool:
        match = _NAME.fullmatch(path)
        return match is not None and match[1] == self._part.label and self._number(path) > self._number(self._path)

    def _others(self) -> dict[str, StoredObject]:
        """What writers of the same part, or of parts in other numbers, have here."""
        own = (self._path, f'{self._path}.beat')
        return {
            path: stored
            for path, stored in self._store.objects(LOCKS).items()
            if (match := _NAME.fullmatch(path))
            and path not in own
            # In other numbers of parts the same shard could fall to both.
            and (match[1] == self._part.label or int(match[2]) != self._part.count)
        }

    def _number(self, path: str) -> int:
        match = _NAME.fullmatch(path)
        return int(match[3]) if match and match[1] == self._part.label else 0

    def _silent(self, found: dict[str, StoredObject]) -> dict[str, StoredObject]:
        """What of the objects of others is left and unchanged after the time of silence."""
        if found:
            LOGGER.warning(
                '%s: %s was writing here; waiting %.0f s to see whether it still is',
                self._store.name,
                self._holder(min(found)),
                SILENCE_SECONDS,
            )
        end = time.monotonic() + SILENCE_SECONDS
        while found and time.monotonic() < end:
            time.sleep(SILENCE_SECONDS / 8)
            now = self._others()
            for path, stored in now.items():
                if found.get(path) != stored:
                    raise self._busy(path)
            found = now
        return found

    def _busy(self, path: str) -> UnavailableError:
        return UnavailableError(
            f'{self._store.name}: {self._holder(path)} is writing this cache; wait for it, or choose another --out'
        )

    def _holder(self, path: str) -> str:
        try:
            return short(self._store.read(path.removesuffix('.beat')).decode(errors='replace').rpartition(' ')[0])
        except FileNotFoundError:
            return 'another process'

    def _beat(self) -> None:
        number = 0
        while not self._end.wait(SILENCE_SECONDS / 4):
            number += 1
            # If it fails for long, another process may take over, which `require` finds.
            with suppress(MtpdError):
                if not self._is_held():
                    return
                self._store.put(f'{self._path}.beat', f'{self._tag} {number}'.encode())
