"""Writing a cache: one shard group at a time, resumable at any of them, by one process or by several parts.

Order of events: plan.json (what is being made), zarr metadata, index, teacher weights; then for each shard group its
files and one line of the part's journal; last the manifest, by the process that finds all groups committed. Each file
is written to a temporary name, flushed and renamed. A kill at any moment leaves either no manifest, which no reader
opens, or a finished cache. What the parts write beside the shards is the same from all of them.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mtpd.cache.format import arrays, manifest, roi_arrays
from mtpd.cache.format.arrays import StoredMap
from mtpd.cache.format.codecs import EncodedMaps, require_storable
from mtpd.cache.format.manifest import TEACHER_FILE, Description, FileRecord
from mtpd.cache.format.plan import Bucket, CachePlan, ShardKey
from mtpd.cache.format.tensor_files import BASIS_FILE, load_basis, plan_of_basis, save_basis
from mtpd.cache.format.zarr_metadata import create_arrays
from mtpd.cache.writing import journal, plan_file
from mtpd.cache.writing.journal import JournalEntry
from mtpd.cache.writing.parts import WHOLE, Part, cache_lock, gate
from mtpd.errors import CacheIncompleteError, CacheMismatchError, InputError, UnavailableError
from mtpd.heads.rois import ImageRois
from mtpd.system.files import sha256_bytes, sha256_file, write_atomically, write_exclusively

# Threads that compress: one for each core, but a disk takes no more than these make.
MAX_COMPRESSORS = 8


class ShardGroup:
    """A shard group in memory while it is filled: all levels and views of a run of rows, image by image.

    Maps are compressed immediately, so that it never holds uncompressed codes. The threads of `compressors` share the
    work: zstd leaves Python's lock to others, and one core compresses less than a GPU makes.
    """

    def __init__(self, description: Description, bucket: Bucket, key: ShardKey, *, compressors: Executor) -> None:
        self.key = key
        self._description = description
        self._bucket = bucket
        self._images = [bucket.images[row] for row in bucket.rows(key.shard)]
        self._compressors = compressors
        self._specs = {spec.path: spec for spec in description.bucket_specs(bucket)}
        self._rows: dict[str, list[Any]] = {path: [] for path in self._specs}

    def append(self, view: str, maps: Mapping[str, EncodedMaps]) -> None:
        """Appends the next images of a view, in row order: level name -> codes (B, C, H, W) on the host.

        InputError: a map has another shape than the plan expects, or holds values that cannot be stored.
        """
        folder, levels = f'{self._bucket.name}/{view}', self._description.levels
        compress = partial(arrays.encode_chunk, level=arrays.ZSTD_LEVELS[self._description.codec])
        start = len(self._rows[f'{folder}/image_id'])
        image_ids = [image.image_id for image in self._images[start : start + len(maps[levels[0].name].codes)]]
        pending: list[Iterator[bytes]] = []
        errors: list[list[float]] = []
        for level in levels:
            encoded = maps[level.name]
            codes, wanted = encoded.codes.numpy(), self._specs[f'{folder}/{level.name}'].row_shape
            if codes.shape[1:] != wanted:
                raise InputError(
                    f'level {level.name} of the teacher is {codes.shape[1:]} for a {self._bucket.name} input, expected '
                    f'{wanted}: its stride is not {level.stride} there; exclude the level with --levels'
                )
            require_storable(encoded, level=level.name, view=view, image_ids=image_ids)
            assert encoded.error is not None
            errors.append(encoded.error.tolist())
            pending.append(self._compressors.map(compress, codes))
            if encoded.scale is not None:
                self._rows[f'{folder}/{level.name}.scale'] += list(encoded.scale.numpy())
        self._add(view, image_ids, [list(one) for one in pending], errors)

    def append_stored(self, view: str, maps: Mapping[str, StoredMap]) -> None:
        """Appends the next image of a view as another cache stores it: level name -> its row."""
        folder, levels = f'{self._bucket.name}/{view}', self._description.levels
        for level in levels:
            scale = maps[level.name].scale
            if scale is not None:
                self._rows[f'{folder}/{level.name}.scale'].append(scale)
        image_id = self._images[len(self._rows[f'{folder}/image_id'])].image_id
        in_order = [maps[level.name] for level in levels]
        self._add(view, [image_id], [[one.chunk] for one in in_order], [[one.error] for one in in_order])

    def _add(
        self, view: str, image_ids: Sequence[int], chunks: Sequence[Sequence[bytes]], errors: Sequence[Sequence[float]]
    ) -> None:
        """Adds rows of all levels, each with its chunks and errors in the order of the images."""
        folder = f'{self._bucket.name}/{view}'
        for level, of_level in zip(self._description.levels, chunks, strict=True):
            self._rows[f'{folder}/{level.name}'] += of_level
        self._rows[f'{folder}/image_id'] += image_ids
        self._rows[f'{folder}/crc32c'] += zip(*(map(arrays.chunk_checksum, one) for one in chunks), strict=True)
        self._rows[f'{folder}/error'] += zip(*errors, strict=True)

    def append_rois(self, images: Sequence[ImageRois]) -> None:
        """Appends the RoIs of the next images, in row order; InputError where values cannot be stored."""
        folder, specs = f'{arrays.HEADS}/{self._bucket.name}', arrays.roi_specs(self._bucket, self._description.rois)
        assert specs, 'this cache holds no RoIs'
        for rois in images:
            image_id = self._images[len(self._rows[f'{folder}/image_id'])].image_id
            try:
                roi_arrays.require_rois(rois)
            except ValueError as error:
                raise InputError(
                    f'image {image_id}: the teacher returns proposals with {error}; omit them with --rois 0'
                ) from error
            values = roi_arrays.encode_rois(rois, specs)
            checksum = roi_arrays.rois_checksum([values[name].tobytes() for name in roi_arrays.ROI_VALUES])
            tables = {'image_id': image_id, 'num_rois': len(rois.boxes), 'crc32c': checksum}
            for name, value in (tables | values).items():
                self._rows[f'{folder}/{name}'].append(value)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Path below the cache's root and content of each of the group's files. The group must be full."""
        for path, spec in self._specs.items():
            rows = self._rows[path]
            if len(rows) != len(self._images):
                raise RuntimeError(f'shard {self.key}: {path} holds {len(rows)} of {len(self._images)} images')
            if spec.sharded:
                content = arrays.encode_shard(rows, chunks_per_shard=spec.rows_per_file)
            else:
                content = arrays.encode_plain(np.array(rows), spec)
            yield spec.file(self.key.shard), content


