"""Reading a cache, believing nothing that the manifest does not vouch for.

The chain of trust: the manifest's digest; the size of every file and the sha256 of the small ones (index, basis, row
tables) in the manifest; the checksum of every inner chunk and the image id of every row in those tables. So a shard
that was damaged, truncated, swapped with another or put back from an older cache is refused on the first read of what
it touches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec
from mtpd.cache.format.basis import BASIS_FILE, load_basis, max_basis_bytes
from mtpd.cache.format.codecs import EncodedMaps, decode, has_scale
from mtpd.cache.format.manifest import TEACHER_FILE, Manifest, ViewName, read_manifest
from mtpd.cache.format.plan import Bucket
from mtpd.cache.format.shard import decode_chunk, decode_index, index_bytes
from mtpd.cache.format.teacher_tensors import load_roi_head, load_teacher
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.cache.reading.index import read_index
from mtpd.cache.reading.roi_rows import RoiReader
from mtpd.errors import CacheDamagedError, CacheMismatchError
from mtpd.geometry import Geometry, Size
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois
from mtpd.pyramid import Level

# Row tables of this many shards and views are kept; one of RetinaNet's at 800x1333 takes 0.4 MB.
TABLES_KEPT = 256
# Neck and head of Swin-L's Cascade R-CNN take 0.3 GB.
MAX_TEACHER_BYTES = 2**32


class ImageSizes(NamedTuple):
    """Sizes (height, width) in px of an image and of its network input before and after padding."""

    original: Size
    resized: Size
    padded: Size


class Location(NamedTuple):
    """Where an image's maps are."""

    bucket: Bucket
    row: int


@dataclass(frozen=True)
class RowTable:
    """The small arrays of one shard group and view, already verified.

    Attributes:
        image_ids: (rows_per_shard,) int64.
        checksums: (rows_per_shard, L) uint32.
        errors: (rows_per_shard, L) float32.
        scales: per level (rows_per_shard, 2, C), or None.
        chunks: per level (rows_per_shard, 2) uint64, offset and length of each inner chunk.
    """

    image_ids: np.ndarray
    checksums: np.ndarray
    errors: np.ndarray
    scales: tuple[np.ndarray | None, ...]
    chunks: tuple[np.ndarray, ...]


