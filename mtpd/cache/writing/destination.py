"""Where a cache is written: what a writer asks of a place, and the folder that is one."""

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mtpd.cache.format.manifest import read_manifest
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.zarr_metadata import create_arrays
from mtpd.cache.writing import journal, plan_file
from mtpd.cache.writing.journal import GroupFiles, JournalEntry
from mtpd.cache.writing.parts import WHOLE, Part, cache_lock, gate
from mtpd.cache.writing.plan_file import PlanRecord, file_record
from mtpd.errors import CacheIncompleteError, CacheMismatchError, UnavailableError
from mtpd.system.files import write_atomically, write_exclusively

OVERWRITE = 'choose another folder, or delete it with mtpd-extract --overwrite'


class Destination(Protocol):
    """Where a cache, or a part of one, is written. Files are named by their paths below it."""

    name: str
    part: Part

    def lock(self) -> AbstractContextManager[None]:
        """Holds the right to write; UnavailableError on entering where another process has it."""

    def errors(self) -> AbstractContextManager[None]:
        """Turns errors of the disk into one line with the next step."""

    def start(self, plan: PlanRecord) -> set[ShardKey]:
        """Claims the place for a plan and removes what a killed writer left; returns the groups that are committed.

        CacheMismatchError: it holds something else.
        """

    def write_head(self, plan: PlanRecord, contents: Mapping[str, bytes]) -> None:
        """Writes what precedes the shards, where it is missing or differs: metadata of all arrays, index, weights."""

    def is_published(self) -> bool:
        """Whether the manifest is there."""

    def read(self, file: str) -> bytes | None:
        """The content of a small file, None where there is none."""

    def write(self, file: str, content: bytes) -> None:
        """Writes a file whole, in the place of one that is there."""

    def create(self, file: str, content: bytes) -> None:
        """Writes a file, unless there is one."""

    def delete(self, file: str) -> None:
        """Deletes a file if there is one."""

    def commit(
        self, key: ShardKey, contents: Iterable[tuple[str, bytes]], *, plan: PlanRecord, shared: GroupFiles
    ) -> int:
        """Writes the files of a group, then makes it count as written; returns their bytes.

        `shared` are the files that all groups need. CacheMismatchError: another process has finished the cache, or
        begun another one here.
        """

    def publish(self, plan: PlanRecord) -> list[ShardKey]:
        """Writes the manifest if all groups of all parts are committed; returns those that are not."""


class FolderDestination:
    """A folder, on this machine or on a file system that it shares with others; it need not exist."""

    def __init__(self, root: Path, *, part: Part = WHOLE) -> None:
        self.root = root
        self.name = str(root)
        self.part = part

    @contextmanager
    def lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with cache_lock(self.root, part=self.part):
            yield

    def errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.root)

    def start(self, plan: PlanRecord) -> set[ShardKey]:
        with gate(self.root):
            if self.is_published():
                require_same(plan_file.finished_plan(read_manifest(self.root), plan), plan, name=self.name)
                journal.publish(self.root)
                return set()
            if (self.root / plan_file.PLAN_FILE).exists():
                require_same(plan_file.read_plan_json(self.root), plan, name=self.name)
            else:
                others = [path.name for path in self.root.iterdir() if not path.name.startswith('.')]
                if others:
                    raise CacheMismatchError(
                        f'{self.root}: the folder is not empty ({others[0]}) and does not hold an extraction; '
                        'choose another folder'
                    )
                plan_file.write_plan_file(self.root, plan, owner=self.part.label)
        journal.cut_torn_tail(self.root, part=self.part)
        committed = set(journal.committed(self.root, plan))
        journal.remove_leftovers(self.root, part=self.part, committed=committed)
        return committed

    def write_head(self, plan: PlanRecord, contents: Mapping[str, bytes]) -> None:
        create_arrays(self.root, plan.specs(), owner=self.part.label)
        for file, content in contents.items():
            if self.read(file) != content:
                self.write(file, content)

    def is_published(self) -> bool:
        return journal.is_published(self.root)

    def read(self, file: str) -> bytes | None:
        path = self.root / file
        return path.read_bytes() if path.is_file() else None

    def write(self, file: str, content: bytes) -> None:
        write_atomically(self.root / file, content, owner=self.part.label)

    def create(self, file: str, content: bytes) -> None:
        write_exclusively(self.root / file, content, owner=self.part.label)

    def delete(self, file: str) -> None:
        (self.root / file).unlink(missing_ok=True)

    def commit(
        self, key: ShardKey, contents: Iterable[tuple[str, bytes]], *, plan: PlanRecord, shared: GroupFiles
    ) -> int:
        # Locks can fail on a network file system, and folders be deleted: nothing goes into another extraction.
        if self.is_published():
            raise CacheMismatchError(f'{self.root}: another process has finished this cache; nothing to do')
        self._require_own_plan(plan)
        records = {}
        for file, content in contents:
            self.write(file, content)
            records[file] = file_record(content)
        entry = JournalEntry(plan=plan.sha256, **key._asdict(), files=shared | records)
        journal.append_entry(self.root, entry, part=self.part)
        return sum(record.num_bytes for record in records.values())

    def publish(self, plan: PlanRecord) -> list[ShardKey]:
        # Many parts may finish together: only those that find all groups in the journals wait for the gate.
        missing = journal.missing_entries(self.root, plan)
        if missing and not self.is_published():
            return missing
        with gate(self.root):
            if not self.is_published():
                self._require_own_plan(plan)
            return journal.publish(self.root, owner=self.part.label)

    def _require_own_plan(self, plan: PlanRecord) -> None:
        try:
            require_same(plan_file.read_plan_json(self.root), plan, name=self.name)
        except CacheIncompleteError:  # the plan goes when the cache is published, maybe just now
            if not self.is_published():
                raise


def require_same(found: Any, plan: PlanRecord, *, name: str, advice: str = OVERWRITE) -> None:
    """Refuses to mix two extractions in one place; `found` is the JSON of the plan there."""
    difference = plan_file.first_difference(found, plan)
    if difference:
        raise CacheMismatchError(f'{name}: holds another extraction: {difference}; {advice}')


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turns a disk error into one line with the next step."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: 'the disk is full; free some space',
            errno.EDQUOT: 'the disk quota is used up; free some space',
            errno.EFBIG: 'the file-size limit was reached; raise it',
            errno.EROFS: 'the file system is read-only; choose another --out',
            errno.EACCES: 'no permission to write here; choose another --out',
            errno.EPERM: 'not allowed to write here; choose another --out',
            errno.ENOLCK: 'the file system does not support locks; choose another --out',
        }.get(error.errno or 0, str(error))
        raise UnavailableError(
            f'{root}: {advice}, then run the same command again; all committed shards are kept'
        ) from error
