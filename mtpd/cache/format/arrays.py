"""The Zarr arrays of a cache: their names, shapes and types, and the bytes of their files, as FORMAT.md describes them.

The small arrays are cut at the same rows as the shards, so that a shard group owns all its files. Everything here
follows from the manifest; the `zarr.json` files are for other programs and are never trusted. zarr-python opens the
same files; it is not used here because it fills missing chunks with zeros silently, and zero targets train a student on
nothing.
"""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from pydantic import Field

from mtpd.cache.format.codecs import CodecName
from mtpd.cache.format.plan import BucketRecord, ShardKey
from mtpd.cache.format.strict_json import StrictRecord
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.geometry import Level

CODE_DTYPES: dict[CodecName, str] = {'fp16': 'float16', 'int8': 'int8', 'lean': 'int8'}
SCALE_DTYPES: dict[CodecName, str] = {'int8': 'float32', 'lean': 'float16'}
# On real int8 features levels 1 and 3 give the same size: there is little but entropy to code. The zeros of `lean`
# repeat, and level 6 finds 6% more in them at a third of the speed, which the teacher's forward pass hides.
ZSTD_LEVELS: dict[CodecName, int] = {'fp16': 1, 'int8': 1, 'lean': 6}
# Of a bucket and view, or of the RoIs of a bucket.
_SHARD_FILE = re.compile(r'(?:(\d+x\d+)/(\w+)|heads/(\d+x\d+))/([^/]+)/c/(\d{1,9})(?:/0)*')
# A table is read whole. COCO's longest, a column of its index, takes 1 MB.
MAX_PLAIN_BYTES = 2**30
HEADS = 'heads'
MAX_ROIS = 4096
# Shape of a row, and dtype.
INDEX_COLUMNS: dict[str, tuple[tuple[int, ...], str]] = {
    'image_id': ((), 'int64'),
    'bucket': ((), 'int32'),
    'row': ((), 'int32'),
    'original': ((2,), 'int32'),
    'resized': ((2,), 'int32'),
    'padded': ((2,), 'int32'),
}
# Of a shard: a missing chunk's offset and length.
MISSING = 2**64 - 1
CHECKSUM_BYTES = 4
# The CRC-32C of any bytes followed by their own CRC-32C.
RESIDUE = 0x48674BC7
# Of a zstd frame.
MAX_HEADER_BYTES = 18
_ZSTD = Zstd()


class RoisRecord(StrictRecord):
    """How many RoIs of an image a cache holds at most, and of how many object classes."""

    num_rois: Annotated[int, Field(gt=0, le=MAX_ROIS)]
    num_classes: Annotated[int, Field(gt=0, le=2**14)]


@dataclass(frozen=True)
class ArraySpec:
    """One array below the cache's root; the first axis of `shape` is the bucket's rows.

    With a `zstd_level` a file is a shard of one-row chunks compressed at this level, else a single plain chunk.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    rows_per_file: int
    zstd_level: int | None = None

    def file(self, shard: int) -> str:
        """Path of the file that holds shard group `shard`, below the cache's root."""
        return '/'.join([self.path, 'c', str(shard), *['0'] * (len(self.shape) - 1)])

    @property
    def sharded(self) -> bool:
        """Whether a file is a shard of one-row chunks."""
        return self.zstd_level is not None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before compression."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def file_bytes(self) -> int:
        """Bytes of a file before compression."""
        return self.rows_per_file * self.row_bytes

    @property
    def file_dtype(self) -> np.dtype[Any]:
        """Of the values in a file, which are little-endian."""
        return np.dtype(self.dtype).newbyteorder('<')


class StoredMap(NamedTuple):
    """One level of a row as it is stored."""

    chunk: bytes  # compressed codes and their checksum
    scale: np.ndarray | None  # (2, C)
    error: float


class FilePlace(NamedTuple):
    """What a file of a shard group holds: rows of one array of one view, or of the RoIs, which are of none ('')."""

    key: ShardKey
    view: str
    array: str


