"""Reads a cache; trusts only what the manifest guarantees.

The chain of trust: the manifest's digest; the size of every file and the sha256 of the small ones (index, basis, row
tables) in the manifest; the checksum of every inner chunk and the image id of every row in those tables. So a shard
that was damaged, truncated, swapped with another or put back from an older cache is refused on the first read of what
it touches.

Reading maps is the hot path of training: per map one `pread`, one checksum and one decompression, each without the
interpreter lock, straight into the caller's memory. All that can be known of a shard group beforehand is in its
`RowTable`.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from mtpd.cache.format import arrays, roi_arrays
from mtpd.cache.format.arrays import ArraySpec, RoisRecord, StoredMap, roi_specs, view_specs
from mtpd.cache.format.codecs import EncodedMaps
from mtpd.cache.format.manifest import TEACHER_FILE, Manifest, ViewName
from mtpd.cache.format.plan import Bucket, ShardKey, num_elements
from mtpd.cache.format.tensor_files import BASIS_FILE, load_basis, load_roi_head, load_teacher, max_basis_bytes
from mtpd.cache.reading.cache_files import CacheFiles, Folder, read_index
from mtpd.errors import REPAIR, CacheDamagedError, CacheMismatchError, InputError
from mtpd.geometry import Geometry, Level, Size
from mtpd.heads.roi_head import RoiHead
from mtpd.heads.rois import ImageRois

# Neck and head of Swin-L's Cascade R-CNN take 0.3 GB.
MAX_TEACHER_BYTES = 2**32


class ImageSizes(NamedTuple):
    """Sizes (height, width) in px of an image and of its network input before and after padding."""

    original: Size
    resized: Size
    padded: Size


@dataclass(frozen=True)
class RowTable:
    """The small arrays of one shard group and view, already verified; the last four of each level.

    All that were read are kept, 150 bytes for a row of five levels: in a random order every image is of another group.
    Scales take 30 times as much, so a row of them is read again with its codes.
    """

    image_ids: np.ndarray  # (rows_per_shard,) int64
    checksums: np.ndarray  # (rows_per_shard, L) uint32
    errors: np.ndarray  # (rows_per_shard, L) float32
    chunks: tuple[np.ndarray, ...]  # (rows_per_shard, 2) uint64, offset and length of each inner chunk
    files: tuple[str, ...]  # the shard, below the cache's root
    scale_checksums: tuple[
        np.ndarray, ...
    ]  # (rows_per_shard,) uint32, CRC-32C of a row; none where codes have no scale
    scale_files: tuple[str, ...]


class CacheReader:
    """An open cache. Safe to use from several threads, and after a fork.

    Attributes:
        name: the cache's folder, or its URL.
        manifest: what it is; see `mtpd.cache.format.manifest`.
        levels: the stored levels, in the teacher's order.
        geometry: the inputs' resize and padding.
        views: 'plain' and, when stored, 'flip'.
        code_dtype: of the stored codes.
        image_ids: all images, in the order of the index.
        plan: the images of each bucket and the shards that they are in.
        bases: level name -> (C, C) float32 whose columns the channels of the codes stand for; empty when these are the
            teacher's channels.
    """

    def __init__(self, folder: Folder) -> None:
        self.name = folder.name
        self.manifest: Manifest = folder.read_manifest()
        description = self.manifest.description
        self.levels: tuple[Level, ...] = tuple(level.to_level() for level in description.levels)
        self.geometry: Geometry = description.geometry.to_geometry()
        self.views: tuple[ViewName, ...] = description.views
        self.code_dtype: torch.dtype = getattr(torch, arrays.CODE_DTYPES[description.codec])
        self._scale_dtype = np.dtype(arrays.SCALE_DTYPES.get(description.codec, 'float32')).newbyteorder('<')
        self._files = CacheFiles(folder, self.manifest.files)
        self.plan = read_index(self._files, self.manifest)
        self.image_ids: tuple[int, ...] = tuple(one.image_id for bucket in self.plan.buckets for one in bucket.images)
        # Numbers take less than pairs of a bucket and a row.
        self._places = {image_id: place for place, image_id in enumerate(self.image_ids)}
        self._ends = list(itertools.accumulate(bucket.num_images for bucket in self.plan.buckets))
        self.bases: dict[str, Tensor] = {}
        if description.codec == 'lean':
            content = self._files.read(BASIS_FILE, max_bytes=max_basis_bytes(self.levels))
            self.bases = load_basis(content, self.levels, name=f'{self.name}/{BASIS_FILE}')
        self._table = cache(self._load_table)
        self._rois = None if description.rois is None else RoiReader(self._files, description.rois, self.plan.by_name)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._places

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
        return {name: maps.values()[0] for name, maps in encoded.items()}

    def read_encoded(
        self,
        image_id: int,
        view: ViewName = 'plain',
        *,
        levels: Sequence[str] | None = None,
        out: Tensor | None = None,
    ) -> dict[str, EncodedMaps]:
        """Like `read`, but the codes as they are stored, a batch of one image, to be decoded on another device.

        Args:
            image_id: of the image.
            view: of the image.
            levels: names of those to read; None: all.
            out: 1-D buffer of `code_dtype` on the CPU, at least `num_codes` long, into which the codes of one level
                after another are written; what is given back are views of it. None: new memory for every map, which
                costs a third of the speed.
        """
        wanted, (table, position, padded) = self._wanted(levels), self._row(image_id, view)
        total = num_elements(wanted, padded)
        out = torch.empty(total, dtype=self.code_dtype) if out is None else out
        if (out.dtype, out.dim(), out.is_contiguous()) != (self.code_dtype, 1, True) or out.numel() < total:
            raise InputError(
                f'{self.name}: its codes need a contiguous buffer of {total} {self.code_dtype}, got '
                f'{tuple(out.shape)} {out.dtype}'
            )
        numbers = [self.levels.index(level) for level in wanted]
        # What torch does comes first and together: after a decompression, which leaves nothing of it in the
        # processor's caches, each of its calls takes many times as long, together a tenth of the whole.
        errors = torch.tensor(table.errors[position, :, None]).unbind()
        all_codes = torch.split(out[:total], [num_elements([level], padded) for level in wanted])
        encoded = {}
        for number, level, codes in zip(numbers, wanted, all_codes, strict=True):
            encoded[level.name] = EncodedMaps(
                codes=codes.view(1, level.channels, *level.grid(*padded)),
                scale=self._scale(table, number, position) if table.scale_files else None,
                basis=self.bases.get(level.name),
                error=errors[number],
            )
        for number, memory in zip(numbers, [codes.numpy() for codes in all_codes], strict=True):
            arrays.decode_chunk(
                self._chunk(table, number, position),
                out=memory,
                checksum=int(table.checksums[position, number]),
                name=f'{self.name}/{table.files[number]}: row {position}',
            )
        return encoded

    def read_stored(
        self, image_id: int, view: ViewName = 'plain', *, levels: Sequence[str] | None = None
    ) -> dict[str, StoredMap]:
        """Like `read`, but as it is stored, checked and not decompressed."""
        wanted, (table, position, _) = self._wanted(levels), self._row(image_id, view)
        stored = {}
        for level in wanted:
            number = self.levels.index(level)
            chunk, checksum = self._chunk(table, number, position), int(table.checksums[position, number])
            arrays.require_chunk(chunk, checksum=checksum, name=f'{self.name}/{table.files[number]}: row {position}')
            scale = self._scale(table, number, position)[0].numpy() if table.scale_files else None
            stored[level.name] = StoredMap(chunk, scale, float(table.errors[position, number]))
        return stored

    def num_codes(self, image_id: int, *, levels: Sequence[str] | None = None) -> int:
        """How many codes the maps of an image have together."""
        bucket, _ = self._locate(image_id)
        return num_elements(self._wanted(levels), bucket.padded)

    def max_codes(self, *, levels: Sequence[str] | None = None) -> int:
        """The most codes that the maps of one image have together."""
        return max(num_elements(self._wanted(levels), bucket.padded) for bucket in self.manifest.buckets)

    def shard(self, image_id: int) -> ShardKey:
        """The shard group that an image's maps are in: the images of a group are stored together on disk."""
        bucket, row = self._locate(image_id)
        return ShardKey(bucket.name, row // bucket.rows_per_shard)

    def errors(self, image_id: int, view: ViewName = 'plain') -> dict[str, float]:
        """||stored - live||^2 / ||live||^2 of an image's maps by level name, as measured when they were encoded."""
        table, position, _ = self._row(image_id, view)
        return {level.name: value for level, value in zip(self.levels, table.errors[position].tolist(), strict=True)}

    def rois(self, image_id: int) -> ImageRois:
        """The teacher's best proposals of one image, in px of the original image, and what it says about them.

        Raises:
            CacheMismatchError: the image is not in the cache, or the cache holds no proposals.
            CacheDamagedError: the bytes are not the ones that were written for this image.
        """
        if self._rois is None:
            raise CacheMismatchError(f'{self.name}: holds no proposals of the teacher; extract it with --rois 512')
        return self._rois.read(*self._locate(image_id), image_id)

    def teacher_weights(self) -> dict[str, Tensor]:
        """The teacher's neck and head parameters by their name in the teacher.

        Raises:
            CacheDamagedError: the file is not what was written, or holds no tensors.
        """
        return load_teacher(self.teacher_file(), name=f'{self.name}/{TEACHER_FILE}')[0]

    def roi_head(self) -> RoiHead:
        """The teacher's RoI head, ready to run on this cache's maps; of a cascade the first stage.

        Raises:
            CacheMismatchError: the cache holds none that can be run; the message states why.
            CacheDamagedError: the file is not what was written, or its record and its tensors contradict each other.
        """
        return load_roi_head(self.teacher_file(), name=f'{self.name}/{TEACHER_FILE}')

    def teacher_file(self) -> bytes:
        """The teacher's neck and head, and the record of its RoI head, as a safetensors file."""
        return self._files.read(TEACHER_FILE, max_bytes=MAX_TEACHER_BYTES)

    def _locate(self, image_id: int) -> tuple[Bucket, int]:
        """The bucket of an image and its row there."""
        place = self._places.get(image_id)
        if place is None:
            raise CacheMismatchError(
                f'{self.name}: image {image_id} is not among its {len(self)} images; extract the data set you train on'
            )
        number = bisect_right(self._ends, place)
        bucket = self.plan.buckets[number]
        return bucket, place - self._ends[number] + bucket.num_images

    def _row(self, image_id: int, view: ViewName) -> tuple[RowTable, int, Size]:
        """The table of an image's shard group, which must agree, the image's row in it, and its padded size."""
        if view not in self.views:
            raise CacheMismatchError(
                f'{self.name}: holds the views {", ".join(self.views)}, not {view}; extract it with --views'
            )
        bucket, row = self._locate(image_id)
        shard, position = divmod(row, bucket.rows_per_shard)
        table = self._table(bucket.name, view, shard)
        found = table.image_ids[position]
        if found != image_id:
            raise CacheDamagedError(
                f'{self.name}: row {row} of {bucket.name}/{view} belongs to image {found}, not {image_id}'
            )
        return table, position, bucket.padded

    def _chunk(self, table: RowTable, number: int, position: int) -> bytes:
        """The codes of one level of a row, as they are in the shard."""
        offset, length = table.chunks[number][position].tolist()
        return self._files.read_range(table.files[number], offset=offset, length=length)

    def _scale(self, table: RowTable, number: int, position: int) -> Tensor:
        """Scale and zero (1, 2, C) of one level of a row."""
        file, shape = table.scale_files[number], (1, 2, self.levels[number].channels)
        num_bytes = math.prod(shape) * self._scale_dtype.itemsize
        content = self._files.read_range(file, offset=position * num_bytes, length=num_bytes)
        if google_crc32c.value(content) != table.scale_checksums[number][position]:
            raise CacheDamagedError(
                f'{self.name}/{file}: row {position}: checksum mismatch, its bytes changed after writing; {REPAIR}'
            )
        return torch.tensor(np.frombuffer(content, dtype=self._scale_dtype).reshape(shape))

    def _load_table(self, bucket_name: str, view: ViewName, shard: int) -> RowTable:
        bucket, codec = self.plan.by_name[bucket_name], self.manifest.description.codec
        specs = view_specs(bucket, view=view, levels=self.levels, codec=codec)
        of_levels = [specs[level.name] for level in self.levels]
        of_scales = [specs[f'{level.name}.scale'] for level in self.levels if codec in arrays.SCALE_DTYPES]
        scales = [self._files.read_array(spec, shard=shard) for spec in of_scales]
        return RowTable(
            image_ids=self._files.read_array(specs['image_id'], shard=shard),
            checksums=self._files.read_array(specs['crc32c'], shard=shard),
            errors=self._files.read_array(specs['error'], shard=shard),
            chunks=tuple(self._files.read_shard_index(spec, shard=shard) for spec in of_levels),
            files=tuple(spec.file(shard) for spec in of_levels),
            scale_checksums=tuple(
                np.array([google_crc32c.value(row.tobytes()) for row in rows], dtype=np.uint32) for rows in scales
            ),
            scale_files=tuple(spec.file(shard) for spec in of_scales),
        )

    def _wanted(self, names: Sequence[str] | None) -> list[Level]:
        stored = [level.name for level in self.levels]
        missing = [name for name in names or () if name not in stored]
        if missing:
            raise CacheMismatchError(f'{self.name}: has the levels {", ".join(stored)}, not {missing[0]}')
        return [level for level in self.levels if names is None or level.name in names]


class RoiReader:
    """The RoIs of an open cache. Small tables are verified whole, every row by its checksum in them."""

    def __init__(self, files: CacheFiles, record: RoisRecord, buckets: Mapping[str, Bucket]) -> None:
        self._files = files
        self._record = record
        self._buckets = buckets
        self._tables = cache(self._load_tables)

    def read(self, bucket: Bucket, row: int, image_id: int) -> ImageRois:
        """The RoIs of the image in a row; CacheDamagedError if the bytes are not those written for this image."""
        shard, position = divmod(row, bucket.rows_per_shard)
        tables, specs = self._tables(bucket.name, shard), roi_specs(bucket, self._record)
        name = f'{self._files.name}: row {row} of heads/{bucket.name}'
        found = int(tables['image_id'][position])
        if found != image_id:
            raise CacheDamagedError(f'{name} belongs to image {found}, not {image_id}')
        rows = [self._row(specs[array], shard, position) for array in roi_arrays.ROI_VALUES]
        if roi_arrays.rois_checksum(rows) != tables['crc32c'][position]:
            raise CacheDamagedError(f'{name}: checksum mismatch, its bytes changed after writing; {REPAIR}')
        try:
            return roi_arrays.decode_rois(rows, specs, num_rois=int(tables['num_rois'][position]))
        except ValueError as error:
            raise CacheDamagedError(f'{name}: holds {error}; {REPAIR}') from error

    def _row(self, spec: ArraySpec, shard: int, position: int) -> bytes:
        return self._files.read_range(spec.file(shard), offset=position * spec.row_bytes, length=spec.row_bytes)

    def _load_tables(self, bucket_name: str, shard: int) -> dict[str, np.ndarray]:
        specs = roi_specs(self._buckets[bucket_name], self._record)
        tables = {name: self._files.read_array(specs[name], shard=shard) for name in roi_arrays.ROI_TABLES}
        for name in roi_arrays.ROI_VALUES:
            file = specs[name].file(shard)
            arrays.require_plain_bytes(specs[name], self._files.size(file), name=f'{self._files.name}/{file}')
        return tables
