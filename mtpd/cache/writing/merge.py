"""Joining the folders that parts of one extraction wrote on machines without a file system in common."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mtpd.cache.format.basis import BASIS_FILE
from mtpd.cache.format.fingerprint import first_difference
from mtpd.cache.format.manifest import MANIFEST_FILE, FileRecord
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.format.zarr_metadata import create_arrays
from mtpd.cache.writing import journal
from mtpd.cache.writing.journal import JournalEntry
from mtpd.cache.writing.locks import CacheLock
from mtpd.cache.writing.parts import WHOLE
from mtpd.cache.writing.plan_file import PLAN_FILE, PlanRecord, read_plan_file, write_plan_file
from mtpd.cache.writing.publish import committed, is_published, publish, remove_leftovers
from mtpd.cache.writing.writer import disk_errors
from mtpd.errors import CacheDamagedError, CacheIncompleteError, CacheMismatchError
from mtpd.system.files import fsync_directory, sha256_bytes, sha256_file, write_atomically


def publish_parts(root: Path) -> None:
    """Publishes a cache whose parts have committed all they had to; nothing to do where it is published.

    Raises:
        CacheIncompleteError: shard groups are missing, or there is no cache.
        UnavailableError: a part is still at work, or the disk refuses.
    """
    if is_published(root):
        return
    plan = read_plan_file(root)
    with disk_errors(root), CacheLock(root) as lock, lock.gate():
        missing = publish(root)
        if not missing:
            remove_leftovers(root, part=WHOLE)
    if missing:
        raise CacheIncompleteError(
            f'{root}: {_how_many(plan, missing)} not committed; run mtpd-extract for the missing parts, or '
            'without --part'
        )


def merge_parts(sources: Sequence[Path], out: Path, *, advance: Callable[[int], object]) -> None:
    """Makes one cache of the folders that parts wrote; nothing in these is changed.

    Every file is verified by its hash and then linked, or copied where `out` is on another file system. When it was
    killed, the same call resumes.

    Args:
        sources: unfinished caches of the same plan.
        out: a folder which need not exist; empty, or holding such a merge that was not finished.
        advance: called with the bytes of each file when it is in place.

    Raises:
        CacheMismatchError: a source is of another extraction, or `out` holds other things.
        CacheIncompleteError: a source is not an unfinished cache, or shard groups are missing from all of them.
        CacheDamagedError: a file differs from what was written.
        UnavailableError: something is at work in `out`, or the disk refuses.
    """
    plan = _common_plan(sources)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with CacheLock(out) as lock:
            _claim(out, plan, sources)
            remove_leftovers(out, part=WHOLE)
            journal.cut_torn_tail(out)
            done = committed(out, plan)
            wanted = [entry for entry in _entries(sources, plan) if entry[1].key not in done]
            _require_all(plan, {*done, *(entry.key for _, entry in wanted)}, sources)
            create_arrays(out, plan.specs())
            for name, record in plan.files.items():
                _transfer_any(sources, out, name, record)
                advance(record.num_bytes)
            for source, entry in wanted:
                for name, record in entry.files.items():
                    _transfer_any([source], out, name, record)
                    advance(record.num_bytes)
                for folder in {(out / name).parent for name in entry.files}:
                    fsync_directory(folder)
                journal.append_entry(out, entry)
            with lock.gate():
                missing = publish(out)
    assert not missing, 'merge left groups out'


def num_bytes(sources: Sequence[Path]) -> int:
    """What `merge_parts` will tell `advance` at most, in all."""
    plan = _common_plan(sources)
    files = {name: record for _, entry in _entries(sources, plan) for name, record in entry.files.items()}
    return sum(record.num_bytes for record in [*plan.files.values(), *files.values()])


def _common_plan(sources: Sequence[Path]) -> PlanRecord:
    plans = []
    for source in sources:
        if is_published(source):
            raise CacheMismatchError(f'{source}: is a finished cache, not a part; remove it from the command')
        plans.append(read_plan_file(source))
    for source, plan in zip(sources, plans, strict=True):
        difference = first_difference(plan.model_dump(mode='json'), plans[0].model_dump(mode='json'))
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
    if (out / PLAN_FILE).exists():
        difference = first_difference(read_plan_file(out).model_dump(mode='json'), plan.model_dump(mode='json'))
        if difference:
            raise CacheMismatchError(f'--out {out}: holds another extraction: {difference}; give a new folder')
        return
    strangers = [path.name for path in out.iterdir() if not path.name.startswith('.')]
    if strangers:
        raise CacheMismatchError(f'--out {out}: holds {strangers[0]} but no cache; give an empty or new folder')
    write_plan_file(out, plan)


def _entries(sources: Sequence[Path], plan: PlanRecord) -> list[tuple[Path, JournalEntry]]:
    """What is to be taken from where: of each group the first entry whose files are there, in the order of the plan."""
    found: dict[ShardKey, tuple[Path, JournalEntry]] = {}
    for source in sources:
        for key, files in committed(source, plan).items():
            found.setdefault(key, (source, JournalEntry(plan.sha256, key, files)))
    if plan.codec == 'lean':
        _require_one_basis(list(found.values()))
    return [found[key] for key in plan.group_files() if key in found]


def _require_one_basis(found: Sequence[tuple[Path, JournalEntry]]) -> None:
    for source, entry in found:
        if entry.files[BASIS_FILE] != found[0][1].files[BASIS_FILE]:
            raise CacheMismatchError(
                f'{source}: its {BASIS_FILE} differs from that of {found[0][0]}; copy the latter over it and run the '
                'mtpd-extract command of the part again'
            )


def _require_all(plan: PlanRecord, keys: set[ShardKey], sources: Sequence[Path]) -> None:
    missing = [key for key in plan.group_files() if key not in keys]
    if missing:
        raise CacheIncompleteError(
            f'{sources[0].parent}: {_how_many(plan, missing)} missing from the {len(sources)} folders; '
            'finish their part '
            'or give its folder too'
        )


def _how_many(plan: PlanRecord, missing: Sequence[ShardKey]) -> str:
    return f'{len(missing)} of {len(plan.group_files())} shards (the first is {missing[0]}) are'


def _transfer_any(sources: Sequence[Path], out: Path, name: str, record: FileRecord) -> None:
    """Puts a file of the first source that has it as it was written."""
    if _is_sound(out / name, record):
        return
    sound: Iterator[Path] = (source / name for source in sources if _is_sound(source / name, record))
    path = next(sound, None)
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


def _is_sound(path: Path, record: FileRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.num_bytes and sha256_file(path) == record.sha256