def file_place(file: str) -> FilePlace | None:
    """What the file with this path below the cache's root holds; None for a file of no shard group."""
    match = _SHARD_FILE.fullmatch(file)
    if match is None:
        return None
    bucket, view, of_rois, array, shard = match.groups()
    return FilePlace(ShardKey(bucket or of_rois, int(shard)), view or '', array)


def view_specs(bucket: BucketRecord, *, view: str, levels: Sequence[Level], codec: CodecName) -> dict[str, ArraySpec]:
    """The arrays of a bucket and view by their names."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        level.name: ((level.channels, *level.grid(*bucket.padded)), CODE_DTYPES[codec]) for level in levels
    }
    if codec in SCALE_DTYPES:
        shapes |= {f'{level.name}.scale': ((2, level.channels), SCALE_DTYPES[codec]) for level in levels}
    shapes |= {'image_id': ((), 'int64'), 'crc32c': ((len(levels),), 'uint32'), 'error': ((len(levels),), 'float32')}
    specs = _specs(f'{bucket.name}/{view}', bucket.num_images, bucket.rows_per_shard, shapes)
    return specs | {level.name: replace(specs[level.name], zstd_level=ZSTD_LEVELS[codec]) for level in levels}


def roi_specs(bucket: BucketRecord, rois: RoisRecord | None) -> dict[str, ArraySpec]:
    """The arrays of a bucket's RoIs by their names; none without a record."""
    if rois is None:
        return {}
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        'image_id': ((), 'int64'),
        'num_rois': ((), 'int32'),
        'crc32c': ((), 'uint32'),
        'boxes': ((rois.num_rois, 4), 'float32'),
        'probabilities': ((rois.num_rois, rois.num_classes + 1), 'float16'),
        'labels': ((rois.num_rois,), 'int32'),
        'deltas': ((rois.num_rois, 4), 'float32'),
    }
    return _specs(f'{HEADS}/{bucket.name}', bucket.num_images, bucket.rows_per_shard, shapes)


def index_specs(num_images: int) -> dict[str, ArraySpec]:
    """The arrays of the index, by column: for every image where it is and what its sizes are."""
    return _specs('index', num_images, num_images, INDEX_COLUMNS)


def _specs(
    folder: str, num_rows: int, rows_per_file: int, shapes: dict[str, tuple[tuple[int, ...], str]]
) -> dict[str, ArraySpec]:
    """Arrays by name, from the shape of a row and the dtype of each."""
    return {
        name: ArraySpec(f'{folder}/{name}', (num_rows, *row_shape), dtype, rows_per_file)
        for name, (row_shape, dtype) in shapes.items()
    }


def encode_plain(values: np.ndarray, spec: ArraySpec) -> bytes:
    """The file of one plain chunk: little-endian values, rows beyond the last one zero."""
    chunk = np.zeros((spec.rows_per_file, *spec.row_shape), dtype=spec.file_dtype)
    chunk[: len(values)] = values
    return chunk.tobytes()


def require_plain_bytes(spec: ArraySpec, num_bytes: int, *, name: str) -> None:
    """CacheDamagedError for a plain chunk's file that has not the size of its shape, or is too large to read whole."""
    if num_bytes != spec.file_bytes or num_bytes > MAX_PLAIN_BYTES:
        raise CacheDamagedError(
            f'{name}: has {num_bytes} bytes, expected {spec.file_bytes} by its shape and at most {MAX_PLAIN_BYTES}; '
            'extract it again'
        )


def encode_chunk(values: np.ndarray, *, level: int) -> bytes:
    """Compresses one inner chunk: bytes, zstd at `level`, CRC-32C."""
    packed: bytes = Zstd(level=level).encode(np.ascontiguousarray(values))
    return packed + struct.pack('<I', google_crc32c.value(packed))


def chunk_checksum(chunk: bytes) -> int:
    """The CRC-32C that closes an encoded chunk."""
    return int.from_bytes(chunk[-CHECKSUM_BYTES:], 'little')


def require_chunk(chunk: bytes, *, checksum: int, name: str) -> None:
    """CacheDamagedError where the checksum is not the chunk's or not the expected one."""
    # Whole and by its residue: without its end it would have to be copied. Of bytes the lock is released.
    if len(chunk) <= CHECKSUM_BYTES or google_crc32c.value(chunk) != RESIDUE or chunk_checksum(chunk) != checksum:
        raise CacheDamagedError(f'{name}: checksum mismatch, its bytes changed after writing; {REPAIR}')


