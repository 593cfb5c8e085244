"""The Zarr arrays of a cache: their names, shapes, types and files.

A bucket's folder holds, per view (N rows, L levels, C channels, H W grid of a level):

    <view>/<level>         (N, C, H, W) int8 or float16   sharded, inner chunk = one image
    <view>/<level>.scale   (N, 2, C) float32 or float16   step and offset of each channel; not with fp16
    <view>/image_id        (N,) int64                     which image a row is
    <view>/crc32c          (N, L) uint32                  checksum of each inner chunk, in the order of the levels
    <view>/error           (N, L) float32                 relative squared error of each map, in the same order

The small arrays are cut at the same rows as the shards, so that a shard group owns all its files. Everything here
follows from the manifest; the `zarr.json` files are for other programs and are never trusted.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mtpd.cache.format.codecs import CodecName, has_scale
from mtpd.cache.format.plan import Bucket, ShardKey
from mtpd.errors import CacheDamagedError
from mtpd.geometry import Level

CODE_DTYPES: dict[CodecName, str] = {'fp16': 'float16', 'int8': 'int8', 'lean': 'int8'}
SCALE_DTYPES: dict[CodecName, str] = {'int8': 'float32', 'lean': 'float16'}
# On real int8 features levels 1 and 3 give the same size: there is little but entropy to code. The zeros of `lean`
# repeat, and level 6 finds 6% more in them at a third of the speed, which the teacher's forward pass hides.
ZSTD_LEVELS: dict[CodecName, int] = {'fp16': 1, 'int8': 1, 'lean': 6}
# Of a bucket and view, or of the RoIs of a bucket; see `mtpd.cache.format.roi_arrays`.
_SHARD_FILE = re.compile(r'(?:(\d+x\d+)/(\w+)|heads/(\d+x\d+))/([^/]+)/c/(\d{1,9})(?:/0)*')
# A table is read whole. COCO's longest, a column of its index, takes 1 MB.
MAX_PLAIN_BYTES = 2**30
HEADS = 'heads'
MAX_ROIS = 4096
INDEX_COLUMNS = ('image_id', 'bucket', 'row', 'original', 'resized', 'padded')


class RoisRecord(BaseModel):
    """How many RoIs of an image a cache holds at most, and of how many object classes."""

    model_config = ConfigDict(extra='forbid', frozen=True, strict=True)

    num_rois: Annotated[int, Field(gt=0, le=MAX_ROIS)]
    num_classes: Annotated[int, Field(gt=0, le=2**14)]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a bucket and view.

    Attributes:
        path: below the cache's root.
        shape: of the whole array; the first axis is the bucket's rows.
        dtype: numpy's name.
        rows_per_file: rows that one file holds.
        zstd_level: a file is a shard of one-row chunks compressed at this level; None: it is a single plain chunk.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    rows_per_file: int
    zstd_level: int | None = None

    def file(self, shard: int) -> str:
        """Path of the file that holds shard group `shard`, below the cache's root."""
        return '/'.join([self.path, 'c', str(shard), *['0'] * (len(self.shape) - 1)])

    @property
    def sharded(self) -> bool:
        """Whether a file is a shard of one-row chunks."""
        return self.zstd_level is not None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before compression."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def file_bytes(self) -> int:
        """Bytes of a file before compression."""
        return self.rows_per_file * self.row_bytes


class FilePlace(NamedTuple):
    """What a file of a shard group holds: rows of one array of one view, or of the RoIs, which are of none ('')."""

    key: ShardKey
    view: str
    array: str

    def is_of(self, level: Level) -> bool:
        """Whether the array is a level's codes, or goes with them."""
        return self.array == level.name or self.array.startswith(f'{level.name}.')


def file_place(file: str) -> FilePlace | None:
    """What the file with this path below the cache's root holds; None for a file of no shard group."""
    match = _SHARD_FILE.fullmatch(file)
    if match is None:
        return None
    bucket, view, of_rois, array, shard = match.groups()
    return FilePlace(ShardKey(bucket or of_rois, int(shard)), view or '', array)


