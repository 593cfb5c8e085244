"""The journals: one line for each committed shard group, and nothing else counts as written.

A line is JSON closed by its own hash, appended and flushed to disk after all files of the group are in place. A kill in
the middle of a line leaves a torn tail, which is cut off at the next start; the group's files are then written again.
Each part of an extraction appends to a journal of its own; what counts as written is what any of them says.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtpd.cache.format.manifest import FileRecord
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.system.files import canonical_json, fsync_directory, sha256_bytes, sha256_file, write_atomically

JOURNAL_FILE = 'journal.jsonl'
PART_JOURNALS = 'journal.*-of-*.jsonl'

GroupFiles = dict[str, FileRecord]


@dataclass(frozen=True)
class JournalEntry:
    """A committed shard group.

    Attributes:
        plan: hash of the plan that it was made by; shards of another teacher may fit in every size.
        key: which group.
        files: path below the cache's root -> size and hash.
    """

    plan: str
    key: ShardKey
    files: GroupFiles


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
        file.write(_line(entry))
        file.flush()
        os.fsync(file.fileno())
    if not existed:
        fsync_directory(root)


def replace_entries(root: Path, entries: Iterable[JournalEntry]) -> None:
    """Makes just these groups count as written. Only for who holds the whole cache."""
    write_atomically(root / JOURNAL_FILE, b''.join(map(_line, entries)))
    for path in root.glob(PART_JOURNALS):
        path.unlink()


def cut_torn_tail(root: Path, *, part: Part = WHOLE) -> None:
    """Makes a journal fit to be appended to. Only for who holds the part: a neighbour's tail may be in the writing."""
    path = journal_path(root, part)
    if path.exists():
        _, good = _read_journal(path)
        if good < path.stat().st_size:
            os.truncate(path, good)


def recorded_entries(root: Path) -> list[JournalEntry]:
    """Entries of all journals, whether or not the files exist."""
    return [entry for path in journal_paths(root) for entry in _read_journal(path)[0]]


def committed_groups(
    root: Path, *, plan: str, group_files: Mapping[ShardKey, Sequence[str]]
) -> dict[ShardKey, GroupFiles]:
    """The groups that count as written: journalled by this very plan, and all their files there.

    Lines of another plan may have come with a copied folder. A group has two entries when files of it were lost and
    made again, or when two processes wrote it because a network file system did not keep their locks. If they differ,
    the hashes of the files decide.

    Args:
        root: the cache's folder.
        plan: hash of its plan.
        group_files: what each group consists of.
    """
    entries: dict[ShardKey, list[GroupFiles]] = {}
    for entry in recorded_entries(root):
        if entry.plan != plan or entry.files.keys() != set(group_files.get(entry.key, ())):
            continue
        known = entries.setdefault(entry.key, [])
        if entry.files not in known:
            known.append(entry.files)
    committed = {}
    for key, candidates in entries.items():
        present = [files for files in candidates if _have_sizes(root, files)]
        if len(candidates) > 1:
            present = [files for files in present if damaged_file(root, files) is None]
        if present:
            committed[key] = present[0]
    return committed


def damaged_file(root: Path, files: GroupFiles) -> str | None:
    """The first file that is missing or has other content than was written."""
    for name, record in files.items():
        path = root / name
        if not _have_sizes(root, {name: record}) or sha256_file(path) != record.sha256:
            return name
    return None


def remove_journals(root: Path) -> None:
    """Deletes every journal once the manifest has their content."""
    for path in journal_paths(root):
        path.unlink(missing_ok=True)


def _line(entry: JournalEntry) -> bytes:
    content = {
        'plan': entry.plan,
        'bucket': entry.key.bucket,
        'shard': entry.key.shard,
        'files': {name: record.model_dump() for name, record in entry.files.items()},
    }
    closed = content | {'digest': sha256_bytes(canonical_json(content))}
    return json.dumps(closed, separators=(',', ':')).encode() + b'\n'


def _read_journal(path: Path) -> tuple[list[JournalEntry], int]:
    """Its entries, and the bytes they take: less than the file when its tail is torn."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # published and tidied up by a neighbour
        return [], 0
    entries, good = [], 0
    for line in content.splitlines(keepends=True):
        entry = _parse(line)
        if entry is None:
            break
        entries.append(entry)
        good += len(line)
    return entries, good


def _parse(line: bytes) -> JournalEntry | None:
    if not line.endswith(b'\n'):
        return None
    try:
        content = json.loads(line)
        if content.pop('digest') != sha256_bytes(canonical_json(content)):
            return None
        plan, bucket, shard = content['plan'], content['bucket'], content['shard']
        if not isinstance(plan, str) or not isinstance(bucket, str) or type(shard) is not int:
            return None
        files = {name: FileRecord(**record) for name, record in content['files'].items()}
        return JournalEntry(plan, ShardKey(bucket, shard), files)
    # Any other JSON: a line not written by this module was not committed.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _have_sizes(root: Path, files: GroupFiles) -> bool:
    return all(
        (root / name).is_file() and (root / name).stat().st_size == record.num_bytes for name, record in files.items()
    )
