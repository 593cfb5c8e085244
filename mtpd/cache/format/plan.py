"""Which image goes to which row of which shard: decided from the image sizes, before any teacher runs.

Images whose padded inputs have one shape form a bucket; a bucket's rows are cut into shard groups, the unit that is
written, committed and resumed. The plan is a pure function of its arguments, so that a resumed extraction arrives at
the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import Field, SkipValidation, ValidationError

from mtpd.cache.format.strict_json import StrictRecord, first_problem
from mtpd.errors import InputError
from mtpd.geometry import Geometry, Level, Size

DEFAULT_SHARD_BYTES = 96 * 2**20
MAX_IMAGES = 2**24

# No network or data set is near these; a manifest beyond them is an attempt to make the reader allocate without end.
Pixels = Annotated[int, Field(gt=0, le=2**16)]
NumImages = Annotated[int, Field(gt=0, le=MAX_IMAGES)]


class SourceImage(NamedTuple):
    """An image of the data set: its id and its original (height, width) in px."""

    image_id: int
    size: Size


class BucketRecord(StrictRecord):
    """A bucket of one padded input shape, `rows_per_shard` of its images in a full shard: what a manifest keeps."""

    padded: tuple[Pixels, Pixels] = Field(strict=False)
    num_images: NumImages
    rows_per_shard: NumImages

    @property
    def name(self) -> str:
        """The bucket's folder, for instance `800x1088`."""
        return f'{self.padded[0]}x{self.padded[1]}'

    @property
    def num_shards(self) -> int:
        """Number of shard groups, the last one possibly not full."""
        return -(-self.num_images // self.rows_per_shard)

    def rows(self, shard: int) -> range:
        """The bucket's rows that shard group `shard` holds."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_images))


class Bucket(BucketRecord):
    """A bucket with its images in row order, which a cache's index holds."""

    images: SkipValidation[tuple[SourceImage, ...]] = Field(exclude=True)


class ShardKey(NamedTuple):
    """Names one shard group: all levels and views of a run of rows of a bucket."""

    bucket: str
    shard: int

    def __str__(self) -> str:
        return f'{self.bucket}/{self.shard}'


@dataclass(frozen=True)
class CachePlan:
    """All buckets of a cache, the largest first."""

    buckets: tuple[Bucket, ...]

    @cached_property
    def by_name(self) -> dict[str, Bucket]:
        """Buckets by folder name."""
        return {bucket.name: bucket for bucket in self.buckets}

    @property
    def num_images(self) -> int:
        """Images in all buckets."""
        return sum(bucket.num_images for bucket in self.buckets)

    def shard_keys(self) -> list[ShardKey]:
        """Every shard group, in the order in which an extraction writes them."""
        return [ShardKey(bucket.name, shard) for bucket in self.buckets for shard in range(bucket.num_shards)]

    def images(self, key: ShardKey) -> tuple[SourceImage, ...]:
        """The images of a shard group in row order."""
        bucket = self.by_name[key.bucket]
        rows = bucket.rows(key.shard)
        return bucket.images[rows.start : rows.stop]


def num_elements(levels: Sequence[Level], padded: Size) -> int:
    """Feature values that one view of one image has on all levels."""
    return sum(level.channels * height * width for level in levels for height, width in [level.grid(*padded)])


def plan_cache(
    images: Sequence[SourceImage],
    *,
    geometry: Geometry,
    levels: Sequence[Level],
    bytes_per_element: float,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> CachePlan:
    """Groups images by padded shape; rows keep the order of the images.

    `bytes_per_element` is what is expected on disk, `shard_bytes` the size of one shard of the largest level.
    InputError: no manifest can hold such a bucket.
    """
    grouped: dict[Size, list[SourceImage]] = {}
    for image in images:
        grouped.setdefault(geometry.padded(image.size), []).append(image)
    buckets = []
    for padded, members in sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0])):
        largest = max(num_elements([level], padded) for level in levels) * bytes_per_element
        rows = max(1, min(int(shard_bytes / largest), len(members)))
        try:
            bucket = Bucket(padded=padded, num_images=len(members), rows_per_shard=rows, images=tuple(members))
        except ValidationError as error:
            raise InputError(f'a cache cannot hold this extraction:  {first_problem(error)}') from error
        buckets.append(bucket)
    return CachePlan(buckets=tuple(buckets))
