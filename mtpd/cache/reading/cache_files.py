"""The files of a cache, opened only as its manifest guarantees them."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec
from mtpd.cache.format.manifest import FileRecord
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.system.files import sha256_bytes


class CacheFiles:
    """The files below the root of a cache, by the paths and sizes on record; CacheDamagedError for any other."""

    def __init__(self, root: Path, records: Mapping[str, FileRecord]) -> None:
        self.root = root
        self._records = records

    def size(self, file: str) -> int:
        """Bytes of a file that is there, inside the cache, and as long as it was when it was written."""
        record = self._records.get(file)
        if record is None:
            raise CacheDamagedError(f'{self.root}: {file} is not in the manifest')
        path = self.root / file
        try:
            found = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise _unreadable(path, error) from error
        if found != record.num_bytes:
            state = 'missing' if found is None else f'{found} bytes long'
            raise CacheDamagedError(f'{path}: is {state}, the manifest states {record.num_bytes} bytes; {REPAIR}')
        # The path comes from the manifest, but links in it may come from anyone who packed the folder.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise CacheDamagedError(f'{path}: is a link to a place outside the cache; replace it with the file itself')
        return record.num_bytes

    def read(self, file: str, *, max_bytes: int) -> bytes:
        """The content of a small file; refused if it is missing, longer than `max_bytes`, or not what was written."""
        size = self.size(file)
        if size > max_bytes:
            raise CacheDamagedError(f'{self.root / file}: has {size} bytes, at most {max_bytes} were expected')
        try:
            content = (self.root / file).read_bytes()
        except OSError as error:
            raise _unreadable(self.root / file, error) from error
        self.require_sha256(file, sha256_bytes(content))
        return content

    def require_sha256(self, file: str, found: str) -> None:
        """Refuses a file that `size` has let pass if its hash is not the one on record."""
        if found != self._records[file].sha256:
            raise CacheDamagedError(f'{self.root / file}: its content differs from what was written; {REPAIR}')

    def read_array(self, spec: ArraySpec, *, shard: int) -> np.ndarray:
        """The rows (rows_per_file, ...) of one file of an array that is not sharded."""
        file = spec.file(shard)
        size, name = self.size(file), str(self.root / file)
        arrays.require_plain_bytes(spec, size, name=name)
        return arrays.decode_plain(self.read(file, max_bytes=size), spec, name=name)

    def read_shard_index(self, spec: ArraySpec, *, shard: int) -> np.ndarray:
        """Offset and length (rows_per_file, 2) uint64 of the chunk of each row of a shard."""
        file = spec.file(shard)
        size, length, name = self.size(file), arrays.index_bytes(spec.rows_per_file), str(self.root / file)
        if size < length:
            raise CacheDamagedError(f'{name}: has {size} bytes, its index alone needs {length}; {REPAIR}')
        return arrays.decode_index(
            self.read_range(file, offset=size - length, length=length),
            chunks_per_shard=spec.rows_per_file,
            num_chunks=min(spec.rows_per_file, spec.shape[0] - shard * spec.rows_per_file),
            chunk_bytes=spec.row_bytes,
            shard_bytes=size,
            name=name,
        )

    def read_range(self, file: str, *, offset: int, length: int) -> bytes:
        """Bytes of a file that `size` has let pass; fewer where it has become shorter."""
        try:
            descriptor = os.open(f'{self.root}/{file}', os.O_RDONLY)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(self.root / file, error) from error


def _unreadable(path: Path, error: OSError) -> CacheDamagedError:
    return CacheDamagedError(f'{path}: cannot be read ({error.strerror})')
