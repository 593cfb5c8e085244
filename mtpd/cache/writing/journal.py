"""The journals of an unfinished cache, and the way from them and its plan to a cache that opens.

A journal has one line for each committed shard group: JSON closed by its own hash, appended and flushed to disk after
all files of the group are in place. A kill in the middle of a line leaves a torn tail, which is cut off at the next
start; the group's files are then written again. Each part of an extraction appends to a journal of its own; what counts
as written is what any of them says, and nothing else. When all groups are committed, the manifest takes the place of
plan and journals.
"""

import json
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.manifest import MANIFEST_FILE, FileRecord, Manifest, write_manifest
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.strict_json import StrictRecord
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.plan_file import PLAN_FILE, PlanRecord, read_plan_file
from mtpd.errors import CacheError
from mtpd.system import files as system_files
from mtpd.system.files import TEMPORARY, canonical_json, sha256_bytes, sha256_file, write_atomically

JOURNAL_FILE = 'journal.jsonl'
PART_JOURNALS = 'journal.*-of-*.jsonl'

GroupFiles = dict[str, FileRecord]


class JournalEntry(StrictRecord):
    """A committed shard group, with the hash of its plan: shards of another teacher may fit in every size."""

    plan: str
    bucket: str
    shard: int
    files: GroupFiles

    @property
    def key(self) -> ShardKey:
        """Names the group."""
        return ShardKey(self.bucket, self.shard)


Entry = TypeVar('Entry', bound=JournalEntry)


def journal_path(root: Path, part: Part = WHOLE) -> Path:
    """The journal that a part writes."""
    return root / (JOURNAL_FILE if part.is_whole else f'journal.{part.label}.jsonl')


def journal_paths(root: Path) -> list[Path]:
    """Every journal in `root`."""
    return [path for path in [root / JOURNAL_FILE, *sorted(root.glob(PART_JOURNALS))] if path.is_file()]


def append_entry(root: Path, entry: JournalEntry, *, part: Part = WHOLE) -> None:
    """Makes a group count as written; its files must be on disk already."""
    path = journal_path(root, part)
    existed = path.exists()
    with path.open('ab') as file:
        file.write(entry_line(entry))
        file.flush()
        os.fsync(file.fileno())
    if not existed:
        system_files.fsync_directory(root)


def replace_entries(root: Path, entries: Iterable[JournalEntry]) -> None:
    """Makes exactly these groups count as written; the caller must hold the lock of the whole cache."""
    write_atomically(root / JOURNAL_FILE, b''.join(map(entry_line, entries)))
    for path in root.glob(PART_JOURNALS):
        path.unlink()


def cut_torn_tail(root: Path, *, part: Part = WHOLE) -> None:
    """Makes a journal fit for appending; needs the lock of the part, whose writer may be in the middle of a line."""
    path = journal_path(root, part)
    if path.exists():
        _, good = _read_journal(path)
        if good < path.stat().st_size:
            os.truncate(path, good)


def recorded_entries(root: Path) -> list[JournalEntry]:
    """Entries of all journals, whether or not the files exist."""
    return [entry for path in journal_paths(root) for entry in _read_journal(path)[0]]


def committed(root: Path, plan: PlanRecord) -> dict[ShardKey, GroupFiles]:
    """The groups of the unfinished cache in `root` that count as written: journalled by `plan`, and all files there.

    Lines of another plan may have come with a copied folder. A group has two entries when files of it were lost and
    made again, or when two processes wrote it because a network file system did not keep their locks. If they differ,
    the hashes of the files decide.
    """
    group_files, sha256 = plan.group_files(), plan.sha256
    entries: dict[ShardKey, list[GroupFiles]] = {}
    for entry in recorded_entries(root):
        if entry.plan != sha256 or entry.files.keys() != set(group_files.get(entry.key, ())):
            continue
        known = entries.setdefault(entry.key, [])
        if entry.files not in known:
            known.append(entry.files)
    groups = {}
    for key, candidates in entries.items():
        is_there = _has_size if len(candidates) == 1 else is_sound
        present = [files for files in candidates if all(is_there(root / name, one) for name, one in files.items())]
        if present:
            groups[key] = present[0]
    if plan.codec != 'lean':
        return groups
    # All groups share the one basis; codes that were rotated by another would come back as nonsense.
    path = root / BASIS_FILE
    basis = sha256_file(path) if path.is_file() else None
    return {key: files for key, files in groups.items() if files[BASIS_FILE].sha256 == basis}


