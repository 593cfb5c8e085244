"""Joining the folders that parts of one extraction wrote on machines without a file system in common."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mtpd.cache.format.manifest import MANIFEST_FILE, FileRecord
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd.cache.format.zarr_metadata import create_arrays
from mtpd.cache.writing import journal, plan_file
from mtpd.cache.writing.destination import disk_errors
from mtpd.cache.writing.journal import GroupFiles, JournalEntry
from mtpd.cache.writing.parts import WHOLE, cache_lock, gate
from mtpd.cache.writing.plan_file import PlanRecord
from mtpd.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError
from mtpd.system.files import fsync_directory, sha256_bytes, write_atomically


def publish_parts(root: Path) -> None:
    """Publishes a cache whose parts have committed all they had to.

    CacheIncompleteError: they have not. UnavailableError: a part is running.
    """
    if journal.is_published(root):
        return
    plan = plan_file.read_plan_file(root)
    with disk_errors(root), cache_lock(root), gate(root):
        missing = journal.publish(root)
        if not missing:
            journal.remove_leftovers(root, part=WHOLE)
    if missing:
        raise CacheIncompleteError(
            f'{root}: {_how_many(plan, missing)} not committed; run mtpd-extract for the missing parts, or '
            'without --part'
        )


def merge_parts(sources: Sequence[Path], out: Path, *, advance: Callable[[int], object]) -> None:
    """Makes one cache of the folders that parts wrote, unfinished caches of one plan; nothing in these is changed.

    Every file is verified by its hash and then linked, or copied where `out` is on another file system; `advance` gets
    its bytes when it is in place. When it was killed, the same call resumes: `out` need not exist, or holds a merge
    that was not finished. It raises CacheMismatchError for different extractions, CacheIncompleteError when no folder
    has committed some shard, CacheDamagedError for a file that is not what was written, UnavailableError when `out` is
    in use or cannot be written.
    """
    plan = _common_plan(sources)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with cache_lock(out):
            _claim(out, plan, sources)
            journal.remove_leftovers(out, part=WHOLE)
            journal.cut_torn_tail(out)
            done, found = journal.committed(out, plan), _groups(sources, plan)
            missing = [key for key in plan.group_files() if key not in done and key not in found]
            if missing:
                raise CacheIncompleteError(
                    f'{sources[0].parent}: {_how_many(plan, missing)} missing from the {len(sources)} folders; '
                    'finish their part or give its folder too'
                )
            create_arrays(out, plan.specs())
            for name, record in plan.files.items():
                _transfer_any(sources, out, name, record)
                advance(record.num_bytes)
            transferred: set[str] = set()  # every group has the basis among its files
            for key, (source, files) in found.items():
                if key in done:
                    continue
                for name, record in files.items():
                    if name not in transferred:
                        _transfer_any([source], out, name, record)
                        advance(record.num_bytes)
                        transferred.add(name)
                for folder in {(out / name).parent for name in files}:
                    fsync_directory(folder)
                journal.append_entry(out, JournalEntry(plan=plan.sha256, **key._asdict(), files=files))
            with gate(out):
                missing = journal.publish(out)
    assert not missing, 'merge left groups out'


def num_bytes(sources: Sequence[Path]) -> int:
    """What `merge_parts` will tell `advance` at most, in all."""
    plan = _common_plan(sources)
    files = plan.files | {name: record for _, one in _groups(sources, plan).values() for name, record in one.items()}
    return sum(record.num_bytes for record in files.values())


def _common_plan(sources: Sequence[Path]) -> PlanRecord:
    plans = []
    for source in sources:
        if journal.is_published(source):
            raise CacheMismatchError(f'{source}: is a finished cache, not a part; remove it from the command')
        plans.append(plan_file.read_plan_file(source))
    for source, plan in zip(sources, plans, strict=True):
        difference = plan_file.first_difference(plan.model_dump(mode='json'), plans[0])
        if difference:
            raise CacheMismatchError(
                f'{source}: is not a part of the same extraction as {sources[0]}: {difference}; merge parts '
                'of one extraction'
            )
    return plans[0]


def _claim(out: Path, plan: PlanRecord, sources: Sequence[Path]) -> None:
    """Makes `out` the place of this plan."""
    if any(out.samefile(source) for source in sources):
        raise CacheMismatchError(f'--out {out}: is one of the parts; give a new folder')
    if (out / MANIFEST_FILE).exists():
        raise CacheMismatchError(f'--out {out}: holds a finished cache; give a new folder')
    if (out / plan_file.PLAN_FILE).exists():
        difference = plan_file.first_difference(plan_file.read_plan_file(out).model_dump(mode='json'), plan)
        if difference:
            raise CacheMismatchError(f'--out {out}: holds another extraction: {difference}; give a new folder')
        return
    others = [path.name for path in out.iterdir() if not path.name.startswith('.')]
    if others:
        raise CacheMismatchError(f'--out {out}: holds {others[0]} but no cache; give an empty or new folder')
    plan_file.write_plan_file(out, plan)


def _groups(sources: Sequence[Path], plan: PlanRecord) -> dict[ShardKey, tuple[Path, GroupFiles]]:
    """What is to be taken from where: the first source that has a group, in the order of the plan."""
    found: dict[ShardKey, tuple[Path, GroupFiles]] = {}
    for source in sources:
        for key, files in journal.committed(source, plan).items():
            found.setdefault(key, (source, files))
    for source, files in found.values():
        first, of_first = next(iter(found.values()))
        if files.get(BASIS_FILE) != of_first.get(BASIS_FILE):
            raise CacheMismatchError(
                f'{source}: its {BASIS_FILE} differs from that of {first}; copy the latter over it and run the '
                'mtpd-extract command of the part again'
            )
    return {key: found[key] for key in plan.group_files() if key in found}


def _how_many(plan: PlanRecord, missing: Sequence[ShardKey]) -> str:
    return f'{len(missing)} of {len(plan.group_files())} shards (the first is {missing[0]}) are'


def _transfer_any(sources: Sequence[Path], out: Path, name: str, record: FileRecord) -> None:
    """Puts a file of the first source that has it as it was written."""
    if journal.is_sound(out / name, record):
        return
    path = next((source / name for source in sources if journal.is_sound(source / name, record)), None)
    if path is None:
        raise CacheDamagedError(
            f'{sources[0] / name}: is missing or differs from what was written; run mtpd-cache verify --repair on that '
            'folder, and its mtpd-extract command again'
        )
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        # A link to a link would lead elsewhere when it moves.
        os.link(path.resolve(), target)
    except OSError:  # another file system, or one without links
        content = path.read_bytes()
        if sha256_bytes(content) != record.sha256:
            raise CacheDamagedError(f'{path}: changed during the copy; run the same command again') from None
        write_atomically(target, content)
