"""The manifest: what a cache is, written last, and the only thing that makes a folder a cache.

It is JSON, closed by the sha256 of its own content, and lists every file that a reader will touch with size and hash.
pydantic validates it, so that a damaged or hostile manifest is refused before anything is read or allocated.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtpd.cache.codecs import CodecName
from mtpd.cache.plan import Bucket, CachePlan
from mtpd.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError
from mtpd.files import canonical_json, sha256_bytes, write_atomically
from mtpd.geometry import Geometry
from mtpd.pyramid import Level

FORMAT: Final = 'mtpd-cache'
VERSION: Final = 1
MANIFEST_FILE = 'manifest.json'

Positive = Annotated[int, Field(gt=0)]
# No network is near these; a manifest beyond them is an attempt to make the reader allocate without end.
Pixels = Annotated[int, Field(gt=0, le=2**16)]
Channels = Annotated[int, Field(gt=0, le=2**14)]
Name = Annotated[str, Field(pattern=r'^[A-Za-z0-9_.-]+$', max_length=100)]
ViewName = Literal['plain', 'flip']


class _Record(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, strict=True)


class LevelRecord(_Record):
    """A stored level; see `mtpd.pyramid.Level`."""

    name: Name
    stride: Pixels
    channels: Channels

    def to_level(self) -> Level:
        """The value that the rest of the program uses."""
        return Level(self.name, self.stride, self.channels)


class GeometryRecord(_Record):
    """The geometry of all inputs; see `mtpd.geometry.Geometry`."""

    scale: tuple[Pixels, Pixels] = Field(strict=False)
    keep_ratio: bool
    pad_divisor: Pixels
    pad_size: tuple[Pixels, Pixels] | None = Field(strict=False)

    def to_geometry(self) -> Geometry:
        """The value that the rest of the program uses."""
        return Geometry(self.scale, self.keep_ratio, self.pad_divisor, self.pad_size)


class BucketRecord(_Record):
    """A bucket without its images, which the index holds."""

    padded: tuple[Pixels, Pixels] = Field(strict=False)
    num_images: Positive
    rows_per_shard: Positive

    @property
    def name(self) -> str:
        """The bucket's folder, as `mtpd.cache.plan.Bucket.name`."""
        return f'{self.padded[0]}x{self.padded[1]}'

    @property
    def num_shards(self) -> int:
        """Number of shard groups, the last one possibly not full."""
        return -(-self.num_images // self.rows_per_shard)


class FileRecord(_Record):
    """A file below the cache's root."""

    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r'^[0-9a-f]{64}$')


class Description(_Record):
    """What a cache is made of: all that is known before the teacher runs.

    Attributes:
        fingerprint: what must be equal for two extractions to be one (teacher, preprocessing, data set).
        provenance: names and versions, for people.
        levels, codec, views, geometry: what is stored.
    """

    fingerprint: dict[str, Any]
    provenance: dict[str, Any]
    levels: tuple[LevelRecord, ...] = Field(strict=False, min_length=1)
    codec: CodecName
    views: tuple[ViewName, ...] = Field(strict=False, min_length=1)
    geometry: GeometryRecord


class Manifest(_Record):
    """A finished cache."""

    format: Literal['mtpd-cache']
    version: Literal[1]
    description: Description
    buckets: tuple[BucketRecord, ...] = Field(strict=False)
    files: dict[str, FileRecord]

    @property
    def num_images(self) -> int:
        """Images in all buckets."""
        return sum(bucket.num_images for bucket in self.buckets)


def describe(
    *,
    fingerprint: dict[str, Any],
    provenance: dict[str, Any],
    levels: tuple[Level, ...],
    codec: CodecName,
    views: tuple[ViewName, ...],
    geometry: Geometry,
) -> Description:
    """The description of a cache from the program's own values."""
    return Description(
        fingerprint=fingerprint,
        provenance=provenance,
        levels=tuple(LevelRecord(name=level.name, stride=level.stride, channels=level.channels) for level in levels),
        codec=codec,
        views=views,
        geometry=GeometryRecord(**vars(geometry)),
    )


def bucket_record(bucket: Bucket) -> BucketRecord:
    """A bucket as the manifest keeps it."""
    return BucketRecord(padded=bucket.padded, num_images=len(bucket.images), rows_per_shard=bucket.rows_per_shard)


def write_manifest(root: Path, description: Description, plan: CachePlan, files: dict[str, FileRecord]) -> None:
    """Publishes a cache."""
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        description=description,
        buckets=tuple(bucket_record(bucket) for bucket in plan.buckets),
        files=files,
    )
    content = manifest.model_dump(mode='json')
    content['digest'] = sha256_bytes(canonical_json(content))
    write_atomically(root / MANIFEST_FILE, json.dumps(content, indent=1).encode())


def read_manifest(root: Path) -> Manifest:
    """Reads and checks the manifest of the cache in `root`.

    Raises:
        CacheIncompleteError: there is no manifest.
        CacheMismatchError: another program or a newer version wrote it.
        CacheDamagedError: it was changed after it was written.
    """
    path = root / MANIFEST_FILE
    if not path.is_file():
        if (root / 'journal.jsonl').is_file():
            raise CacheIncompleteError(
                f'{root}: this extraction has not finished; run the same mtpd-extract command again'
            )
        raise CacheIncompleteError(f'{root}: no cache here ({MANIFEST_FILE} is missing); make one with mtpd-extract')
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CacheDamagedError(f'{path}: not valid JSON ({error}); restore it or extract again') from error
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise CacheMismatchError(f'{path}: not a feature cache, its format is not {FORMAT!r}')
    if content.get('version') != VERSION:
        raise CacheMismatchError(
            f'{path}: format version {content.get("version")}, this program reads version {VERSION}; '
            'install a newer mtpd'
        )
    digest = content.pop('digest', None)
    if digest != sha256_bytes(canonical_json(content)):
        raise CacheDamagedError(f'{path}: its content does not match its digest, it was edited or damaged')
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(map(str, first['loc']))
        raise CacheDamagedError(f'{path}: {where}: {first["msg"]}') from error