class CacheReader:
    """An open cache. Safe to use from several threads, and after a fork.

    Attributes:
        path: the cache's folder.
        manifest: what it is; see `mtpd.cache.format.manifest`.
        levels: the stored levels, in the teacher's order.
        geometry: the inputs' resize and padding.
        views: 'plain' and, when stored, 'flip'.
        image_ids: all images, in the order of the index.
        bases: level name -> (C, C) float32 whose columns the channels of the codes stand for; empty when these are the
            teacher's channels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.levels: tuple[Level, ...] = tuple(level.to_level() for level in self.manifest.description.levels)
        self.geometry: Geometry = self.manifest.description.geometry.to_geometry()
        self.views: tuple[ViewName, ...] = self.manifest.description.views
        self._files = CacheFiles(path, self.manifest.files)
        plan = read_index(self._files, self.manifest)
        self._locations: dict[int, Location] = {}
        for bucket in plan.buckets:
            for row, image in enumerate(bucket.images):
                self._locations[image.image_id] = Location(bucket, row)
        self.image_ids: tuple[int, ...] = tuple(self._locations)
        self._table = lru_cache(TABLES_KEPT)(self._load_table)
        self._buckets = plan.by_name
        record = self.manifest.description.rois
        self._rois = None if record is None else RoiReader(self._files, record, plan.by_name)
        self.bases: dict[str, Tensor] = {}
        if self.manifest.description.codec == 'lean':
            content = self._files.read(BASIS_FILE, max_bytes=max_basis_bytes(self.levels))
            self.bases = load_basis(content, self.levels, name=str(path / BASIS_FILE))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._locations

    def sizes(self, image_id: int) -> ImageSizes:
        """Original, resized and padded size of an image.

        Raises:
            CacheMismatchError: the image is not in the cache.
        """
        bucket, row = self._locate(image_id)
        original = bucket.images[row].size
        return ImageSizes(original, self.geometry.resized(original), bucket.padded)

    def read(
        self, image_id: int, view: ViewName = 'plain', *, levels: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The teacher's maps of one image, as float32 (C, H, W) by level name.

        Raises:
            CacheMismatchError: the image, view or level is not in the cache.
            CacheDamagedError: the bytes are not the ones that were written for this image.
        """
        encoded = self.read_encoded(image_id, view, levels=levels)
        return {name: decode(maps) for name, maps in encoded.items()}

    def read_encoded(
        self, image_id: int, view: ViewName = 'plain', *, levels: Sequence[str] | None = None
    ) -> dict[str, EncodedMaps]:
        """Like `read`, but the codes as they are stored, to be decoded on another device."""
        bucket, row, table = self._row(image_id, view)
        return {
            self.levels[number].name: self._read_level(bucket, view, row, number, table)
            for number in self._wanted(levels)
        }

    def errors(self, image_id: int, view: ViewName = 'plain') -> dict[str, float]:
        """||stored - live||^2 / ||live||^2 of an image's maps by level name, as measured when they were encoded."""
        bucket, row, table = self._row(image_id, view)
        values = table.errors[row % bucket.rows_per_shard].tolist()
        return {level.name: value for level, value in zip(self.levels, values, strict=True)}

    def rois(self, image_id: int) -> ImageRois:
        """The teacher's best proposals of one image, in px of the original image, and what it says about them.

        Raises:
            CacheMismatchError: the image is not in the cache, or the cache holds no proposals.
            CacheDamagedError: the bytes are not the ones that were written for this image.
        """
        if self._rois is None:
            raise CacheMismatchError(f'{self.path}: holds no proposals of the teacher; extract it with --rois 512')
        return self._rois.read(*self._locate(image_id), image_id)

    def teacher_weights(self) -> dict[str, Tensor]:
        """The teacher's neck and head parameters by their name in the teacher.

        Raises:
            CacheDamagedError: the file is not what was written, or holds no tensors.
        """
        return load_teacher(self._teacher_file(), name=str(self.path / TEACHER_FILE)).weights

    def roi_head(self) -> RoiHead:
        """The teacher's RoI head, ready to run on this cache's maps; of a cascade the first stage.

        Raises:
            CacheMismatchError: the cache holds none that can be run; says why.
            CacheDamagedError: the file is not what was written, or its record and its tensors contradict each other.
        """
        return load_roi_head(self._teacher_file(), name=str(self.path / TEACHER_FILE))

    def _teacher_file(self) -> bytes:
        return self._files.read(TEACHER_FILE, max_bytes=MAX_TEACHER_BYTES)

    def _locate(self, image_id: int) -> Location:
        try:
            return self._locations[image_id]
        except KeyError:
            raise CacheMismatchError(
                f'{self.path}: image {image_id} is not among its {len(self)} images; extract the data set you train on'
            ) from None

    def _row(self, image_id: int, view: ViewName) -> tuple[Bucket, int, RowTable]:
        """Where an image is, and the table of its shard group, which must agree."""
        bucket, row = self._locate(image_id)
        if view not in self.views:
            raise CacheMismatchError(
                f'{self.path}: holds the views {", ".join(self.views)}, not {view}; extract it with --views'
            )
        table = self._table(bucket.name, view, row // bucket.rows_per_shard)
        found = table.image_ids[row % bucket.rows_per_shard]
        if found != image_id:
            raise CacheDamagedError(
                f'{self.path}: row {row} of {bucket.name}/{view} belongs to image {found}, not {image_id}'
            )
        return bucket, row, table

    def _wanted(self, levels: Sequence[str] | None) -> list[int]:
        names = [level.name for level in self.levels]
        missing = [name for name in levels or () if name not in names]
        if missing:
            raise CacheMismatchError(f'{self.path}: has the levels {", ".join(names)}, not {missing[0]}')
        return [number for number, name in enumerate(names) if levels is None or name in levels]

    def _read_level(self, bucket: Bucket, view: ViewName, row: int, number: int, table: RowTable) -> EncodedMaps:
        level = self.levels[number]
        spec = arrays.level_spec(bucket, view=view, level=level, codec=self.manifest.description.codec)
        shard, position = divmod(row, bucket.rows_per_shard)
        file = spec.file(shard)
        offset, length = (int(value) for value in table.chunks[number][position])
        codes = np.empty(spec.row_shape, dtype=spec.dtype)
        decode_chunk(
            self._files.read_range(file, offset=offset, length=length),
            out=codes,
            checksum=int(table.checksums[position, number]),
            name=f'{self.path / file}: row {position}',
        )
        scale = table.scales[number]
        return EncodedMaps(
            codes=torch.from_numpy(codes),
            error=torch.tensor(table.errors[position, number]),
            scale=None if scale is None else torch.tensor(scale[position]),
            basis=self.bases.get(level.name),
        )

    def _load_table(self, bucket_name: str, view: ViewName, shard: int) -> RowTable:
        bucket, codec = self._buckets[bucket_name], self.manifest.description.codec
        scales: list[np.ndarray | None] = []
        chunks = []
        for level in self.levels:
            chunks.append(self._read_shard_index(arrays.level_spec(bucket, view=view, level=level, codec=codec), shard))
            scales.append(
                self._read_plain(arrays.scale_spec(bucket, view=view, level=level, codec=codec), shard)
                if has_scale(codec)
                else None
            )
        return RowTable(
            image_ids=self._read_plain(arrays.image_id_spec(bucket, view=view), shard),
            checksums=self._read_plain(arrays.checksum_spec(bucket, view=view, num_levels=len(self.levels)), shard),
            errors=self._read_plain(arrays.error_spec(bucket, view=view, num_levels=len(self.levels)), shard),
            scales=tuple(scales),
            chunks=tuple(chunks),
        )

    def _read_plain(self, spec: ArraySpec, shard: int) -> np.ndarray:
        return self._files.read_array(spec, shard=shard)

    def _read_shard_index(self, spec: ArraySpec, shard: int) -> np.ndarray:
        file, name = spec.file(shard), str(self.path / spec.file(shard))
        size, length = self._files.size(file), index_bytes(spec.rows_per_file)
        if size < length:
            raise CacheDamagedError(f'{name}: has {size} bytes, its index alone takes {length}; extract it again')
        return decode_index(
            self._files.read_range(file, offset=size - length, length=length),
            chunks_per_shard=spec.rows_per_file,
            num_chunks=min(spec.rows_per_file, spec.shape[0] - shard * spec.rows_per_file),
            chunk_bytes=math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize,
            shard_bytes=size,
            name=name,
        )
