"""Reading a teacher's maps, row by row: the hot path of training.

Per map one `pread`, one checksum and one decompression, each without the interpreter lock, straight into the caller's
memory. All that can be known of a shard group beforehand is in its `RowTable`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec
from mtpd.cache.format.codecs import EncodedMaps, has_scale
from mtpd.cache.format.manifest import Description, ViewName
from mtpd.cache.format.plan import Bucket, num_elements
from mtpd.cache.format.shard import decode_chunk, decode_index, index_bytes
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.geometry import Level

# Row tables of this many shards and views are kept; one of RetinaNet's at 800x1333 takes 0.4 MB.
TABLES_KEPT = 256


@dataclass(frozen=True)
class RowTable:
    """The small arrays of one shard group and view, already verified.

    Attributes:
        image_ids: (rows_per_shard,) int64.
        checksums: (rows_per_shard, L) uint32.
        errors: (rows_per_shard, L) float32.
        scales: per level (rows_per_shard, 2, C), or None.
        chunks: per level (rows_per_shard, 2) uint64, offset and length of each inner chunk.
        files: per level the shard, below the cache's root.
    """

    image_ids: np.ndarray
    checksums: np.ndarray
    errors: np.ndarray
    scales: tuple[np.ndarray | None, ...]
    chunks: tuple[np.ndarray, ...]
    files: tuple[str, ...]


class MapReader:
    """The maps of an open cache. Small tables are verified whole, every map by its checksum in them."""

    def __init__(
        self,
        files: CacheFiles,
        description: Description,
        levels: Sequence[Level],
        buckets: Mapping[str, Bucket],
        *,
        bases: Mapping[str, Tensor],
    ) -> None:
        self._files = files
        self._codec = description.codec
        self._levels = levels
        self._buckets = buckets
        self._bases = bases
        self._table = lru_cache(TABLES_KEPT)(self._load_table)

    def read(
        self, bucket: Bucket, row: int, image_id: int, view: ViewName, *, levels: Sequence[Level], out: Tensor
    ) -> dict[str, EncodedMaps]:
        """Levels of the image in a row.

        Args:
            bucket: of the row.
            row: in the bucket.
            image_id: whose maps they must be.
            view: of the image.
            levels: some of the stored ones.
            out: 1-D memory into which the codes of one level after another are read; what is given back are views.

        Raises:
            CacheDamagedError: the bytes are not the ones that were written for this image.
        """
        table, position = self._row(bucket, row, image_id, view)
        numbers = [self._levels.index(level) for level in levels]
        # What torch does comes first and together: after a decompression, which leaves nothing of it in the
        # processor's caches, each of its calls takes many times as long, together a tenth of the whole.
        encoded, start = {}, 0
        errors = torch.tensor(table.errors[position]).unbind()
        for number, level in zip(numbers, levels, strict=True):
            scale, (height, width) = table.scales[number], level.grid(*bucket.padded)
            encoded[level.name] = EncodedMaps(
                codes=out.as_strided(
                    (level.channels, height, width), (height * width, width, 1), out.storage_offset() + start
                ),
                error=errors[number],
                scale=None if scale is None else torch.tensor(scale[position]),
                basis=self._bases.get(level.name),
            )
            start += level.channels * height * width
        codes, start = out.numpy(), 0
        for number, level in zip(numbers, levels, strict=True):
            end = start + num_elements([level], bucket.padded)
            self._read_chunk(table, position, number, codes[start:end])
            start = end
        return encoded

    def _read_chunk(self, table: RowTable, position: int, number: int, codes: np.ndarray) -> None:
        offset, length = table.chunks[number][position].tolist()
        file = table.files[number]
        decode_chunk(
            self._files.read_range(file, offset=offset, length=length),
            out=codes,
            checksum=int(table.checksums[position, number]),
            name=f'{self._files.root}/{file}: row {position}',
        )

    def errors(self, bucket: Bucket, row: int, image_id: int, view: ViewName) -> list[float]:
        """The relative squared errors of the image in a row, level by level."""
        table, position = self._row(bucket, row, image_id, view)
        values: list[float] = table.errors[position].tolist()
        return values

    def _row(self, bucket: Bucket, row: int, image_id: int, view: ViewName) -> tuple[RowTable, int]:
        """The table of an image's shard group, which must agree, and the image's row in it."""
        shard, position = divmod(row, bucket.rows_per_shard)
        table = self._table(bucket.name, view, shard)
        found = table.image_ids[position]
        if found != image_id:
            raise CacheDamagedError(
                f'{self._files.root}: row {row} of {bucket.name}/{view} belongs to image {found}, not {image_id}'
            )
        return table, position

    def _load_table(self, bucket_name: str, view: ViewName, shard: int) -> RowTable:
        bucket, codec, read = self._buckets[bucket_name], self._codec, self._files.read_array
        specs = [arrays.level_spec(bucket, view=view, level=level, codec=codec) for level in self._levels]
        scales: list[np.ndarray | None] = [None] * len(specs)
        if has_scale(codec):
            of_scales = [arrays.scale_spec(bucket, view=view, level=level, codec=codec) for level in self._levels]
            scales = [read(spec, shard=shard) for spec in of_scales]
        return RowTable(
            image_ids=read(arrays.image_id_spec(bucket, view=view), shard=shard),
            checksums=read(arrays.checksum_spec(bucket, view=view, num_levels=len(specs)), shard=shard),
            errors=read(arrays.error_spec(bucket, view=view, num_levels=len(specs)), shard=shard),
            scales=tuple(scales),
            chunks=tuple(self._read_shard_index(spec, shard) for spec in specs),
            files=tuple(spec.file(shard) for spec in specs),
        )

    def _read_shard_index(self, spec: ArraySpec, shard: int) -> np.ndarray:
        file, name = spec.file(shard), str(self._files.root / spec.file(shard))
        size, length = self._files.size(file), index_bytes(spec.rows_per_file)
        if size < length:
            raise CacheDamagedError(f'{name}: has {size} bytes, its index alone needs {length}; {REPAIR}')
        return decode_index(
            self._files.read_range(file, offset=size - length, length=length),
            chunks_per_shard=spec.rows_per_file,
            num_chunks=min(spec.rows_per_file, spec.shape[0] - shard * spec.rows_per_file),
            chunk_bytes=math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize,
            shard_bytes=size,
            name=name,
        )
