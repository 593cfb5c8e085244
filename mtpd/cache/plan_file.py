"""The plan of an unfinished cache as a file: what is being made, so that nothing else is mixed in.

It is there from the start of an extraction until the manifest, which says the same and more, is published.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mtpd.cache.fingerprint import INFORMATIONAL
from mtpd.cache.manifest import BucketRecord, Description, first_problem
from mtpd.cache.strict_json import read_json
from mtpd.errors import CacheDamagedError
from mtpd.files import canonical_json, sha256_bytes, write_atomically

PLAN_FILE = 'plan.json'


class PlanRecord(Description):
    """A description and the buckets that follow from it and the data set."""

    buckets: tuple[BucketRecord, ...] = Field(strict=False)

    @property
    def description(self) -> Description:
        """The part that the manifest takes over."""
        return Description.model_validate(self.model_dump(exclude={'buckets'}))


def plan_record(description: Description, buckets: Sequence[BucketRecord]) -> dict[str, Any]:
    """What the file holds, as JSON values."""
    return description.model_dump(mode='json') | {'buckets': [bucket.model_dump(mode='json') for bucket in buckets]}


def plan_sha256(record: dict[str, Any]) -> str:
    """What a shard group must have been made by to belong to this plan; versions of libraries do not count."""
    return sha256_bytes(canonical_json({key: value for key, value in record.items() if key not in INFORMATIONAL}))


def write_plan_file(root: Path, record: dict[str, Any]) -> None:
    """Writes the plan of the cache in `root`."""
    write_atomically(root / PLAN_FILE, json.dumps(record, indent=1).encode())


def read_plan_file(root: Path) -> PlanRecord:
    """Reads and checks the plan of the unfinished cache in `root`.

    Raises:
        CacheDamagedError: it is no plan.
    """
    path = root / PLAN_FILE
    content = read_json(path)
    try:
        return PlanRecord.model_validate(content)
    except ValidationError as error:
        raise CacheDamagedError(f'{path}: {first_problem(error)}; extract again with --overwrite') from error
