"""What is on record about a cache, finished or not: of the manifest, or of the plan and the journal."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtpd.cache import journal, manifest
from mtpd.cache.manifest import BucketRecord, Description, FileRecord
from mtpd.cache.plan_file import PLAN_FILE, read_plan_file


@dataclass(frozen=True)
class CacheState:
    """A cache's records. Nothing of its data has been looked at.

    Attributes:
        root: the cache's folder.
        is_finished: whether the manifest has been published.
        description: what it is made of.
        buckets: its padded shapes.
        files: path below the root -> size and hash, of all that counts as written.
        num_committed: shard groups that count as written.
    """

    root: Path
    is_finished: bool
    description: Description
    buckets: tuple[BucketRecord, ...]
    files: Mapping[str, FileRecord]
    num_committed: int

    @property
    def num_shards(self) -> int:
        """Shard groups of the finished cache."""
        return sum(bucket.num_shards for bucket in self.buckets)


def read_state(root: Path) -> CacheState:
    """Reads the records of the cache in `root`; changes nothing, so that it may look on while an extraction runs.

    Raises:
        CacheIncompleteError: there is no cache, not even an unfinished one.
        CacheMismatchError: another program or a newer version wrote it.
        CacheDamagedError: the manifest or the plan was changed after it was written.
    """
    if (root / PLAN_FILE).is_file() and not (root / manifest.MANIFEST_FILE).exists():
        plan = read_plan_file(root)
        entries = {entry.key: entry for entry in journal.recorded_entries(root)}
        files = {name: record for entry in entries.values() for name, record in entry.files.items()}
        return CacheState(root, False, plan.description, plan.buckets, files, len(entries))
    found = manifest.read_manifest(root)
    num_shards = sum(bucket.num_shards for bucket in found.buckets)
    return CacheState(root, True, found.description, found.buckets, found.files, num_shards)
