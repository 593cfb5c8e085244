"""From an extraction whose shard groups are all committed to a cache that opens."""

from pathlib import Path

from mtpd.cache.format.basis import BASIS_FILE
from mtpd.cache.format.manifest import MANIFEST_FILE, write_manifest
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.writing.journal import GroupFiles, committed_groups, remove_journals
from mtpd.cache.writing.parts import Part
from mtpd.cache.writing.plan_file import PLAN_FILE, PlanRecord, read_plan_file
from mtpd.errors import CacheError
from mtpd.system.files import TEMPORARY, sha256_file


def is_published(root: Path) -> bool:
    """Whether the manifest is there."""
    return (root / MANIFEST_FILE).is_file()


def publish(root: Path, *, owner: str = '') -> list[ShardKey]:
    """Writes the manifest if every shard group is committed, by any process.

    The manifest follows from the plan, the journals and nothing else: any number of processes may call this
    concurrently, and again later, and the content is the same.

    Returns:
        The shard groups that are not committed yet; none when the cache is published.

    Raises:
        CacheIncompleteError: there is neither a plan nor a manifest.
        CacheDamagedError: the plan is none.
    """
    if not is_published(root):
        try:
            missing = _publish(root, owner)
        except CacheError:  # the plan may have gone just now
            missing = []
            if not is_published(root):
                raise
        # Somebody else may have published and tidied up while the journals were read.
        if missing and not is_published(root):
            return missing
    tidy(root)
    return []


def tidy(root: Path) -> None:
    """Deletes what the manifest has replaced."""
    assert is_published(root), 'tidy() before the manifest was there'
    remove_journals(root)
    (root / PLAN_FILE).unlink(missing_ok=True)


def remove_leftovers(root: Path, *, part: Part) -> None:
    """Deletes what killed writers left, but nothing of a part that may be alive beside this one."""
    for path in root.rglob(f'{TEMPORARY}*'):
        if not any(path.name.startswith(f'{TEMPORARY}{other.label}-') for other in part.others()):
            path.unlink(missing_ok=True)


def committed(root: Path, plan: PlanRecord) -> dict[ShardKey, GroupFiles]:
    """The shard groups of the unfinished cache in `root`, whose plan is `plan`, that count as written."""
    groups = committed_groups(root, plan=plan.sha256, group_files=plan.group_files())
    if plan.codec != 'lean':
        return groups
    # All groups share the one basis; codes that were rotated by another would come back as nonsense.
    path = root / BASIS_FILE
    basis = sha256_file(path) if path.is_file() else None
    return {key: files for key, files in groups.items() if files[BASIS_FILE].sha256 == basis}


def _publish(root: Path, owner: str) -> list[ShardKey]:
    plan = read_plan_file(root)
    groups = committed(root, plan)
    missing = [key for key in plan.group_files() if key not in groups]
    if not missing:
        # In the order of the plan and not of the journals, which depends on who wrote what when.
        files = dict(plan.files) | {
            name: groups[key][name] for key, names in plan.group_files().items() for name in names
        }
        write_manifest(root, plan.description, plan.buckets, files, owner=owner)
    return missing
