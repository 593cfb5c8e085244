"""Writing a cache: one shard group at a time, resumable at any of them.

Order of events: plan.json (what is being made), zarr metadata, index, teacher weights; then for each shard group its
files and one line of the journal; last the manifest. Each file is written to a temporary name, flushed and renamed. A
kill at any moment leaves either no manifest, which no reader opens, or a finished cache.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from mtpd.cache import arrays, journal, manifest
from mtpd.cache.arrays import ArraySpec
from mtpd.cache.basis import BASIS_FILE, load_basis, save_basis
from mtpd.cache.fingerprint import require_equal
from mtpd.cache.manifest import Description, FileRecord
from mtpd.cache.plan import CachePlan, ShardKey
from mtpd.cache.plan_file import PLAN_FILE, plan_record, plan_sha256, write_plan_file
from mtpd.cache.shard_group import ShardGroup
from mtpd.cache.strict_json import read_json
from mtpd.cache.zarr_metadata import create_arrays
from mtpd.errors import CacheDamagedError, CacheMismatchError, UnavailableError
from mtpd.files import sha256_bytes, sha256_file, write_atomically, write_exclusively

TEACHER_FILE = 'teacher.safetensors'
LOCK_FILE = '.lock'
HOLDER_FILE = '.lock.holder'


class CacheWriter:
    """Holds the lock of a cache that is being written.

    Use as a context manager. Entering it locks the folder, checks that what is there belongs to the same extraction and
    writes what precedes the shards.

    Raises (on entering):
        InputError: no manifest can hold such a cache.
        UnavailableError: another process is writing this cache, or the disk refuses.
        CacheMismatchError: the folder holds something else, or an extraction of something else.
    """

    def __init__(self, root: Path, *, description: Description, plan: CachePlan, teacher_weights: bytes) -> None:
        self.root = root
        self.description = description
        self.plan = plan
        self._teacher_weights = teacher_weights
        self._lock = FileLock(root / LOCK_FILE, timeout=0)
        self._head_files: dict[str, FileRecord] = {}
        self._committed: dict[ShardKey, dict[str, FileRecord]] = {}
        self._plan_record = plan_record(description, [manifest.bucket_record(bucket) for bucket in plan.buckets])
        self._plan_sha256 = plan_sha256(self._plan_record)
        self._views = description.views
        self._levels = tuple(level.to_level() for level in description.levels)

    def __enter__(self) -> 'CacheWriter':
        manifest.require_publishable(self.description, self.plan)
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._acquire()
        try:
            with disk_errors(self.root):
                self._check_or_write_plan()
                if self.is_finished:
                    self._remove_working_files()
                else:
                    self._remove_leftovers()
                    create_arrays(self.root, [*self._array_specs(), *arrays.index_specs(self.plan.num_images).values()])
                    self._head_files = self._write_head()
                    if (self.root / BASIS_FILE).exists():
                        self._record_bases()
                    self._committed = self._read_journal()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()

    @property
    def is_finished(self) -> bool:
        """Whether the manifest has been published."""
        return (self.root / manifest.MANIFEST_FILE).exists()

    def pending(self) -> list[ShardKey]:
        """The shard groups still to be written, in order."""
        return [] if self.is_finished else [key for key in self.plan.shard_keys() if key not in self._committed]

    def bases(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The rotation of each level that all shards of this cache share, for the `lean` codec.

        Args:
            compute: makes them; called only when this cache has none yet.

        Raises:
            CacheDamagedError: the stored ones were changed, or lost.
        """
        path = self.root / BASIS_FILE
        if not path.exists():
            if self._committed:
                raise CacheDamagedError(
                    f'{path}: is missing, and {len(self._committed)} shards mean nothing without it; run '
                    'mtpd-cache verify --repair, which queues them again'
                )
            content = save_basis(compute())
            with disk_errors(self.root):
                write_exclusively(path, content)
        return self._record_bases()

    def start_group(self, key: ShardKey) -> ShardGroup:
        """An empty shard group to be filled with encoded maps and given to `commit`."""
        return ShardGroup(
            bucket=self.plan.by_name[key.bucket],
            key=key,
            views=self._views,
            levels=self._levels,
            codec=self.description.codec,
        )

    def commit(self, group: ShardGroup) -> int:
        """Puts a full group's files in place and journals it; returns the bytes written.

        Raises:
            UnavailableError: the disk is full or read-only; what was committed before is kept.
        """
        records = {}
        with disk_errors(self.root):
            for name, content in group.files():
                write_atomically(self.root / name, content)
                records[name] = _record(content)
            journal.append_entry(self.root, journal.JournalEntry(self._plan_sha256, group.key, records))
        self._committed[group.key] = records
        return sum(record.num_bytes for record in records.values())

    def finish(self) -> None:
        """Publishes the manifest; every shard group must have been committed."""
        assert not self.pending(), 'finish() before all shard groups were committed'
        if self.is_finished:
            return
        files = dict(self._head_files)
        for key in self.plan.shard_keys():
            files |= self._committed[key]
        with disk_errors(self.root):
            manifest.write_manifest(self.root, self.description, self.plan, files)
            self._remove_working_files()

    def _release(self) -> None:
        with suppress(OSError):  # the disk may have become read-only
            (self.root / HOLDER_FILE).unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> None:
        holder = self.root / HOLDER_FILE
        try:
            self._lock.acquire()
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else 'another process'
            raise UnavailableError(
                f'{self.root}: {who} is writing this cache; wait for it or choose another --out'
            ) from None
        holder.write_text(f'process {os.getpid()} on {socket.gethostname()}\n')

    def _check_or_write_plan(self) -> None:
        wanted = self._plan_record
        if self.is_finished:
            found = manifest.read_manifest(self.root)
            present = plan_record(found.description, found.buckets)
        elif (self.root / PLAN_FILE).exists():
            present = read_json(self.root / PLAN_FILE)
        else:
            strangers = [path.name for path in self.root.iterdir() if not path.name.startswith('.')]
            if strangers:
                raise CacheMismatchError(
                    f'{self.root}: the folder is not empty ({strangers[0]}) and holds no extraction; '
                    'choose another --out'
                )
            write_plan_file(self.root, wanted)
            return
        require_equal(self.root, found=present, wanted=wanted)

    def _remove_working_files(self) -> None:
        """What an unfinished cache has beside a finished one; a kill right after publishing leaves it."""
        for name in (journal.JOURNAL_FILE, PLAN_FILE):
            (self.root / name).unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        for path in self.root.rglob('.tmp-*'):
            path.unlink(missing_ok=True)

    def _read_journal(self) -> dict[ShardKey, dict[str, FileRecord]]:
        """The committed groups of this very plan. Lines of another may have come with a copied folder."""
        return {
            entry.key: entry.files
            for entry in journal.read_entries(self.root)
            if entry.plan == self._plan_sha256 and entry.files.keys() == self._group_files(entry.key)
        }

    def _group_files(self, key: ShardKey) -> set[str]:
        bucket = self.plan.by_name[key.bucket]
        specs = arrays.bucket_specs(bucket, views=self._views, levels=self._levels, codec=self.description.codec)
        return {spec.file(key.shard) for spec in specs}

    def _array_specs(self) -> Iterator[ArraySpec]:
        for bucket in self.plan.buckets:
            yield from arrays.bucket_specs(bucket, views=self._views, levels=self._levels, codec=self.description.codec)

    def _write_head(self) -> dict[str, FileRecord]:
        """Index and teacher weights: small, and the same at every start."""
        files = {TEACHER_FILE: self._teacher_weights}
        specs = arrays.index_specs(self.plan.num_images)
        for name, values in self._index().items():
            files[specs[name].file(0)] = arrays.encode_plain(values, specs[name])
        for name, content in files.items():
            path = self.root / name
            if not path.exists() or sha256_file(path) != sha256_bytes(content):
                write_atomically(path, content)
        return {name: _record(content) for name, content in files.items()}

    def _record_bases(self) -> dict[str, Tensor]:
        path = self.root / BASIS_FILE
        content = path.read_bytes()
        bases = load_basis(content, self._levels, name=str(path))
        self._head_files[BASIS_FILE] = _record(content)
        return bases

    def _index(self) -> dict[str, np.ndarray]:
        geometry = self.description.geometry.to_geometry()
        columns: dict[str, list[object]] = {name: [] for name in arrays.INDEX_COLUMNS}
        for number, bucket in enumerate(self.plan.buckets):
            for row, image in enumerate(bucket.images):
                values = (image.image_id, number, row, image.size, geometry.resized(image.size), bucket.padded)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
        return {name: np.array(values) for name, values in columns.items()}


def _record(content: bytes) -> FileRecord:
    return FileRecord(num_bytes=len(content), sha256=sha256_bytes(content))


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turns what a disk refuses into one line that says how to go on."""
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
        }.get(error.errno or 0, str(error))
        raise UnavailableError(
            f'{root}: {advice}, then run the same command again; all committed shards are kept'
        ) from error
