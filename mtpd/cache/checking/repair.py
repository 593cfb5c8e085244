"""Returns a damaged cache to the extraction, which then writes only the damaged shard groups again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtpd.cache.checking.state import CacheState
from mtpd.cache.checking.verification import Damage, expected_metadata
from mtpd.cache.format.basis import BASIS_FILE
from mtpd.cache.format.manifest import MANIFEST_FILE
from mtpd.cache.writing import journal
from mtpd.cache.writing.journal import JournalEntry
from mtpd.cache.writing.locks import CacheLock
from mtpd.cache.writing.plan_file import PlanRecord, plan_record, read_plan_file, write_plan_file
from mtpd.cache.writing.writer import disk_errors
from mtpd.system.files import fsync_directory, write_atomically


@contextmanager
def no_writers(root: Path) -> Iterator[None]:
    """Keeps extractions out of the cache in `root`.

    Raises:
        UnavailableError: one is at work.
    """
    with ExitStack() as stack:
        with disk_errors(root):
            stack.enter_context(CacheLock(root))
        yield


@dataclass(frozen=True)
class Repair:
    """What a repair has done.

    Attributes:
        is_unfinished: whether the extraction has something to write again.
        num_queued: shard groups that it will extract.
    """

    is_unfinished: bool
    num_queued: int


def repair(state: CacheState, damages: Sequence[Damage]) -> Repair:
    """Removes damaged parts from the records, so that the same extraction writes them again; under `no_writers`.

    A finished cache becomes an unfinished one: first the journal of what is intact, then the plan, and only then the
    manifest goes. A kill in between leaves the finished cache with its damages. Metadata is repaired immediately.
    Strays are left alone: no extraction wrote them. Without the rotations of its channels the stored maps of a lean
    cache are useless, and the same rotations cannot be computed again: then all shards are queued.

    Raises:
        UnavailableError: the disk refuses.
    """
    root, manifest = state.root, state.manifest
    with disk_errors(root):
        wrong = [damage.file for damage in damages if damage.kind == 'metadata']
        if wrong:
            contents = expected_metadata(state)
            for file in wrong:
                write_atomically(root / file, contents[file])
        if not any(damage.kind in ('shard', 'head') for damage in damages):
            return Repair(is_unfinished=not state.is_finished, num_queued=state.num_shards - len(state.committed))
        if state.is_finished:
            plan = plan_record(manifest.description, manifest.buckets, manifest.files)
        else:
            plan = read_plan_file(root)
        has_bases = not any(damage.file == BASIS_FILE for damage in damages)
        entries = _intact_entries(state, damages, plan) if has_bases else []
        journal.replace_entries(root, entries)
        if not has_bases:
            (root / BASIS_FILE).unlink(missing_ok=True)
        if state.is_finished:
            write_plan_file(root, plan)
            (root / MANIFEST_FILE).unlink()
            fsync_directory(root)
    return Repair(is_unfinished=True, num_queued=state.num_shards - len(entries))


def _intact_entries(state: CacheState, damages: Sequence[Damage], plan: PlanRecord) -> list[JournalEntry]:
    damaged = {damage.key for damage in damages if damage.kind == 'shard'}
    records = state.manifest.files
    return [
        JournalEntry(plan.sha256, key, {name: records[name] for name in names})
        for key, names in plan.group_files().items()
        if key in state.committed and key not in damaged and set(names) <= records.keys()
    ]
