"""Records of a cache, finished or not: the manifest, or the plan and the journal."""

from dataclasses import dataclass
from pathlib import Path

from mtpd.cache.format.manifest import MANIFEST_FILE, Description, Manifest, manifest_of, read_manifest
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.writing import journal
from mtpd.cache.writing.plan_file import PLAN_FILE, PlanRecord, plan_record, read_plan_file
from mtpd.errors import CacheError


@dataclass(frozen=True)
class CacheState:
    """A cache's records. Its data has not been checked.

    The manifest of an unfinished cache is the one that it would have, with the files that are committed.
    """

    root: Path
    is_finished: bool
    manifest: Manifest
    plan: PlanRecord
    committed: frozenset[ShardKey]

    @property
    def description(self) -> Description:
        """What the cache is made of."""
        return self.manifest.description

    @property
    def num_shards(self) -> int:
        """Shard groups of the finished cache."""
        return sum(bucket.num_shards for bucket in self.manifest.buckets)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files on record."""
        return sum(record.num_bytes for record in self.manifest.files.values())


def read_state(root: Path) -> CacheState:
    """Reads the records of the cache in `root`; changes nothing, so it is safe while an extraction runs.

    Raises:
        CacheIncompleteError: there is no cache, not even an unfinished one.
        CacheMismatchError: another program or a newer version wrote it.
        CacheDamagedError: the manifest or the plan was changed after it was written.
    """
    if (root / PLAN_FILE).is_file() and not (root / MANIFEST_FILE).exists():
        try:
            return _unfinished_state(root)
        except CacheError:
            if not (root / MANIFEST_FILE).exists():  # else it has been published in between
                raise
    manifest = read_manifest(root)
    keys = (ShardKey(bucket.name, shard) for bucket in manifest.buckets for shard in range(bucket.num_shards))
    plan = plan_record(manifest.description, manifest.buckets, manifest.files)
    return CacheState(root, True, manifest, plan, frozenset(keys))


def _unfinished_state(root: Path) -> CacheState:
    plan = read_plan_file(root)
    entries = {entry.key: entry.files for entry in journal.recorded_entries(root) if entry.plan == plan.sha256}
    # Index and teacher's weights are written after the plan and before the first shard.
    files = dict(plan.files) if entries else {}
    for group in entries.values():
        files |= group
    manifest = manifest_of(plan.description, plan.buckets, files)
    return CacheState(root, False, manifest, plan, frozenset(entries))
