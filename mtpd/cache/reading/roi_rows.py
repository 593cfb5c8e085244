"""Reading a teacher's RoIs, row by row."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec, RoisRecord, roi_specs
from mtpd.cache.format.plan import Bucket
from mtpd.cache.format.roi_arrays import TABLES, VALUES, decode_row, row_checksum
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.heads.rois import ImageRois

# Tables of this many shard groups are kept; one takes 16 bytes an image.
TABLES_KEPT = 4096


class RoiReader:
    """The RoIs of an open cache. Small tables are verified whole, every row by its checksum in them."""

    def __init__(self, files: CacheFiles, record: RoisRecord, buckets: Mapping[str, Bucket]) -> None:
        self._files = files
        self._record = record
        self._buckets = buckets
        self._tables = lru_cache(TABLES_KEPT)(self._load_tables)

    def read(self, bucket: Bucket, row: int, image_id: int) -> ImageRois:
        """The RoIs of the image in a row; CacheDamagedError if the bytes are not those written for this image."""
        shard, position = divmod(row, bucket.rows_per_shard)
        tables, specs = self._tables(bucket.name, shard), roi_specs(bucket, self._record)
        name = f'{self._files.root}: row {row} of heads/{bucket.name}'
        found = int(tables['image_id'][position])
        if found != image_id:
            raise CacheDamagedError(f'{name} belongs to image {found}, not {image_id}')
        rows = [self._row(specs[array], shard, position) for array in VALUES]
        if row_checksum(rows) != tables['crc32c'][position]:
            raise CacheDamagedError(f'{name}: checksum mismatch, its bytes changed after writing; {REPAIR}')
        try:
            return decode_row(rows, specs, num_rois=int(tables['num_rois'][position]))
        except ValueError as error:
            raise CacheDamagedError(f'{name}: holds {error}; {REPAIR}') from error

    def _row(self, spec: ArraySpec, shard: int, position: int) -> bytes:
        file, length = spec.file(shard), spec.row_bytes
        arrays.require_plain_bytes(spec, self._files.size(file), name=str(self._files.root / file))
        return self._files.read_range(file, offset=position * length, length=length)

    def _load_tables(self, bucket_name: str, shard: int) -> dict[str, np.ndarray]:
        specs = roi_specs(self._buckets[bucket_name], self._record)
        return {name: self._files.read_array(specs[name], shard=shard) for name in TABLES}
