"""The manifest: what a cache is, written last, and the only thing that makes a folder a cache.

It is JSON, closed by the sha256 of its own content, and lists every file that a reader will touch with size and hash.
pydantic validates it, so that a damaged or hostile manifest is refused before anything is read or allocated.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from mtpd.cache.format.arrays import INDEX_COLUMNS, MAX_PLAIN_BYTES, ArraySpec, RoisRecord, roi_specs, view_specs
from mtpd.cache.format.codecs import CodecName
from mtpd.cache.format.plan import MAX_IMAGES, BucketRecord, CachePlan, Pixels, num_elements
from mtpd.cache.format.strict_json import StrictRecord, first_problem, read_json, require_shallow, short
from mtpd.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError, InputError
from mtpd.geometry import Geometry, Level
from mtpd.system.files import canonical_json, sha256_bytes, write_atomically

FORMAT: Final = 'mtpd-cache'
VERSION: Final = 1
MANIFEST_FILE = 'manifest.json'
TEACHER_FILE = 'teacher.safetensors'

MAX_FILES = 2**20  # COCO in shards of 24 images, five levels and two views: 0.13 million
MAX_PROBABILITIES = 2**23  # of an image: the 1,203 classes of LVIS for as many RoIs as there may be
MAX_MAP_ELEMENTS = 2**28  # of one level of one image: 256 channels at stride 4 of 4096 x 4096 px

Channels = Annotated[int, Field(gt=0, le=2**14)]
# As `mtpd.detectors.levels` names levels: never the name of another array or a step up in the folders.
LevelName = Annotated[str, Field(pattern=r'^[ps][0-9]{1,5}(_[0-9]{1,3})?$')]
# Relative, and no part begins with a dot.
FilePath = Annotated[
    str, Field(pattern=r'^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$', max_length=200)
]
# Free in form, for information and for comparisons.
Facts = Annotated[dict[str, Any], AfterValidator(require_shallow)]
ViewName = Literal['plain', 'flip']


class LevelRecord(StrictRecord):
    """A stored level; see `mtpd.geometry.Level`."""

    name: LevelName
    stride: Pixels
    channels: Channels

    def to_level(self) -> Level:
        """The value that the rest of the program uses."""
        return Level(**dict(self))


class GeometryRecord(StrictRecord):
    """The geometry of all inputs; see `mtpd.geometry.Geometry`."""

    scale: tuple[Pixels, Pixels] = Field(strict=False)
    keep_ratio: bool
    pad_divisor: Pixels
    pad_size: tuple[Pixels, Pixels] | None = Field(strict=False)
    pad_square: bool = False
    interpolation: Literal['nearest', 'bilinear', 'bicubic', 'area', 'lanczos', 'box', 'hamming'] = 'bilinear'
    backend: Literal['cv2', 'pillow'] = 'cv2'
    rounds_down: bool = False
    float_pixels: bool = False

    def to_geometry(self) -> Geometry:
        """The value that the rest of the program uses."""
        return Geometry(**dict(self))

    @model_serializer
    def _without_defaults(self) -> dict[str, Any]:
        """Caches with the usual resize and padding are byte for byte as they were before there were others."""
        return self.to_geometry().to_dict()


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file below the cache's root; no `StrictRecord`, which takes six times the memory, as there are many."""

    __pydantic_config__ = ConfigDict(extra='forbid')

    num_bytes: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    sha256: Annotated[str, Field(strict=True, pattern=r'^[0-9a-f]{64}$')]


