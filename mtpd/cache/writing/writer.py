"""Writing a cache: one shard group at a time, resumable at any of them, by one process or by several parts.

Order of events: plan.json (what is being made), zarr metadata, index, teacher weights; then for each shard group its
files and one line of the part's journal; last the manifest, by the process that finds all groups committed. Each file
is written to a temporary name, flushed and renamed. A kill at any moment leaves either no manifest, which no reader
opens, or a finished cache. What the parts write beside the shards is the same from all of them.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from mtpd.cache.format import arrays, manifest
from mtpd.cache.format.basis import BASIS_FILE, load_basis, plan_of_basis, save_basis
from mtpd.cache.format.fingerprint import require_equal
from mtpd.cache.format.manifest import TEACHER_FILE, Description, FileRecord
from mtpd.cache.format.plan import CachePlan, ShardKey
from mtpd.cache.format.zarr_metadata import create_arrays
from mtpd.cache.writing import journal
from mtpd.cache.writing.locks import CacheLock
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.plan_file import PLAN_FILE, plan_record, read_plan_json, write_plan_file
from mtpd.cache.writing.publish import committed, is_published, publish, remove_leftovers
from mtpd.cache.writing.shard_group import ShardGroup
from mtpd.errors import CacheIncompleteError, CacheMismatchError, UnavailableError
from mtpd.system.files import sha256_bytes, sha256_file, write_atomically, write_exclusively

# Threads that compress: one for each core, but a disk takes no more than these make.
MAX_COMPRESSORS = 8


class CacheWriter:
    """Holds the lock of a cache, or of a part of it, that is being written.

    Use as a context manager. Entering it locks the folder, checks that what is there belongs to the same extraction and
    writes what precedes the shards.

    Raises (on entering):
        InputError: no manifest can hold such a cache.
        UnavailableError: another process is writing this cache or this part of it, or the disk refuses.
        CacheMismatchError: the folder holds something else, or an extraction of something else.
    """

    def __init__(
        self,
        root: Path,
        *,
        description: Description,
        plan: CachePlan,
        teacher_weights: bytes,
        part: Part = WHOLE,
    ) -> None:
        self.root = root
        self.description = description
        self.plan = plan
        self.part = part
        self._lock = CacheLock(root, part=part)
        self._closing = ExitStack()
        self._committed: set[ShardKey] = set()
        self._basis: dict[str, FileRecord] = {}
        self._views = description.views
        self._levels = tuple(level.to_level() for level in description.levels)
        self._head = {TEACHER_FILE: teacher_weights, **self._index_files()}
        self._plan_record = plan_record(
            description,
            [manifest.bucket_record(bucket) for bucket in plan.buckets],
            {name: _record(content) for name, content in self._head.items()},
        )

    def __enter__(self) -> 'CacheWriter':
        manifest.require_publishable(self.description, self.plan)
        with ExitStack() as stack, disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(self._lock)
            with self._lock.gate():
                self._check_or_write_plan()
                if self.is_finished:
                    publish(self.root)
            if not self.is_finished:
                remove_leftovers(self.root, part=self.part)
                create_arrays(self.root, self._plan_record.specs(), owner=self.part.label)
                self._write_head()
                journal.cut_torn_tail(self.root, part=self.part)
                if self._has_own_bases():
                    self._read_bases()
                self._committed = set(committed(self.root, self._plan_record))
            num_threads = min(MAX_COMPRESSORS, os.cpu_count() or 1)
            self._compressors = stack.enter_context(ThreadPoolExecutor(num_threads, thread_name_prefix='compress'))
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def is_finished(self) -> bool:
        """Whether the manifest has been published."""
        return is_published(self.root)

    def pending(self) -> list[ShardKey]:
        """This part's shard groups that are still to be written, in order."""
        return [] if self.is_finished else [key for key in self.share() if key not in self._committed]

    def share(self) -> list[ShardKey]:
        """This part's shard groups, written or not."""
        return self.part.share(self.plan.shard_keys())

    def bases(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The rotation of each level that all shards of this cache share, for the `lean` codec.

        Args:
            compute: makes them; called only when this cache has none yet.

        Raises:
            CacheDamagedError: the stored ones were changed.
        """
        path = self.root / BASIS_FILE
        if not self._has_own_bases():
            content = save_basis(compute(), plan=self._plan_record.sha256)
            with disk_errors(self.root):
                if not self._has_own_bases():
                    path.unlink(missing_ok=True)
                write_exclusively(path, content, owner=self.part.label)
        return self._read_bases()

    def start_group(self, key: ShardKey) -> ShardGroup:
        """An empty shard group to be filled with encoded maps and given to `commit`."""
        return ShardGroup(
            bucket=self.plan.by_name[key.bucket],
            key=key,
            views=self._views,
            levels=self._levels,
            codec=self.description.codec,
            compressors=self._compressors,
            rois=self.description.rois,
        )

    def commit(self, group: ShardGroup) -> int:
        """Puts a full group's files in place and journals it; returns the bytes written.

        Raises:
            UnavailableError: the disk is full or read-only; what was committed before is kept.
            CacheMismatchError: the folder has become another extraction's, or a finished cache.
        """
        # Locks can fail on a network file system, and folders be deleted: nothing goes into another extraction.
        if self.is_finished:
            raise CacheMismatchError(f'{self.root}: another process has finished this cache; nothing to do')
        self._require_own_plan()
        records = {}
        with disk_errors(self.root):
            for name, content in group.files():
                write_atomically(self.root / name, content, owner=self.part.label)
                records[name] = _record(content)
            entry = journal.JournalEntry(self._plan_record.sha256, group.key, self._basis | records)
            journal.append_entry(self.root, entry, part=self.part)
        self._committed.add(group.key)
        return sum(record.num_bytes for record in records.values())

    def finish(self) -> list[ShardKey]:
        """Publishes the manifest if the other parts have committed all of theirs too.

        Returns:
            The shard groups that other parts have still to write; none when the cache is published.
        """
        assert not self.pending(), 'finish() before all shard groups were committed'
        with disk_errors(self.root), self._lock.gate():
            if not self.is_finished:
                self._require_own_plan()
            return publish(self.root, owner=self.part.label)

    def _check_or_write_plan(self) -> None:
        if self.is_finished:
            found = manifest.read_manifest(self.root)
            # The hashes of what precedes the shards are the readers' business.
            present = plan_record(found.description, found.buckets, self._plan_record.files)
            self._require_plan(present.model_dump(mode='json'))
        elif (self.root / PLAN_FILE).exists():
            self._require_plan(read_plan_json(self.root))
        else:
            strangers = [path.name for path in self.root.iterdir() if not path.name.startswith('.')]
            if strangers:
                raise CacheMismatchError(
                    f'{self.root}: the folder is not empty ({strangers[0]}) and does not hold an extraction; '
                    'choose another --out'
                )
            write_plan_file(self.root, self._plan_record, owner=self.part.label)

    def _require_own_plan(self) -> None:
        try:
            self._require_plan(read_plan_json(self.root))
        except CacheIncompleteError:  # the plan goes when the cache is published, maybe just now
            if not self.is_finished:
                raise

    def _require_plan(self, found: Any) -> None:
        require_equal(self.root, found=found, wanted=self._plan_record.model_dump(mode='json'))

    def _write_head(self) -> None:
        """Index and teacher weights: small, and the same at every start."""
        for name, content in self._head.items():
            path = self.root / name
            if not path.exists() or sha256_file(path) != sha256_bytes(content):
                write_atomically(path, content, owner=self.part.label)

    def _has_own_bases(self) -> bool:
        """Whether the basis is there, and not that of another extraction whose files were copied here."""
        path = self.root / BASIS_FILE
        return path.exists() and plan_of_basis(path.read_bytes()) in (None, self._plan_record.sha256)

    def _read_bases(self) -> dict[str, Tensor]:
        path = self.root / BASIS_FILE
        content = path.read_bytes()
        bases = load_basis(content, self._levels, name=str(path))
        self._basis = {BASIS_FILE: _record(content)}
        return bases

    def _index_files(self) -> dict[str, bytes]:
        """For every image where it is and what its sizes are."""
        geometry = self.description.geometry.to_geometry()
        columns: dict[str, list[object]] = {name: [] for name in arrays.INDEX_COLUMNS}
        for number, bucket in enumerate(self.plan.buckets):
            for row, image in enumerate(bucket.images):
                values = (image.image_id, number, row, image.size, geometry.resized(image.size), bucket.padded)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
        specs = arrays.index_specs(self.plan.num_images)
        return {
            specs[name].file(0): arrays.encode_plain(np.array(values), specs[name]) for name, values in columns.items()
        }


def _record(content: bytes) -> FileRecord:
    return FileRecord(num_bytes=len(content), sha256=sha256_bytes(content))


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
