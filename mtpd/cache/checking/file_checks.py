"""Checking one file of a cache from its first byte to its last."""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from mtpd.cache.format.arrays import ArraySpec, decode_plain, require_plain_bytes
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.shard import decode_chunk, decode_index, index_bytes
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.errors import CacheDamagedError

PIECE_BYTES = 2**22


@dataclass(frozen=True)
class FileCheck:
    """A file and all that is known about it.

    Attributes:
        file: path below the cache's root.
        key: the shard group it is of, if any.
        spec: the array it is of, if it is of a group.
        num_rows: rows of the group; the file may have room for more.
        checksums: of a shard: the table of its chunks' checksums, and the column in it.
        image_ids: of an array of image ids: what it must hold, if known.
    """

    file: str
    key: ShardKey | None = None
    spec: ArraySpec | None = None
    num_rows: int = 0
    checksums: tuple[ArraySpec, int] | None = None
    image_ids: tuple[int, ...] | None = None


def check_file(files: CacheFiles, check: FileCheck) -> None:
    """Reads the file whole: size, hash, and what its array says about it.

    Raises:
        CacheDamagedError: it is not what was written for these images.
    """
    size = files.size(check.file)
    digest = hashlib.sha256()
    try:
        with (files.root / check.file).open('rb') as file:
            if check.spec is not None and check.spec.sharded:
                _read_shard(files, check, file, size=size, digest=digest)
            elif check.spec is not None:
                _read_plain(check, check.spec, file, size=size, digest=digest)
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise CacheDamagedError(f'{files.root / check.file}: cannot be read ({error.strerror})') from error
    files.require_sha256(check.file, digest.hexdigest())


def _read_plain(check: FileCheck, spec: ArraySpec, file: BinaryIO, *, size: int, digest: 'hashlib._Hash') -> None:
    require_plain_bytes(spec, size, name=check.file)
    if check.image_ids is None:
        return
    content = file.read(size)
    digest.update(content)
    found = decode_plain(content, spec, name=check.file)[: check.num_rows].tolist()
    wrong = [row for row, pair in enumerate(zip(found, check.image_ids, strict=True)) if pair[0] != pair[1]]
    if wrong:
        raise CacheDamagedError(
            f'{check.file}: row {wrong[0]} belongs to image {found[wrong[0]]}, the index states '
            f'{check.image_ids[wrong[0]]}'
        )


def _read_shard(files: CacheFiles, check: FileCheck, file: BinaryIO, *, size: int, digest: 'hashlib._Hash') -> None:
    """Decodes chunk after chunk, which fill the shard up to its index without a gap; holds one at a time."""
    assert check.spec is not None
    assert check.checksums is not None
    table_spec, column = check.checksums
    assert check.key is not None
    checksums = files.read_array(table_spec, shard=check.key.shard)[:, column]
    codes = np.empty(check.spec.row_shape, dtype=check.spec.dtype)
    name = str(files.root / check.file)
    tail_bytes = index_bytes(check.spec.rows_per_file)
    file.seek(max(0, size - tail_bytes))
    entries = decode_index(
        file.read(tail_bytes),
        chunks_per_shard=check.spec.rows_per_file,
        num_chunks=check.num_rows,
        chunk_bytes=check.spec.row_bytes,
        shard_bytes=size,
        name=name,
    )
    file.seek(0)
    position = 0
    for row in range(check.num_rows):
        offset, length = (int(value) for value in entries[row])
        if offset != position:
            raise CacheDamagedError(f'{name}: row {row} starts at byte {offset}, not at the end of the previous row')
        chunk = file.read(length)
        digest.update(chunk)
        decode_chunk(chunk, out=codes, checksum=int(checksums[row]), name=f'{name}: row {row}')
        position += length
