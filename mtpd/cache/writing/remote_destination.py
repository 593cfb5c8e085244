"""A cache that is written into an object store: with a lease in place of locks, and an object for each shard group.

`journal/BUCKET.SHARD.json` makes a group count as written. It holds the tag that the store gave each file of the group,
and the manifest is written only if all objects still have theirs: a writer that was stopped while it sent a file, was
taken for dead and goes on, may write over what another has made since. Before each file a writer looks whether it still
has the right, so this is one file at most for each of its requests.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mtpd.cache.format.manifest import MANIFEST_FILE, FileRecord, Manifest, manifest_content, parse_manifest
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.strict_json import parse_json
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.object_store import ObjectStore, StoredObject
from mtpd.cache.writing.destination import Destination, FolderDestination, require_same
from mtpd.cache.writing.journal import GroupFiles, JournalEntry, entry_line, manifest_of, parse_line
from mtpd.cache.writing.lease import LOCKS, Lease
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.plan_file import (
    PLAN_FILE,
    PlanRecord,
    file_record,
    finished_plan,
    parse_plan,
    plan_content,
)
from mtpd.errors import CacheMismatchError
from mtpd.system.files import is_url
from mtpd.system.prefetch import prefetched

JOURNAL = 'journal'
DELETE = 'choose another URL, or delete the objects there'
NUM_REQUESTS = 4  # at the same time


class RemoteEntry(JournalEntry):
    """A committed group, with the tag of each of its objects."""

    tags: dict[str, str]


class RemoteDestination:
    """A place in an object store, by its URL; nothing need be there."""

    def __init__(self, url: str, *, part: Part = WHOLE) -> None:
        self._store = ObjectStore(url)
        self._lease = Lease(self._store, part)
        self.name = self._store.name
        self.part = part

    def lock(self) -> AbstractContextManager[None]:
        return self._lease.held()

    def errors(self) -> AbstractContextManager[None]:
        return nullcontext()  # those of requests are explained where they are made

    def start(self, plan: PlanRecord) -> set[ShardKey]:
        stored = self._store.objects()
        if MANIFEST_FILE in stored:
            require_same(finished_plan(self.read_manifest(), plan), plan, name=self.name, advice=DELETE)
            self._tidy()
            return set()
        others = [file for file in stored if file and not file.startswith('.')]
        if others and PLAN_FILE not in others:
            raise CacheMismatchError(
                f'{self.name}: is not empty ({min(others)}) and does not hold an extraction; choose another URL'
            )
        present, _ = self._store.create(PLAN_FILE, plan_content(plan))
        require_same(parse_json(present, name=f'{self.name}/{PLAN_FILE}'), plan, name=self.name, advice=DELETE)
        if self.is_published():  # since it was looked at: the plan had gone
            self._tidy()
            return set()
        return set(self._committed(plan))

    def holds_cache(self) -> bool:
        """Whether a cache is here, finished or not; InputError where no object can be listed, as on a web server."""
        self._store.objects(LOCKS)
        return self.is_published() or self._store.exists(PLAN_FILE)

    def read_manifest(self) -> Manifest:
        """The manifest; raises what `mtpd.cache.open` does."""
        content = parse_json(self._store.read(MANIFEST_FILE), name=f'{self.name}/{MANIFEST_FILE}')
        return parse_manifest(content, name=self.name)

    def read_plan(self) -> PlanRecord:
        """The plan of an unfinished cache, checked."""
        return parse_plan(parse_json(self._store.read(PLAN_FILE), name=f'{self.name}/{PLAN_FILE}'), name=self.name)

    def write_head(self, plan: PlanRecord, contents: Mapping[str, bytes]) -> None:
        stored = self._store.objects()

        def is_there(file: str, content: bytes) -> bool:
            if file not in stored or stored[file].num_bytes != len(content):
                return False
            # What no reader of mtpd takes is not worth thousands of requests.
            return file not in contents or self._store.read_range(file, offset=0, length=len(content)) == content

        head = {**metadata_files(plan.specs()), **contents}
        for _ in self._puts((file, content) for file, content in head.items() if not is_there(file, content)):
            pass

    def is_published(self) -> bool:
        return self._store.exists(MANIFEST_FILE)

    def read(self, file: str) -> bytes | None:
        try:
            return self._store.read(file)
        except FileNotFoundError:
            return None

    def write(self, file: str, content: bytes) -> None:
        self._store.put(file, content)

    def create(self, file: str, content: bytes) -> None:
        self._store.create(file, content)

    def delete(self, file: str) -> None:
        self._store.delete([file])

    def commit(
        self, key: ShardKey, contents: Iterable[tuple[str, bytes]], *, plan: PlanRecord, shared: GroupFiles
    ) -> int:
        records, tags = dict(shared), {}
        for file, record, tag in self._puts(contents, require=self._require_right):
            records[file], tags[file] = record, tag
        entry = RemoteEntry(plan=plan.sha256, **key._asdict(), files=records, tags=tags)
        self._store.put(_entry_file(key), entry_line(entry), require=self._require_right)
        return sum(records[file].num_bytes for file in tags)

    def publish(self, plan: PlanRecord) -> list[ShardKey]:
        if not self.is_published():
            # Many parts may finish together: only those that find all entries read them.
            listed, wanted = self._store.objects(JOURNAL), plan.group_files()
            missing = [key for key in wanted if _entry_file(key) not in listed]
            groups = {} if missing else self._committed(plan)
            missing = missing or [key for key in wanted if key not in groups]
            # The others may have published and tidied up meanwhile.
            if missing and not self.is_published():
                return missing
            if not missing:
                self._create_manifest(groups)
        self._tidy()
        return []

    def _create_manifest(self, groups: Mapping[ShardKey, GroupFiles]) -> None:
        try:
            # The one that is there: parts may differ in what they were made on.
            content = manifest_content(manifest_of(self.read_plan(), groups))
        except FileNotFoundError:  # another part has published
            return
        if self._store.create(MANIFEST_FILE, content)[0] != content:
            raise CacheMismatchError(f'{self.name}: holds another cache; choose another URL')

    def _require_right(self) -> None:
        """Refuses to write where another process has taken over or finished the cache."""
        self._lease.require()
        if self.is_published():
            raise CacheMismatchError(f'{self.name}: another process has finished this cache; nothing to do')

    def _puts(
        self, contents: Iterable[tuple[str, bytes]], *, require: Callable[[], None] | None = None
    ) -> Iterator[tuple[str, FileRecord, str]]:
        """Writes files, several at a time; yields the path, record and tag of each."""

        def put(item: tuple[str, bytes]) -> tuple[str, FileRecord, str]:
            file, content = item
            return file, file_record(content), self._store.put(file, content, require=require)

        return prefetched(put, contents, num_threads=NUM_REQUESTS, depth=NUM_REQUESTS)

    def entries(self) -> Iterator[RemoteEntry]:
        """What is recorded as committed, whether or not the objects are still the same."""
        files = self._store.objects(JOURNAL)
        for line in prefetched(self.read, files, num_threads=NUM_REQUESTS, depth=NUM_REQUESTS):
            entry = None if line is None else parse_line(line, RemoteEntry)
            if entry is not None:
                yield entry

    def _committed(self, plan: PlanRecord) -> dict[ShardKey, GroupFiles]:
        wanted, sha256, entries = plan.group_files(), plan.sha256, list(self.entries())
        stored = self._store.objects()
        content = self.read(BASIS_FILE)
        basis = None if content is None else file_record(content)

        def is_there(entry: RemoteEntry, file: str, record: FileRecord) -> bool:
            if file == BASIS_FILE:  # it is of all groups
                return basis == record
            return stored.get(file) == StoredObject(record.num_bytes, entry.tags.get(file, ''))

        return {
            entry.key: entry.files
            for entry in entries
            if entry.plan == sha256
            and entry.files.keys() == set(wanted.get(entry.key, ()))
            and all(is_there(entry, file, record) for file, record in entry.files.items())
        }

    def _tidy(self) -> None:
        """Deletes what the manifest has replaced."""
        self._store.delete([*self._store.objects(JOURNAL), PLAN_FILE])


def _entry_file(key: ShardKey) -> str:
    return f'{JOURNAL}/{key.bucket}.{key.shard}.json'


def destination_of(out: str | Path, *, part: Part = WHOLE) -> Destination:
    """The place that a path or a URL names."""
    return RemoteDestination(str(out), part=part) if is_url(out) else FolderDestination(Path(out), part=part)
