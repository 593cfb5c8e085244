"""The journal: one line for each committed shard group, and nothing else counts as written.

A line is JSON closed by its own hash, appended and flushed to disk after all files of the group are in place. A kill in
the middle of a line leaves a torn tail, which is cut off at the next start; the group's files are then written again.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtpd.cache.manifest import FileRecord
from mtpd.cache.plan import ShardKey
from mtpd.files import canonical_json, fsync_directory, sha256_bytes, write_atomically

JOURNAL_FILE = 'journal.jsonl'


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
    files: dict[str, FileRecord]


def append_entry(root: Path, entry: JournalEntry) -> None:
    """Makes a group count as written; its files must be on disk already."""
    path = root / JOURNAL_FILE
    existed = path.exists()
    with path.open('ab') as file:
        file.write(_line(entry))
        file.flush()
        os.fsync(file.fileno())
    if not existed:
        fsync_directory(root)


def replace_entries(root: Path, entries: Iterable[JournalEntry]) -> None:
    """Makes just these groups count as written."""
    write_atomically(root / JOURNAL_FILE, b''.join(map(_line, entries)))


def read_entries(root: Path) -> list[JournalEntry]:
    """The committed groups whose files are all there in the right size. Cuts off a torn tail."""
    entries, good = _read(root)
    path = root / JOURNAL_FILE
    if path.exists() and good < path.stat().st_size:
        os.truncate(path, good)
    return [entry for entry in entries if _is_complete(root, entry)]


def recorded_entries(root: Path) -> list[JournalEntry]:
    """The committed groups, whatever has become of their files. Changes nothing: a writer may be at work."""
    return _read(root)[0]


def _line(entry: JournalEntry) -> bytes:
    content = {
        'plan': entry.plan,
        'bucket': entry.key.bucket,
        'shard': entry.key.shard,
        'files': {name: record.model_dump() for name, record in entry.files.items()},
    }
    closed = content | {'digest': sha256_bytes(canonical_json(content))}
    return json.dumps(closed, separators=(',', ':')).encode() + b'\n'


def _read(root: Path) -> tuple[list[JournalEntry], int]:
    """The whole lines and their length in bytes."""
    path = root / JOURNAL_FILE
    content = path.read_bytes() if path.exists() else b''
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
        files = {name: FileRecord(**record) for name, record in content['files'].items()}
        return JournalEntry(content['plan'], ShardKey(content['bucket'], content['shard']), files)
    # Whatever JSON it is: what is no line of ours was not committed.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _is_complete(root: Path, entry: JournalEntry) -> bool:
    for name, record in entry.files.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != record.num_bytes:
            return False
    return True
