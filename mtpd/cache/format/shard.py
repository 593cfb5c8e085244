"""One shard of the Zarr v3 sharding codec, encoded and decoded.

Layout (Zarr v3, `sharding_indexed`, index at the end): the encoded inner chunks one after another, then for every chunk
its offset and length as two little-endian uint64, then the CRC-32C of that index. An inner chunk is one image's map:
little-endian values, zstd, CRC-32C. zarr-python opens the same files; it is not used here because it fills missing
chunks with zeros silently, and zero targets train a student on nothing.
"""

import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from mtpd.errors import REPAIR, CacheDamagedError

MISSING = 2**64 - 1
CHECKSUM_BYTES = 4
# The CRC-32C of any bytes followed by their own CRC-32C.
RESIDUE = 0x48674BC7
# Of a zstd frame.
MAX_HEADER_BYTES = 18
_ZSTD = Zstd()


def encode_chunk(values: np.ndarray, *, level: int) -> bytes:
    """Compresses one inner chunk: bytes, zstd at `level`, CRC-32C."""
    packed: bytes = Zstd(level=level).encode(np.ascontiguousarray(values))
    return packed + struct.pack('<I', google_crc32c.value(packed))


def chunk_checksum(chunk: bytes) -> int:
    """The CRC-32C that closes an encoded chunk."""
    return int.from_bytes(chunk[-CHECKSUM_BYTES:], 'little')


def decode_chunk(chunk: bytes, *, out: np.ndarray, checksum: int, name: str) -> None:
    """Checks and decompresses one inner chunk into `out`, whose size the caller knows from the manifest.

    Raises:
        CacheDamagedError: the checksum differs from the stored or the expected one, or the size is not `out`'s.
    """
    # Whole and by its residue: without its end it would have to be copied. Of bytes the lock is released.
    if len(chunk) <= CHECKSUM_BYTES or google_crc32c.value(chunk) != RESIDUE or chunk_checksum(chunk) != checksum:
        raise CacheDamagedError(f'{name}: checksum mismatch, its bytes changed after writing; {REPAIR}')
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

    Args:
        tail: those bytes.
        chunks_per_shard: entries of the index.
        num_chunks: chunks that the shard must hold, its first ones; a last shard may hold fewer than it has entries.
        chunk_bytes: size of a chunk before compression.
        shard_bytes: size of the whole shard.
        name: of the shard, for messages.

    Raises:
        CacheDamagedError: the index is damaged, lacks a chunk or points outside the shard.
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