def view_specs(bucket: Bucket, *, view: str, levels: Sequence[Level], codec: CodecName) -> dict[str, ArraySpec]:
    """The arrays of a bucket and view by their names: see the module."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        level.name: ((level.channels, *level.grid(*bucket.padded)), CODE_DTYPES[codec]) for level in levels
    }
    if has_scale(codec):
        shapes |= {f'{level.name}.scale': ((2, level.channels), SCALE_DTYPES[codec]) for level in levels}
    shapes |= {'image_id': ((), 'int64'), 'crc32c': ((len(levels),), 'uint32'), 'error': ((len(levels),), 'float32')}
    specs = _specs(f'{bucket.name}/{view}', bucket, shapes)
    return specs | {level.name: replace(specs[level.name], zstd_level=ZSTD_LEVELS[codec]) for level in levels}


def roi_specs(bucket: Bucket, rois: RoisRecord | None) -> dict[str, ArraySpec]:
    """The arrays of a bucket's RoIs by their names, see `mtpd.cache.format.roi_arrays`; none without a record."""
    if rois is None:
        return {}
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        'image_id': ((), 'int64'),
        'num_rois': ((), 'int32'),
        'crc32c': ((), 'uint32'),
        'boxes': ((rois.num_rois, 4), 'float32'),
        'probabilities': ((rois.num_rois, rois.num_classes + 1), 'float16'),
        'labels': ((rois.num_rois,), 'int32'),
        'deltas': ((rois.num_rois, 4), 'float32'),
    }
    return _specs(f'{HEADS}/{bucket.name}', bucket, shapes)


def bucket_specs(
    bucket: Bucket,
    *,
    views: Sequence[str],
    levels: Sequence[Level],
    codec: CodecName,
    rois: RoisRecord | None = None,
) -> list[ArraySpec]:
    """Every array of a bucket."""
    of_views = [view_specs(bucket, view=view, levels=levels, codec=codec) for view in views]
    return [spec for specs in (*of_views, roi_specs(bucket, rois)) for spec in specs.values()]


def _specs(folder: str, bucket: Bucket, shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, ArraySpec]:
    """Arrays of a bucket by name, from the shape of a row and the dtype of each."""
    return {
        name: ArraySpec(f'{folder}/{name}', (len(bucket.images), *row_shape), dtype, bucket.rows_per_shard)
        for name, (row_shape, dtype) in shapes.items()
    }


def encode_plain(values: np.ndarray, spec: ArraySpec) -> bytes:
    """The file of one plain chunk: little-endian values, rows beyond the last one zero."""
    chunk = np.zeros((spec.rows_per_file, *spec.row_shape), dtype=np.dtype(spec.dtype).newbyteorder('<'))
    chunk[: len(values)] = values
    return chunk.tobytes()


def decode_plain(content: bytes, spec: ArraySpec, *, name: str) -> np.ndarray:
    """The rows (rows_per_file, ...) of a plain chunk's file.

    Raises:
        CacheDamagedError: the content has another size.
    """
    require_plain_bytes(spec, len(content), name=name)
    dtype = np.dtype(spec.dtype).newbyteorder('<')
    return np.frombuffer(content, dtype=dtype).reshape(spec.rows_per_file, *spec.row_shape)


def require_plain_bytes(spec: ArraySpec, num_bytes: int, *, name: str) -> None:
    """Checks the size of a plain chunk's file, which messages call `name`.

    Raises:
        CacheDamagedError: it is another than its shape makes it, or too large to be read whole.
    """
    if num_bytes != spec.file_bytes or num_bytes > MAX_PLAIN_BYTES:
        raise CacheDamagedError(
            f'{name}: has {num_bytes} bytes, expected {spec.file_bytes} by its shape and at most {MAX_PLAIN_BYTES}; '
            'extract it again'
        )


def index_specs(num_images: int) -> dict[str, ArraySpec]:
    """The arrays of the index: for every image where it is and what its sizes are."""
    columns = {}
    for name in INDEX_COLUMNS:
        shape = (num_images, 2) if name in ('original', 'resized', 'padded') else (num_images,)
        dtype = 'int64' if name == 'image_id' else 'int32'
        columns[name] = ArraySpec(f'index/{name}', shape, dtype, rows_per_file=num_images)
    return columns
