"""The RoIs of a shard group in memory while it is filled."""

from collections.abc import Iterator, Sequence

import numpy as np

from mtpd.cache.format.arrays import RoisRecord, encode_plain, roi_specs
from mtpd.cache.format.plan import Bucket, ShardKey
from mtpd.cache.format.roi_arrays import VALUES, encode_row, require_rois, row_checksum
from mtpd.errors import InputError
from mtpd.heads.rois import ImageRois


class RoiRows:
    """Collects RoIs image by image, in row order."""

    def __init__(self, *, bucket: Bucket, key: ShardKey, record: RoisRecord) -> None:
        self._bucket = bucket
        self._key = key
        self._record = record
        self._columns: dict[str, list[np.ndarray | int]] = {}
        self._num_rows = 0

    def append(self, images: Sequence[ImageRois]) -> None:
        """Appends the next images.

        Raises:
            InputError: values cannot be stored.
        """
        for rois in images:
            row = self._bucket.rows(self._key.shard)[self._num_rows]
            image_id = self._bucket.images[row].image_id
            try:
                require_rois(rois, num_classes=self._record.num_classes)
            except ValueError as error:
                raise InputError(
                    f'image {image_id}: the teacher returns proposals with {error}; omit them with --rois 0'
                ) from error
            values = encode_row(rois, self._record)
            checksum = row_checksum([values[name].tobytes() for name in VALUES])
            tables = {'image_id': image_id, 'num_rois': len(rois.boxes), 'crc32c': checksum}
            for name, value in (tables | values).items():
                self._columns.setdefault(name, []).append(value)
            self._num_rows += 1

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Path below the cache's root and content of each file. All rows must be there."""
        wanted = len(self._bucket.rows(self._key.shard))
        if self._num_rows != wanted:
            raise RuntimeError(f'shard {self._key}: {self._num_rows} of {wanted} images have RoIs')
        for name, spec in roi_specs(self._bucket, self._record).items():
            values = np.stack([np.asarray(one) for one in self._columns[name]])
            yield spec.file(self._key.shard), encode_plain(values, spec)
