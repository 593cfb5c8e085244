"""A shard group in memory while it is filled: encoded chunks of a run of rows, for all levels and views."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future

import numpy as np

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ZSTD_LEVELS, RoisRecord
from mtpd.cache.format.codecs import CodecName, EncodedMaps, has_scale, require_storable
from mtpd.cache.format.plan import Bucket, ShardKey
from mtpd.cache.format.shard import chunk_checksum, encode_chunk, encode_shard
from mtpd.cache.writing.roi_rows import RoiRows
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.heads.rois import ImageRois


class ShardGroup:
    """Collects maps image by image and compresses each immediately, so that it never holds uncompressed codes.

    The threads of `compressors` share the work: zstd leaves Python's lock to others, and one core compresses less than
    a GPU makes.
    """

    def __init__(
        self,
        *,
        bucket: Bucket,
        key: ShardKey,
        views: Sequence[str],
        levels: Sequence[Level],
        codec: CodecName,
        compressors: Executor,
        rois: RoisRecord | None = None,
    ) -> None:
        self.key = key
        self._bucket = bucket
        self._rows = bucket.rows(key.shard)
        self._levels = levels
        self._codec = codec
        self._compressors = compressors
        self._chunks: dict[tuple[str, str], list[bytes]] = {
            (view, level.name): [] for view in views for level in levels
        }
        self._scales: dict[tuple[str, str], list[np.ndarray]] = {slot: [] for slot in self._chunks}
        self._errors: dict[tuple[str, str], list[float]] = {slot: [] for slot in self._chunks}
        self._specs = {view: arrays.view_specs(bucket, view=view, levels=levels, codec=codec) for view in views}
        self._roi_rows = None if rois is None else RoiRows(bucket=bucket, key=key, record=rois)

    def append(self, view: str, maps: Mapping[str, EncodedMaps]) -> None:
        """Appends the next images of a view, in row order.

        Args:
            view: 'plain' or 'flip'.
            maps: level name -> codes (B, C, H, W) on the host.

        Raises:
            InputError: a map has another shape than the plan expects, or holds values that cannot be stored.
        """
        chunks: dict[str, list[Future[bytes]]] = {}
        for level in self._levels:
            encoded = maps[level.name]
            codes = encoded.codes.numpy()
            spec = self._specs[view][level.name]
            if codes.shape[1:] != spec.row_shape:
                raise InputError(
                    f'level {level.name} of the teacher is {codes.shape[1:]} for a {self._bucket.name} input, expected '
                    f'{spec.row_shape}: its stride is not {level.stride} there; exclude the level with --levels'
                )
            start = self._rows.start + len(self._chunks[view, level.name])
            images = self._bucket.images[start : start + len(codes)]
            require_storable(encoded, level=level.name, view=view, image_ids=[image.image_id for image in images])
            assert encoded.error is not None
            zstd_level = ZSTD_LEVELS[self._codec]
            chunks[level.name] = [self._compressors.submit(encode_chunk, one, level=zstd_level) for one in codes]
            self._errors[view, level.name] += encoded.error.tolist()
            if encoded.scale is not None:
                self._scales[view, level.name] += list(encoded.scale.numpy())
        for name, pending in chunks.items():
            self._chunks[view, name] += [one.result() for one in pending]

    def append_rois(self, images: Sequence[ImageRois]) -> None:
        """Appends the RoIs of the next images, in row order; for a group that was made for RoIs.

        Raises:
            InputError: values cannot be stored.
        """
        assert self._roi_rows is not None, 'this group holds no RoIs'
        self._roi_rows.append(images)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Path below the cache's root and content of each of the group's files. The group must be full."""
        shard = self.key.shard
        image_ids = [self._bucket.images[row].image_id for row in self._rows]
        for view, specs in self._specs.items():
            for level in self._levels:
                chunks, spec = self._chunks[view, level.name], specs[level.name]
                if len(chunks) != len(self._rows):
                    raise RuntimeError(f'shard {self.key}: {view} holds {len(chunks)} of {len(self._rows)} images')
                yield spec.file(shard), encode_shard(chunks, chunks_per_shard=self._bucket.rows_per_shard)
                if has_scale(self._codec):
                    scale = specs[f'{level.name}.scale']
                    yield scale.file(shard), arrays.encode_plain(np.stack(self._scales[view, level.name]), scale)
            checksums = [[chunk_checksum(chunk) for chunk in self._chunks[view, level.name]] for level in self._levels]
            errors = [self._errors[view, level.name] for level in self._levels]
            tables = {'image_id': np.array(image_ids), 'crc32c': np.array(checksums).T, 'error': np.array(errors).T}
            for name, values in tables.items():
                yield specs[name].file(shard), arrays.encode_plain(values, specs[name])
        if self._roi_rows is not None:
            yield from self._roi_rows.files()