class Description(StrictRecord):
    """What a cache is made of: all that is known before the teacher runs. FORMAT.md describes each."""

    fingerprint: Facts  # what must be equal for two extractions to be one
    provenance: Facts
    levels: tuple[LevelRecord, ...] = Field(strict=False, min_length=1)
    codec: CodecName
    target_error: Annotated[float, Field(gt=0, lt=1)] | None = None
    views: tuple[ViewName, ...] = Field(strict=False, min_length=1)
    geometry: GeometryRecord
    rois: RoisRecord | None = None

    def bucket_specs(self, bucket: BucketRecord) -> list[ArraySpec]:
        """Every array of a bucket: those of its maps, then those of its RoIs."""
        levels = [level.to_level() for level in self.levels]
        of_views = [view_specs(bucket, view=view, levels=levels, codec=self.codec) for view in self.views]
        return [spec for specs in (*of_views, roi_specs(bucket, self.rois)) for spec in specs.values()]

    @model_serializer(mode='wrap')
    def _without_absent_rois(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Caches without RoIs are byte for byte as they were before there were any."""
        content: dict[str, Any] = serialize(self)
        if content.get('rois', self) is None:
            del content['rois']
        return content


class Manifest(StrictRecord):
    """A finished cache."""

    format: Literal['mtpd-cache'] = FORMAT
    version: Literal[1] = VERSION
    description: Description
    buckets: tuple[BucketRecord, ...] = Field(strict=False, min_length=1)
    files: dict[FilePath, FileRecord] = Field(max_length=MAX_FILES)

    @property
    def num_images(self) -> int:
        """Images in all buckets."""
        return sum(bucket.num_images for bucket in self.buckets)

    @model_validator(mode='after')
    def _is_plausible(self) -> 'Manifest':
        levels, rois = self.description.levels, self.description.rois
        parts: dict[str, Sequence[object]] = {
            'bucket': [bucket.padded for bucket in self.buckets],
            'level': [level.name for level in levels],
            'view': self.description.views,
        }
        for kind, values in parts.items():
            if len(set(values)) < len(values):
                raise ValueError(f'a {kind} appears twice in {short(values)}')
        if self.num_images > MAX_IMAGES:
            raise ValueError(f'holds {self.num_images} images, at most {MAX_IMAGES} are supported')
        if rois is not None and (num_probabilities := rois.num_rois * (rois.num_classes + 1)) > MAX_PROBABILITIES:
            raise ValueError(
                f'{rois.num_rois} proposals of {rois.num_classes} classes have {num_probabilities} probabilities, '
                f'at most {MAX_PROBABILITIES} are supported'
            )
        for bucket in self.buckets:
            if bucket.rows_per_shard > bucket.num_images:
                raise ValueError(f'a shard of {bucket.rows_per_shard} rows in a bucket of {bucket.num_images}')
            for level in levels:
                elements = num_elements([level.to_level()], bucket.padded)
                if elements > MAX_MAP_ELEMENTS:
                    raise ValueError(
                        f'level {level.name} of a {bucket.name} input has {elements} values, '
                        f'at most {MAX_MAP_ELEMENTS} are supported'
                    )
        return self


def write_manifest(root: Path, manifest: Manifest, *, owner: str = '') -> None:
    """Publishes a cache; `owner` as for `write_atomically`."""
    write_atomically(root / MANIFEST_FILE, manifest_content(manifest), owner=owner)


def manifest_content(manifest: Manifest) -> bytes:
    """The manifest's file."""
    content = manifest.model_dump(mode='json')
    content['digest'] = sha256_bytes(canonical_json(content))
    return json.dumps(content, indent=1).encode()


def require_publishable(description: Description, plan: CachePlan) -> None:
    """Checks, before a teacher runs for days, that `read_manifest` will accept the result."""
    num_of_group = len(description.bucket_specs(plan.buckets[0])) if plan.buckets else 0
    # The index, the teacher's weights and the basis.
    num_files = len(plan.shard_keys()) * num_of_group + len(INDEX_COLUMNS) + 2
    if num_files > MAX_FILES:
        raise InputError(
            f'the cache would have {num_files} files, at most {MAX_FILES} are supported: increase --shard-mb'
        )
    of_rois = (spec for bucket in plan.buckets for spec in roi_specs(bucket, description.rois).values())
    if any(spec.file_bytes > MAX_PLAIN_BYTES for spec in of_rois):
        raise InputError('the proposals of a shard would need more than 1 GB: lower --rois or --shard-mb')
    try:
        Manifest(description=description, buckets=plan.buckets, files={})
    except ValidationError as error:
        raise InputError(f'a cache cannot hold this extraction:  {first_problem(error)}') from error


def read_manifest(root: Path) -> Manifest:
    """Reads and checks the manifest of the cache in `root`; raises what `mtpd.cache.open` does."""
    path = root / MANIFEST_FILE
    if not os.path.isfile(path):
        if os.path.isfile(root / 'plan.json'):
            raise CacheIncompleteError(
                f'{root}: this cache has not finished; run the same mtpd-extract or mtpd-cache copy command again'
            )
        raise CacheIncompleteError(f'{root}: no cache here ({MANIFEST_FILE} is missing); create one with mtpd-extract')
    return parse_manifest(read_json(path), name=str(path))


def parse_manifest(content: Any, *, name: str) -> Manifest:
    """Checks a manifest that was read as JSON."""
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise CacheMismatchError(f'{name}: not a feature cache, its format is not {FORMAT!r}')
    if content.get('version') != VERSION:
        raise CacheMismatchError(
            f'{name}: format version {short(content.get("version"))}, this program supports version {VERSION}; '
            'install a newer mtpd'
        )
    digest = content.pop('digest', None)
    if digest != sha256_bytes(canonical_json(content)):
        raise CacheDamagedError(
            f'{name}: its content does not match its digest, it was edited or damaged; restore it, or extract with '
            '--overwrite'
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise CacheDamagedError(f'{name}: {first_problem(error)}; extract it again') from error
