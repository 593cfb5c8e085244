"""Our shards against zarr-python's, both ways, and damaged shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from mtpd.cache.format.arrays import (
    ArraySpec,
    chunk_checksum,
    decode_chunk,
    decode_index,
    encode_chunk,
    encode_shard,
    index_bytes,
)
from mtpd.cache.format.zarr_metadata import create_arrays
from mtpd.errors import CacheDamagedError

SPEC = ArraySpec('bucket/plain/p3', (5, 3, 4, 7), 'int8', rows_per_file=2, zstd_level=1)


def random_rows(spec: ArraySpec = SPEC, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, spec.shape).astype(spec.dtype)


@pytest.mark.parametrize('dtype', ['int8', 'float16'])
def test_zarr_reads_our_shards(tmp_path: Path, dtype: str) -> None:
    spec = ArraySpec(SPEC.path, SPEC.shape, dtype, SPEC.rows_per_file, zstd_level=1)
    rows = random_rows(spec)
    create_arrays(tmp_path, [spec])
    for shard in range(3):
        chunks = [encode_chunk(row, level=1) for row in rows[2 * shard : 2 * shard + 2]]
        path = tmp_path / spec.file(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_shard(chunks, chunks_per_shard=2))
    group: Any = zarr.open_group(tmp_path, mode='r')
    array = group[spec.path]
    assert array.shards == (2, 3, 4, 7)
    np.testing.assert_array_equal(array[:], rows)


def read_index(tail: bytes, *, shard_bytes: int, num_chunks: int = 2) -> np.ndarray:
    return decode_index(
        tail, chunks_per_shard=2, num_chunks=num_chunks, chunk_bytes=84, shard_bytes=shard_bytes, name='shard'
    )


def test_we_read_shards_of_zarr(tmp_path: Path) -> None:
    rows = random_rows()
    create_arrays(tmp_path, [SPEC])
    group: Any = zarr.open_group(tmp_path, mode='r+')
    group[SPEC.path][:] = rows
    for row in range(5):
        content = (tmp_path / SPEC.file(row // 2)).read_bytes()
        tail = content[-index_bytes(2) :]
        num_chunks = 2 if row < 4 else 1
        entries = read_index(tail, num_chunks=num_chunks, shard_bytes=len(content))
        offset, length = (int(value) for value in entries[row % 2])
        chunk, out = content[offset : offset + length], np.empty(SPEC.row_shape, np.int8)
        decode_chunk(chunk, out=out, checksum=chunk_checksum(chunk), name='chunk')
        np.testing.assert_array_equal(out, rows[row])


@given(data=st.binary(min_size=1, max_size=300), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_chunk_is_found(data: bytes, position: int, bit: int) -> None:
    values = np.frombuffer(data, np.int8)
    chunk = encode_chunk(values, level=1)
    checksum = chunk_checksum(chunk)
    out = np.empty_like(values)
    decode_chunk(chunk, out=out, checksum=checksum, name='chunk')
    np.testing.assert_array_equal(out, values)
    damaged = bytearray(chunk)
    damaged[position % len(chunk)] ^= 1 << bit
    with pytest.raises(CacheDamagedError, match='chunk'):
        decode_chunk(bytes(damaged), out=out, checksum=checksum, name='chunk')


@pytest.mark.parametrize('num_bytes', [99, 101, 1])
def test_a_chunk_of_another_size_is_refused(num_bytes: int) -> None:
    chunk = encode_chunk(np.arange(100, dtype=np.int8), level=1)
    with pytest.raises(CacheDamagedError, match='bytes'):
        decode_chunk(chunk, out=np.empty(num_bytes, np.int8), checksum=chunk_checksum(chunk), name='chunk')


def test_a_sound_chunk_of_another_image_is_refused() -> None:
    mine, other = (encode_chunk(row, level=1) for row in random_rows()[:2])
    with pytest.raises(CacheDamagedError, match='checksum'):
        decode_chunk(other, out=np.empty(SPEC.row_shape, np.int8), checksum=chunk_checksum(mine), name='chunk')


@pytest.mark.parametrize('position', [-1, -10, -20, -36])
def test_a_damaged_index_is_found(position: int) -> None:
    content = bytearray(encode_shard([encode_chunk(row, level=1) for row in random_rows()[:2]], chunks_per_shard=2))
    content[position] ^= 1
    with pytest.raises(CacheDamagedError, match='index'):
        read_index(bytes(content[-index_bytes(2) :]), shard_bytes=len(content))


def test_an_index_that_points_outside_is_refused() -> None:
    content = encode_shard([encode_chunk(row, level=1) for row in random_rows()[:2]], chunks_per_shard=2)
    with pytest.raises(CacheDamagedError, match='outside'):
        read_index(content[-index_bytes(2) :], shard_bytes=60)


def test_a_missing_chunk_is_refused() -> None:
    content = encode_shard([encode_chunk(random_rows()[0], level=1)], chunks_per_shard=2)
    tail = content[-index_bytes(2) :]
    read_index(tail, num_chunks=1, shard_bytes=len(content))
    with pytest.raises(CacheDamagedError, match='lacks a chunk'):
        read_index(tail, num_chunks=2, shard_bytes=len(content))


def test_a_chunk_that_is_longer_than_its_row_can_be_is_refused() -> None:
    chunk = encode_chunk(random_rows()[0], level=1)
    content = encode_shard([chunk + bytes(1000)], chunks_per_shard=1)
    with pytest.raises(CacheDamagedError, match='longer than 84 bytes can compress to'):
        decode_index(
            content[-index_bytes(1) :],
            chunks_per_shard=1,
            num_chunks=1,
            chunk_bytes=84,
            shard_bytes=len(content),
            name='shard',
        )
