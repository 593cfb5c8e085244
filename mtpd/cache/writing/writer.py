"""Writing a cache: one shard group at a time, resumable at any of them, by one process or by several parts.

Order of events: plan.json (what is being made), zarr metadata, index, teacher weights; then for each shard group its
files and the record that counts them as written; last the manifest, by the process that finds all groups committed.
Each file appears whole or not at all. A kill at any moment leaves either no manifest, which no reader opens, or a
finished cache. What the parts write beside the shards is the same from all of them.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mtpd.cache.format import arrays, manifest, roi_arrays
from mtpd.cache.format.arrays import StoredMap
from mtpd.cache.format.codecs import EncodedMaps, require_storable
from mtpd.cache.format.manifest import TEACHER_FILE, Description, FileRecord
from mtpd.cache.format.plan import Bucket, CachePlan, ShardKey
from mtpd.cache.format.tensor_files import BASIS_FILE, load_basis, plan_of_basis, save_basis
from mtpd.cache.writing.destination import Destination
from mtpd.cache.writing.plan_file import file_record, plan_record
from mtpd.errors import InputError
from mtpd.heads.rois import ImageRois

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
    """Holds the right to write a cache, or a part of it.

    Use as a context manager. Entering it locks the place, checks that what is there belongs to the same extraction and
    writes what precedes the shards. It raises InputError when no manifest can hold such a cache, UnavailableError when
    another process is writing it or the place cannot be written, CacheMismatchError when it holds something else.
    """

    def __init__(
        self, destination: Destination, *, description: Description, plan: CachePlan, teacher_weights: bytes
    ) -> None:
        self.destination = destination
        self.description = description
        self.plan = plan
        self._closing = ExitStack()
        self._committed: set[ShardKey] = set()
        self._basis: dict[str, FileRecord] = {}
        # Index and teacher weights: small, and the same at every start.
        self._head = {TEACHER_FILE: teacher_weights, **_index_files(description, plan)}
        files = {name: file_record(content) for name, content in self._head.items()}
        self._plan_record = plan_record(description, plan.buckets, files)

    def __enter__(self) -> 'CacheWriter':
        manifest.require_publishable(self.description, self.plan)
        with ExitStack() as stack, self.destination.errors():
            stack.enter_context(self.destination.lock())
            self._committed = self.destination.start(self._plan_record)
            if not self.is_finished:
                self._own_bases()
                self.destination.write_head(self._plan_record, self._head)
            self._compressors = stack.enter_context(compression_threads())
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._closing.close()

    @property
    def is_finished(self) -> bool:
        """Whether the manifest has been published."""
        return self.destination.is_published()

    def pending(self) -> list[ShardKey]:
        """This part's shard groups that are still to be written, in order."""
        return [] if self.is_finished else [key for key in self.share() if key not in self._committed]

    def share(self) -> list[ShardKey]:
        """This part's shard groups, written or not."""
        return self.destination.part.share(self.plan.shard_keys())

    def bases(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The rotation of each level that all shards share, for the `lean` codec; computed where there is none yet."""
        bases = self._own_bases()
        if bases is None:
            content = save_basis(compute(), plan=self._plan_record.sha256)
            with self.destination.errors():
                found = self.destination.read(BASIS_FILE)
                if found is not None and not self._is_own_basis(found):
                    self.destination.delete(BASIS_FILE)
                self.destination.create(BASIS_FILE, content)
                bases = self._own_bases()
        assert bases is not None
        return bases

    def start_group(self, key: ShardKey) -> ShardGroup:
        """An empty shard group to be filled with encoded maps and given to `commit`."""
        return ShardGroup(self.description, self.plan.by_name[key.bucket], key, compressors=self._compressors)

    def commit(self, group: ShardGroup) -> int:
        """Puts a full group's files in place and records it; returns the bytes written.

        UnavailableError: the disk is full or read-only; what was committed before is kept. CacheMismatchError: the
        place has become another extraction's, or the cache has been finished.
        """
        with self.destination.errors():
            num_bytes = self.destination.commit(group.key, group.files(), plan=self._plan_record, shared=self._basis)
        self._committed.add(group.key)
        return num_bytes

    def finish(self) -> list[ShardKey]:
        """Publishes the manifest if the other parts have committed all of theirs too; returns what they have not."""
        assert not self.pending(), 'finish() before all shard groups were committed'
        with self.destination.errors():
            return self.destination.publish(self._plan_record)

    def _own_bases(self) -> dict[str, Tensor] | None:
        """The rotations that are there, if they are of this extraction."""
        content = self.destination.read(BASIS_FILE)
        if content is None or not self._is_own_basis(content):
            return None
        levels = [level.to_level() for level in self.description.levels]
        bases = load_basis(content, levels, name=f'{self.destination.name}/{BASIS_FILE}')
        self._basis = {BASIS_FILE: file_record(content)}
        return bases

    def _is_own_basis(self, content: bytes) -> bool:
        """Whether it is not of another extraction, whose files were copied here."""
        return plan_of_basis(content) in (None, self._plan_record.sha256)


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
