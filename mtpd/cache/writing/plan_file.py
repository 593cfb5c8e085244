"""The plan of an unfinished cache as a file: what is being made, so that nothing else is mixed in.

It exists from the start of an extraction until the manifest, which says the same and more, is published. It holds all
of the manifest but the files of the shard groups, so that a process without teacher and data set can publish a cache.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec
from mtpd.cache.format.manifest import Description, FilePath, FileRecord, Manifest
from mtpd.cache.format.plan import BucketRecord, ShardKey
from mtpd.cache.format.strict_json import first_problem, read_json, short
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd.errors import CacheDamagedError, CacheIncompleteError
from mtpd.system.files import canonical_json, differences, sha256_bytes, write_atomically

PLAN_FILE = 'plan.json'
# Names and versions are recorded for information; an extraction may be resumed under another version of a library.
INFORMATIONAL = 'provenance'
# Which differing field is named: those of the fingerprint tell the most; buckets and files follow from the rest.
RANKS = {'fingerprint': 0, 'buckets': 2, 'files': 2}


class PlanRecord(Description):
    """A description, and what follows from it and the data set: buckets, and the files that no shard group has."""

    buckets: tuple[BucketRecord, ...] = Field(strict=False)
    files: dict[FilePath, FileRecord]

    @property
    def description(self) -> Description:
        """The part that the manifest takes over."""
        return Description.model_validate(self.model_dump(exclude={'buckets', 'files'}))

    @cached_property
    def sha256(self) -> str:
        """What a shard group must have been made by to belong to this plan; versions of libraries do not count."""
        return sha256_bytes(canonical_json(self.model_dump(mode='json', exclude={INFORMATIONAL})))

    def group_files(self) -> dict[ShardKey, list[str]]:
        """The files that each shard group consists of, and what decodes them, in the order of the plan."""
        shared = [BASIS_FILE] if self.codec == 'lean' else []
        specs = {bucket.name: (bucket.num_shards, self.bucket_specs(bucket)) for bucket in self.buckets}
        return {
            ShardKey(name, shard): [*shared, *(spec.file(shard) for spec in of_bucket)]
            for name, (num_shards, of_bucket) in specs.items()
            for shard in range(num_shards)
        }

    def specs(self) -> list[ArraySpec]:
        """Every array of the cache."""
        index = arrays.index_specs(sum(bucket.num_images for bucket in self.buckets))
        return [*index.values(), *(spec for bucket in self.buckets for spec in self.bucket_specs(bucket))]


def plan_record(
    description: Description, buckets: Sequence[BucketRecord], files: Mapping[str, FileRecord]
) -> PlanRecord:
    """The plan of a cache; of `files`, only those that belong to no shard group."""
    return PlanRecord(
        **dict(description),
        buckets=tuple(buckets),
        # The basis is made by the teacher, when the plan has been written.
        files={
            name: record for name, record in files.items() if name != BASIS_FILE and arrays.file_place(name) is None
        },
    )


def finished_plan(manifest: Manifest, plan: PlanRecord) -> Any:
    """The plan of a finished cache as JSON, to be compared with `plan`: hashes of heads are the readers' business."""
    return plan_record(manifest.description, manifest.buckets, plan.files).model_dump(mode='json')


def file_record(content: bytes) -> FileRecord:
    """What a manifest says of a file."""
    return FileRecord(num_bytes=len(content), sha256=sha256_bytes(content))


def write_plan_file(root: Path, plan: PlanRecord, *, owner: str = '') -> None:
    """Writes the plan of the cache in `root`."""
    write_atomically(root / PLAN_FILE, plan_content(plan), owner=owner)


def plan_content(plan: PlanRecord) -> bytes:
    """The plan's file."""
    return json.dumps(plan.model_dump(mode='json'), indent=1).encode()


def read_plan_json(root: Path) -> Any:
    """The current plan of the unfinished cache in `root`, to be compared; CacheIncompleteError where there is none."""
    path = root / PLAN_FILE
    if not path.is_file():
        raise CacheIncompleteError(f'{root}: no extraction here ({PLAN_FILE} is missing); start mtpd-extract')
    return read_json(path)


def read_plan_file(root: Path) -> PlanRecord:
    """Reads and checks the plan of the unfinished cache in `root`.

    CacheIncompleteError: there is none. CacheDamagedError: it is not what was written.
    """
    return parse_plan(read_plan_json(root), name=str(root))


def parse_plan(content: Any, *, name: str) -> PlanRecord:
    """Checks a plan that was read as JSON; CacheDamagedError: it is not what was written."""
    try:
        return PlanRecord.model_validate(content)
    except ValidationError as error:
        raise CacheDamagedError(
            f'{name}/{PLAN_FILE}: {first_problem(error)}; delete the cache, then extract it again'
        ) from error


def first_difference(found: Any, wanted: PlanRecord) -> str | None:
    """The field that best describes how two extractions differ, with both values; None for the same extraction."""
    rows = differences(found, wanted.model_dump(mode='json'))
    rows = [row for row in rows if row[0].split('.')[0] != INFORMATIONAL]
    if not rows:
        return None
    field, old, new = min(rows, key=lambda row: RANKS.get(row[0].split('.')[0], 1))
    more = f' (and {len(rows) - 1} more fields)' if len(rows) > 1 else ''
    return f'{field} is {short(old, length=80)} there and {short(new, length=80)} here{more}'
