"""The files of a cache, opened only as its manifest guarantees them, and its index.

The index says which image is in which row, and how large it is; it is checked against itself and the manifest.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from mtpd.cache.format.arrays import ArraySpec, decode_index, index_bytes, index_specs, require_plain_bytes
from mtpd.cache.format.manifest import FileRecord, Manifest, read_manifest
from mtpd.cache.format.plan import Bucket, CachePlan, SourceImage
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.geometry import Geometry, Size, shared_sizes
from mtpd.system.files import sha256_bytes


class Folder(Protocol):
    """Where the files of a cache are."""

    name: str

    def read_manifest(self) -> Manifest:
        """The manifest; raises what `mtpd.cache.open` does."""

    def size(self, file: str) -> int | None:
        """Bytes of a file, None where there is none."""

    def read(self, file: str) -> bytes:
        """The content of a file whose size has been asked for."""

    def read_range(self, file: str, *, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer where it ends before."""

    def files(self) -> dict[str, int]:
        """Path and bytes of everything that is there, of the cache or not."""


class LocalFolder:
    """A folder of this machine, or of a file system that it has mounted."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._root = root
        self._real_root = os.path.realpath(root)

    def read_manifest(self) -> Manifest:
        return read_manifest(self._root)

    def size(self, file: str) -> int | None:
        path = f'{self.name}/{file}'
        with readable(path):
            size = os.stat(path).st_size if os.path.isfile(path) else None
        # The path comes from the manifest, but links in it may come from anyone who packed the folder.
        if size is not None and not self._is_inside(file):
            raise CacheDamagedError(f'{path}: is a link to a place outside the cache; replace it with the file itself')
        return size

    def read(self, file: str) -> bytes:
        path = f'{self.name}/{file}'
        with readable(path):
            return Path(path).read_bytes()

    def read_range(self, file: str, *, offset: int, length: int) -> bytes:
        path = f'{self.name}/{file}'
        with readable(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)

    def files(self) -> dict[str, int]:
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(self._root) for name in names]
        # A link may lead nowhere.
        return {
            os.path.relpath(path, self._root): os.stat(path).st_size if os.path.exists(path) else 0 for path in paths
        }

    def _is_inside(self, file: str) -> bool:
        return os.path.realpath(f'{self._real_root}/{file}').startswith(os.path.join(self._real_root, ''))


class CacheFiles:
    """The files of a cache, by the paths and sizes on record; CacheDamagedError for any other."""

    def __init__(self, folder: Folder, records: Mapping[str, FileRecord]) -> None:
        self.name = folder.name
        self._folder = folder
        self._records = records

    def size(self, file: str) -> int:
        """Bytes of a file that is there, inside the cache, and as long as it was when it was written."""
        num_bytes, found = self._record(file).num_bytes, self._folder.size(file)
        if found != num_bytes:
            state = 'missing' if found is None else f'{found} bytes long'
            raise CacheDamagedError(f'{self.name}/{file}: is {state}, the manifest states {num_bytes} bytes; {REPAIR}')
        return num_bytes

    def read(self, file: str, *, max_bytes: int) -> bytes:
        """The content of a small file; refused if it is missing, longer than `max_bytes`, or not what was written."""
        size = self.size(file)
        if size > max_bytes:
            raise CacheDamagedError(f'{self.name}/{file}: has {size} bytes, at most {max_bytes} were expected')
        content = self._folder.read(file)
        self.require_sha256(file, sha256_bytes(content))
        return content

    def read_range(self, file: str, *, offset: int, length: int) -> bytes:
        """Bytes of a file that `size` has let pass; fewer where it has become shorter."""
        return self._folder.read_range(file, offset=offset, length=length)

    def _record(self, file: str) -> FileRecord:
        record = self._records.get(file)
        if record is None:
            raise CacheDamagedError(f'{self.name}: {file} is not in the manifest')
        return record

    def require_sha256(self, file: str, found: str) -> None:
        """Refuses a file that `size` has let pass if its hash is not the one on record."""
        if found != self._records[file].sha256:
            raise CacheDamagedError(f'{self.name}/{file}: its content differs from what was written; {REPAIR}')

    def read_array(self, spec: ArraySpec, *, shard: int) -> np.ndarray:
        """The rows (rows_per_file, ...) of one file of an array that is not sharded."""
        file = spec.file(shard)
        require_plain_bytes(spec, self._record(file).num_bytes, name=f'{self.name}/{file}')
        content = self.read(file, max_bytes=spec.file_bytes)
        return np.frombuffer(content, dtype=spec.file_dtype).reshape(spec.rows_per_file, *spec.row_shape)

    def read_shard_index(self, spec: ArraySpec, *, shard: int) -> np.ndarray:
        """Offset and length (rows_per_file, 2) uint64 of the chunk of each row of a shard."""
        file = spec.file(shard)
        size, length, name = self.size(file), index_bytes(spec.rows_per_file), f'{self.name}/{file}'
        if size < length:
            raise CacheDamagedError(f'{name}: has {size} bytes, its index alone needs {length}; {REPAIR}')
        return decode_index(
            self.read_range(file, offset=size - length, length=length),
            chunks_per_shard=spec.rows_per_file,
            num_chunks=min(spec.rows_per_file, spec.shape[0] - shard * spec.rows_per_file),
            chunk_bytes=spec.row_bytes,
            shard_bytes=size,
            name=name,
        )


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turns an error of the system into a CacheDamagedError that names the file."""
    try:
        yield
    except OSError as error:
        raise CacheDamagedError(f'{path}: cannot be read ({error.strerror})') from error