def decode_chunk(chunk: bytes, *, out: np.ndarray, checksum: int, name: str) -> None:
    """Decompresses one inner chunk into `out`, whose size the caller knows from the manifest.

    CacheDamagedError: as `require_chunk`, or the size is another.
    """
    require_chunk(chunk, checksum=checksum, name=name)
    # numcodecs accepts a frame that is shorter than the buffer, and unpacks one of unknown size before it looks at it.
    if _frame_content_size(chunk[:MAX_HEADER_BYTES]) != out.nbytes:
        raise CacheDamagedError(f'{name}: does not decompress to the {out.nbytes} bytes of its level')
    try:
        _ZSTD.decode(memoryview(chunk)[:-CHECKSUM_BYTES], out)
    except (RuntimeError, ValueError) as error:
        raise CacheDamagedError(f'{name}: cannot be decompressed to {out.nbytes} bytes ({error})') from error


def compressed_bound(num_bytes: int) -> int:
    """The longest chunk of `num_bytes`: bytes that do not compress (zstd's ZSTD_COMPRESSBOUND) and the checksum."""
    return num_bytes + num_bytes // 256 + max(0, 2**17 - num_bytes) // 2**11 + CHECKSUM_BYTES


def encode_shard(chunks: Sequence[bytes], *, chunks_per_shard: int) -> bytes:
    """Joins encoded chunks and appends the index. A last shard may hold fewer than `chunks_per_shard`."""
    entries = np.full((chunks_per_shard, 2), MISSING, dtype='<u8')
    lengths = np.array([len(chunk) for chunk in chunks], dtype='<u8')
    entries[: len(chunks), 0] = np.cumsum(lengths) - lengths
    entries[: len(chunks), 1] = lengths
    index = entries.tobytes()
    return b''.join([*chunks, index, struct.pack('<I', google_crc32c.value(index))])


def index_bytes(chunks_per_shard: int) -> int:
    """Length of the index at the end of a shard."""
    return 16 * chunks_per_shard + CHECKSUM_BYTES


def decode_index(
    tail: bytes, *, chunks_per_shard: int, num_chunks: int, chunk_bytes: int, shard_bytes: int, name: str
) -> np.ndarray:
    """Offsets and lengths (chunks_per_shard, 2) uint64 from the last `index_bytes` of a shard.

    CacheDamagedError unless the shard holds its first `num_chunks` chunks (a last shard has more entries than chunks),
    inside its `shard_bytes` and each no longer than `chunk_bytes` can compress to.
    """
    index = tail[:-CHECKSUM_BYTES]
    if len(tail) != index_bytes(chunks_per_shard) or google_crc32c.value(index) != chunk_checksum(tail):
        raise CacheDamagedError(f'{name}: the index at its end is damaged')
    entries = np.frombuffer(index, dtype='<u8').reshape(chunks_per_shard, 2)
    # A missing chunk's MISSING is beyond any limit. Zarr would give zeros for it.
    present = entries[:num_chunks]
    limit = shard_bytes - len(tail)
    if (present > limit).any() or (present.sum(axis=1) > limit).any():
        raise CacheDamagedError(f'{name}: the index at its end lacks a chunk or points outside the file')
    if (present[:, 1] > compressed_bound(chunk_bytes)).any():
        raise CacheDamagedError(
            f'{name}: the index at its end has a chunk longer than {chunk_bytes} bytes can compress to'
        )
    return entries


def _frame_content_size(packed: bytes) -> int | None:
    """Decompressed size that a zstd frame header states (RFC 8878, 3.1.1.1), None when it states none."""
    if len(packed) < 6 or packed[:4] != b'\x28\xb5\x2f\xfd':
        return None
    descriptor = packed[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    if width == 0 or len(packed) < start + width:
        return None
    size = int.from_bytes(packed[start : start + width], 'little')
    return size + 256 if width == 2 else size