def missing_entries(root: Path, plan: PlanRecord) -> list[ShardKey]:
    """The groups that no journal has, in the order of the plan; cheaper than `committed`, for it looks at no file."""
    sha256 = plan.sha256
    written = {entry.key for entry in recorded_entries(root) if entry.plan == sha256}
    return [key for key in plan.group_files() if key not in written]


def is_sound(path: Path, record: FileRecord) -> bool:
    """Whether a file is there with the content that was written."""
    return _has_size(path, record) and sha256_file(path) == record.sha256


def is_published(root: Path) -> bool:
    """Whether the manifest is there."""
    return (root / MANIFEST_FILE).is_file()


def publish(root: Path, *, owner: str = '') -> list[ShardKey]:
    """Writes the manifest if every shard group is committed, by any process.

    The manifest follows from the plan, the journals and nothing else: any number of processes may call this
    concurrently, and again later, and the content is the same. Returns the shard groups that are not committed yet,
    none when the cache is published. CacheIncompleteError: there is neither a plan nor a manifest.
    """
    if not is_published(root):
        try:
            plan = read_plan_file(root)
            groups, wanted = committed(root, plan), plan.group_files()
            missing = [key for key in wanted if key not in groups]
            if not missing:
                write_manifest(root, manifest_of(plan, groups), owner=owner)
        except CacheError:  # the plan may have gone just now
            missing = []
            if not is_published(root):
                raise
        # Somebody else may have published and tidied up while the journals were read.
        if missing and not is_published(root):
            return missing
    assert is_published(root), 'plan and journals must not go before the manifest is there'
    for path in [*journal_paths(root), root / PLAN_FILE]:  # which the manifest has replaced
        path.unlink(missing_ok=True)
    return []


def manifest_of(plan: PlanRecord, groups: Mapping[ShardKey, GroupFiles]) -> Manifest:
    """The manifest of a cache whose groups are all committed."""
    # In the order of the plan and not of the journals, which depends on who wrote what when.
    files = {name: groups[key][name] for key, names in plan.group_files().items() for name in names}
    return Manifest(description=plan.description, buckets=plan.buckets, files=plan.files | files)


def remove_leftovers(root: Path, *, part: Part, committed: Container[ShardKey] = ()) -> None:
    """Deletes what killed writers left, but nothing of a part that may be alive beside this one.

    The folders of `committed` groups are not looked into: COCO has 60,000 of them.
    """
    of_others = tuple(f'{TEMPORARY}{other.label}-' for other in part.others())
    for folder, folders, names in os.walk(root):
        inside = os.path.relpath(folder, root)
        places = {name: file_place(f'{inside}/{name}') for name in folders}
        folders[:] = [name for name, place in places.items() if place is None or place.key not in committed]
        for name in names:
            if name.startswith(TEMPORARY) and not name.startswith(of_others):
                Path(folder, name).unlink(missing_ok=True)


def entry_line(entry: JournalEntry) -> bytes:
    """The line of an entry, closed by its hash."""
    content = entry.model_dump()
    content['digest'] = sha256_bytes(canonical_json(content))
    return json.dumps(content, separators=(',', ':')).encode() + b'\n'


def _read_journal(path: Path) -> tuple[list[JournalEntry], int]:
    """Its entries, and the bytes they take: less than the file when its tail is torn."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # another process has published the cache and deleted it
        return [], 0
    entries, good = [], 0
    for line in content.splitlines(keepends=True):
        entry = parse_line(line, JournalEntry)
        if entry is None:
            break
        entries.append(entry)
        good += len(line)
    return entries, good


def parse_line(line: bytes, kind: type[Entry]) -> Entry | None:
    """The entry of a line; None where it is torn or was not written by this module."""
    if not line.endswith(b'\n'):
        return None
    try:
        content = json.loads(line)
        is_whole = content.pop('digest') == sha256_bytes(canonical_json(content))
        return kind.model_validate(content) if is_whole else None
    # Any other JSON: a line not written by this module was not committed.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _has_size(path: Path, record: FileRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.num_bytes