class CacheWriter:
    """Holds the lock of a cache, or of a part of it, that is being written.

    Use as a context manager. Entering it locks the folder, checks that what is there belongs to the same extraction and
    writes what precedes the shards. It raises InputError when no manifest can hold such a cache, UnavailableError when
    another process is writing it or the disk cannot be written, CacheMismatchError when it holds something else.
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
        self._closing = ExitStack()
        self._committed: set[ShardKey] = set()
        self._basis_path = root / BASIS_FILE
        self._basis: dict[str, FileRecord] = {}
        # Index and teacher weights: small, and the same at every start.
        self._head = {TEACHER_FILE: teacher_weights, **_index_files(description, plan)}
        files = {name: _record(content) for name, content in self._head.items()}
        self._plan_record = plan_file.plan_record(description, plan.buckets, files)

    def __enter__(self) -> 'CacheWriter':
        manifest.require_publishable(self.description, self.plan)
        with ExitStack() as stack, disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(cache_lock(self.root, part=self.part))
            with gate(self.root):
                self._check_or_write_plan()
                if self.is_finished:
                    journal.publish(self.root)
            if not self.is_finished:
                journal.cut_torn_tail(self.root, part=self.part)
                if self._has_own_bases():
                    self._read_bases()
                self._committed = set(journal.committed(self.root, self._plan_record))
                journal.remove_leftovers(self.root, part=self.part, committed=self._committed)
                create_arrays(self.root, self._plan_record.specs(), owner=self.part.label)
                for name, content in self._head.items():
                    path = self.root / name
                    if not path.exists() or sha256_file(path) != self._plan_record.files[name].sha256:
                        write_atomically(path, content, owner=self.part.label)
            self._compressors = stack.enter_context(compression_threads())
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._closing.close()

    @property
    def is_finished(self) -> bool:
        """Whether the manifest has been published."""
        return journal.is_published(self.root)

    def pending(self) -> list[ShardKey]:
        """This part's shard groups that are still to be written, in order."""
        return [] if self.is_finished else [key for key in self.share() if key not in self._committed]

    def share(self) -> list[ShardKey]:
        """This part's shard groups, written or not."""
        return self.part.share(self.plan.shard_keys())

    def bases(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The rotation of each level that all shards share, for the `lean` codec; computed where there is none yet."""
        if not self._has_own_bases():
            content = save_basis(compute(), plan=self._plan_record.sha256)
            with disk_errors(self.root):
                if not self._has_own_bases():
                    self._basis_path.unlink(missing_ok=True)
                write_exclusively(self._basis_path, content, owner=self.part.label)
        return self._read_bases()

    def start_group(self, key: ShardKey) -> ShardGroup:
        """An empty shard group to be filled with encoded maps and given to `commit`."""
        return ShardGroup(self.description, self.plan.by_name[key.bucket], key, compressors=self._compressors)

    def commit(self, group: ShardGroup) -> int:
        """Puts a full group's files in place and journals it; returns the bytes written.

        UnavailableError: the disk is full or read-only; what was committed before is kept. CacheMismatchError: the
        folder has become another extraction's, or the cache has been finished.
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
            files = self._basis | records
            entry = JournalEntry(plan=self._plan_record.sha256, **group.key._asdict(), files=files)
            journal.append_entry(self.root, entry, part=self.part)
        self._committed.add(group.key)
        return sum(record.num_bytes for record in records.values())

    def finish(self) -> list[ShardKey]:
        """Publishes the manifest if the other parts have committed all of theirs too; returns what they have not."""
        assert not self.pending(), 'finish() before all shard groups were committed'
        with disk_errors(self.root):
            # Many parts may finish together: only those that find all groups in the journals wait for the gate.
            missing = journal.missing_entries(self.root, self._plan_record)
            if missing and not self.is_finished:
                return missing
            with gate(self.root):
                if not self.is_finished:
                    self._require_own_plan()
                return journal.publish(self.root, owner=self.part.label)

    def _check_or_write_plan(self) -> None:
        if self.is_finished:
            found = manifest.read_manifest(self.root)
            # The hashes of what precedes the shards are the readers' business.
            present = plan_file.plan_record(found.description, found.buckets, self._plan_record.files)
            self._require_same(present.model_dump(mode='json'))
        elif (self.root / plan_file.PLAN_FILE).exists():
            self._require_same(plan_file.read_plan_json(self.root))
        else:
            others = [path.name for path in self.root.iterdir() if not path.name.startswith('.')]
            if others:
                raise CacheMismatchError(
                    f'{self.root}: the folder is not empty ({others[0]}) and does not hold an extraction; '
                    'choose another folder'
                )
            plan_file.write_plan_file(self.root, self._plan_record, owner=self.part.label)

    def _require_own_plan(self) -> None:
        try:
            self._require_same(plan_file.read_plan_json(self.root))
        except CacheIncompleteError:  # the plan goes when the cache is published, maybe just now
            if not self.is_finished:
                raise

    def _require_same(self, found: Any) -> None:
        """Refuses to mix two extractions in one folder."""
        difference = plan_file.first_difference(found, self._plan_record)
        if difference:
            raise CacheMismatchError(
                f'{self.root}: holds another extraction: {difference}; choose another folder, or delete it with '
                'mtpd-extract --overwrite'
            )

    def _has_own_bases(self) -> bool:
        """Whether the basis is there, and not that of another extraction whose files were copied here."""
        path = self._basis_path
        return path.exists() and plan_of_basis(path.read_bytes()) in (None, self._plan_record.sha256)

    def _read_bases(self) -> dict[str, Tensor]:
        content = self._basis_path.read_bytes()
        levels = [level.to_level() for level in self.description.levels]
        bases = load_basis(content, levels, name=str(self._basis_path))
        self._basis = {BASIS_FILE: _record(content)}
        return bases


def _index_files(description: Description, plan: CachePlan) -> dict[str, bytes]:
    """For every image where it is and what its sizes are: path -> content."""
    geometry = description.geometry.to_geometry()
    rows = [
        (image.image_id, number, row, image.size, geometry.resized(image.size), bucket.padded)
        for number, bucket in enumerate(plan.buckets)
        for row, image in enumerate(bucket.images)
    ]
    specs = arrays.index_specs(plan.num_images).values()
    columns = zip(*rows, strict=True)
    return {
        spec.file(0): arrays.encode_plain(np.array(column), spec) for spec, column in zip(specs, columns, strict=True)
    }


def compression_threads() -> ThreadPoolExecutor:
    """Threads for the `compressors` of shard groups."""
    return ThreadPoolExecutor(min(MAX_COMPRESSORS, os.cpu_count() or 1), thread_name_prefix='compress')


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