def read_index(files: CacheFiles, manifest: Manifest) -> CachePlan:
    """The plan that a cache was written by; CacheDamagedError where the index contradicts itself or the manifest."""
    columns = {name: files.read_array(spec, shard=0) for name, spec in index_specs(manifest.num_images).items()}
    sizes = [bucket.num_images for bucket in manifest.buckets]
    problem = _index_problem(columns, sizes)
    if problem:
        raise CacheDamagedError(f'{files.name}: {problem}; extract it again')
    order = np.lexsort((columns['row'], columns['bucket']))
    image_ids = columns['image_id'][order].tolist()
    names = 'original', 'resized', 'padded'
    original, resized, padded = (shared_sizes(columns[name][order].tolist()) for name in names)
    geometry: Geometry = manifest.description.geometry.to_geometry()

    @cache  # a data set has far fewer sizes than images
    def expected(size: Size) -> tuple[Size, Size]:
        return geometry.resized(size), geometry.padded(size)

    buckets, start = [], 0
    for number, record in enumerate(manifest.buckets):
        rows = slice(start, start + record.num_images)
        for own, *stated in zip(original[rows], resized[rows], padded[rows], strict=True):
            if expected(own) != tuple(stated) or stated[1] != record.padded:
                raise CacheDamagedError(
                    f'{files.name}: the index contradicts the manifest about bucket {number}; extract it again'
                )
        images = tuple(map(SourceImage, image_ids[rows], original[rows]))
        buckets.append(Bucket(**vars(record), images=images))
        start += record.num_images
    return CachePlan(buckets=tuple(buckets))


def _index_problem(columns: dict[str, np.ndarray], sizes: list[int]) -> str | None:
    """What of the index contradicts itself or the numbers of images of the buckets."""
    bucket, row = columns['bucket'], columns['row']
    if np.unique(columns['image_id']).size < bucket.size:
        return 'the index lists an image twice'
    if bucket.min() < 0 or bucket.max() >= len(sizes) or np.bincount(bucket).tolist() != sizes:
        return 'the index and the manifest differ in the number of images of a bucket'
    order = np.lexsort((row, bucket))
    if not np.array_equal(row[order], np.concatenate([np.arange(size) for size in sizes])):
        return 'the index does not assign every row of a bucket to one image'
    if min(columns[name].min() for name in ('original', 'resized', 'padded')) < 1:
        return 'the index has sizes below 1 px'
    return None
