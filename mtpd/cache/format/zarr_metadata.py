"""The `zarr.json` files that let any Zarr v3 program open a cache. The one module that imports zarr."""

from collections.abc import Iterable
from pathlib import Path

import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from mtpd.cache.format.arrays import ArraySpec
from mtpd.system.files import write_atomically


def create_arrays(root: Path, specs: Iterable[ArraySpec], *, owner: str = '') -> None:
    """Writes the metadata of every array and of the groups above them, where it is missing or differs."""
    for name, content in metadata_files(specs).items():
        path = root / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content, owner=owner, flush=False)


def metadata_files(specs: Iterable[ArraySpec]) -> dict[str, bytes]:
    """Path below the cache's root -> content of the `zarr.json` of every array and of the groups above them.

    zarr makes it in memory and never sees the folder: files there may be incomplete or foreign, and two processes
    may start at the same time.
    """
    documents: dict[str, Buffer] = {}
    store = MemoryStore(documents)
    zarr.open_group(store=store, mode='a', zarr_format=3)
    for spec in specs:
        file_shape = (spec.rows_per_file, *spec.row_shape)
        zarr.create_array(
            store=store,
            name=spec.path,
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=file_shape if spec.zstd_level is None else (1, *spec.row_shape),
            shards=None if spec.zstd_level is None else file_shape,
            serializer=BytesCodec(endian=None if spec.dtype == 'int8' else 'little'),
            compressors=[] if spec.zstd_level is None else [ZstdCodec(level=spec.zstd_level), Crc32cCodec()],
            filters=[],
            fill_value=0,
            zarr_format=3,
        )
    return {name: document.to_bytes() for name, document in documents.items()}
