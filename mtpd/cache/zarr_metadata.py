"""The `zarr.json` files that let any Zarr v3 program open a cache. The one module that imports zarr."""

from collections.abc import Iterable
from pathlib import Path

import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from mtpd.cache.arrays import ArraySpec
from mtpd.cache.shard import ZSTD_LEVEL


def create_arrays(root: Path, specs: Iterable[ArraySpec]) -> None:
    """Writes the metadata of every array that has none yet, and of the groups above them. No chunk is touched."""
    store = LocalStore(root)
    zarr.open_group(store=store, mode='a', zarr_format=3)
    for spec in specs:
        if not (root / spec.path / 'zarr.json').exists():
            _create_array(store, spec)


def _create_array(store: LocalStore, spec: ArraySpec) -> None:
    file_shape = (spec.rows_per_file, *spec.row_shape)
    zarr.create_array(
        store=store,
        name=spec.path,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=(1, *spec.row_shape) if spec.sharded else file_shape,
        shards=file_shape if spec.sharded else None,
        serializer=BytesCodec(endian=None if spec.dtype == 'int8' else 'little'),
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()] if spec.sharded else [],
        filters=[],
        fill_value=0,
        zarr_format=3,
    )
