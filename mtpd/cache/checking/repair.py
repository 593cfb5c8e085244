"""Returns a damaged cache to the extraction, which then writes only the damaged shard groups again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtpd.cache.checking.state import CacheState
from mtpd.cache.checking.verification import Damage
from mtpd.cache.format.basis import BASIS_FILE
from mtpd.cache.format.manifest import MANIFEST_FILE
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.writing import journal
from mtpd.cache.writing.journal import JournalEntry
from mtpd.cache.writing.parts import CacheLock
from mtpd.cache.writing.plan_file import write_plan_file
from mtpd.cache.writing.writer import disk_errors
from mtpd.system.files import fsync_directory, write_atomically


@contextmanager
def no_writers(root: Path) -> Iterator[None]:
    """Keeps extractions out of the cache in `root`; UnavailableError while one is running."""
    with ExitStack() as stack:
        with disk_errors(root):
            stack.enter_context(CacheLock(root))
        yield


@dataclass(frozen=True)
class Repair:
    """Whether the extraction has something to write again, and how many shard groups it will extract."""

    is_unfinished: bool
    num_queued: int


def repair(state: CacheState, damages: Sequence[Damage]) -> Repair:
    """Removes damaged parts from the records, so that the same extraction writes them again; under `no_writers`.

    A finished cache becomes an unfinished one: first the journal of what is intact, then the plan, and only then the
    manifest goes. A kill in between leaves the finished cache with its damages. Metadata is repaired immediately.
    Strays are left alone: no extraction wrote them. Without the rotations of its channels the stored maps of a lean
    cache are useless, and the same rotations cannot be computed again: then all shards are queued.
    """
    root = state.root
    with disk_errors(root):
        wrong = [damage.file for damage in damages if damage.kind == 'metadata']
        contents = metadata_files(state.plan.specs()) if wrong else {}
        for file in wrong:
            write_atomically(root / file, contents[file])
        if not any(damage.kind in ('shard', 'head') for damage in damages):
            return Repair(is_unfinished=not state.is_finished, num_queued=state.num_shards - len(state.committed))
        has_bases = not any(damage.file == BASIS_FILE for damage in damages)
        damaged = {damage.key for damage in damages if damage.kind == 'shard'}
        records, plan = state.manifest.files, state.plan.sha256
        entries = [
            JournalEntry(plan, key, {name: records[name] for name in names})
            for key, names in state.plan.group_files().items()
            if has_bases and key in state.committed and key not in damaged and set(names) <= records.keys()
        ]
        journal.replace_entries(root, entries)
        if not has_bases:
            (root / BASIS_FILE).unlink(missing_ok=True)
        if state.is_finished:
            write_plan_file(root, state.plan)
            (root / MANIFEST_FILE).unlink()
            fsync_directory(root)
    return Repair(is_unfinished=True, num_queued=state.num_shards - len(entries))
