"""Checks of a whole cache: its records, whether it is intact, and queueing damaged shards for extraction.

`verify` reads every file completely, decodes every chunk, and finds files that do not belong to the cache. What is read
is judged by the manifest; of an unfinished cache by the plan and the journal, and only what is committed.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec, decode_chunk, require_plain_bytes
from mtpd.cache.format.manifest import MANIFEST_FILE, Manifest, read_manifest
from mtpd.cache.format.plan import CachePlan, ShardKey
from mtpd.cache.format.strict_json import parse_json, short
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.reading.cache_files import CacheFiles, Folder, LocalFolder, read_index
from mtpd.cache.reading.reader import RoiReader
from mtpd.cache.reading.remote import RemoteFolder
from mtpd.cache.writing import journal, plan_file
from mtpd.cache.writing.destination import disk_errors
from mtpd.cache.writing.journal import JournalEntry
from mtpd.cache.writing.parts import cache_lock
from mtpd.cache.writing.plan_file import PlanRecord
from mtpd.cache.writing.remote_destination import RemoteDestination
from mtpd.errors import REPAIR, CacheDamagedError, CacheError
from mtpd.system.files import TEMPORARY, differences, fsync_directory, is_url, write_atomically
from mtpd.system.prefetch import prefetched

# Of a shard group, to be extracted again; of what precedes the shards (the index, the teacher's weights), which an
# extraction rewrites when it starts; a `zarr.json`, which nothing of mtpd reads, but other programs do; a file that
# does not belong there.
Kind = Literal['shard', 'head', 'metadata', 'stray']

PIECE_BYTES = 2**22
MAX_METADATA_BYTES = 2**20
_FOLDERS_OF_ARRAYS = re.compile(r'index|heads|\d+x\d+')


@dataclass(frozen=True)
class CacheState:
    """A cache's records. Its data has not been checked.

    The manifest of an unfinished cache is the one that it would have, with the files that are committed.
    """

    name: str  # the folder, or its URL
    folder: Folder
    is_finished: bool
    manifest: Manifest
    plan: PlanRecord
    committed: frozenset[ShardKey]

    @property
    def num_shards(self) -> int:
        """Shard groups of the finished cache."""
        return sum(bucket.num_shards for bucket in self.manifest.buckets)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files on record."""
        return sum(record.num_bytes for record in self.manifest.files.values())


def read_state(path: str | Path) -> CacheState:
    """Reads the records of the cache at a path or a URL; changes nothing, so it is safe while an extraction runs.

    CacheIncompleteError: there is no cache, not even an unfinished one. Else it raises what `mtpd.cache.open` does.
    """
    if is_url(path):
        return _remote_state(str(path))
    root = Path(path)
    if (root / plan_file.PLAN_FILE).is_file() and not (root / MANIFEST_FILE).exists():
        try:
            return _unfinished_state(LocalFolder(root), plan_file.read_plan_file(root), journal.recorded_entries(root))
        except CacheError:
            if not (root / MANIFEST_FILE).exists():  # else it has been published in between
                raise
    return _finished_state(LocalFolder(root), read_manifest(root))


def _remote_state(url: str) -> CacheState:
    destination = RemoteDestination(url)
    if not destination.is_published():
        try:
            plan, entries = destination.read_plan(), list(destination.entries())
        except FileNotFoundError:  # there is nothing, or it has been published in between
            pass
        else:
            state = _unfinished_state(RemoteFolder(url), plan, entries)
            return replace(state, folder=RemoteFolder(url, records=state.manifest.files))
    folder = RemoteFolder(url)
    return _finished_state(folder, folder.read_manifest())


def _finished_state(folder: Folder, manifest: Manifest) -> CacheState:
    keys = (ShardKey(bucket.name, shard) for bucket in manifest.buckets for shard in range(bucket.num_shards))
    plan = plan_file.plan_record(manifest.description, manifest.buckets, manifest.files)
    return CacheState(folder.name, folder, True, manifest, plan, frozenset(keys))


def _unfinished_state(folder: Folder, plan: PlanRecord, recorded: Iterable[JournalEntry]) -> CacheState:
    entries = {entry.key: entry.files for entry in recorded if entry.plan == plan.sha256}
    # Index and teacher's weights are written after the plan and before the first shard.
    files = dict(plan.files) if entries else {}
    for group in entries.values():
        files |= group
    manifest = Manifest(description=plan.description, buckets=plan.buckets, files=files)
    return CacheState(folder.name, folder, False, manifest, plan, frozenset(entries))


@dataclass(frozen=True)
class Damage:
    """A file that differs from what was written."""

    kind: Kind
    file: str  # below the cache's root
    reason: str
    key: ShardKey | None = None


def verify(state: CacheState, *, num_threads: int, advance: Callable[[int], object]) -> list[Damage]:
    """Reads everything; `advance` is called with the number of bytes of each file after reading it.

    Each thread holds a chunk of a shard, or a file of a small array, in memory.
    """
    present, files = state.folder.files(), CacheFiles(state.folder, state.manifest.files)
    plan, index_damage = None, None
    # An unfinished cache may have no record of its index yet.
    if any(file.startswith('index/') for file in state.manifest.files):
        try:
            plan = read_index(files, state.manifest)
        except CacheDamagedError as error:
            index_damage = _damage(state.name, 'index', None, error)
    checks = list(_checks(state, plan, files))
    # No extraction wrote records of files that the plan has no place for.
    unknown = state.manifest.files.keys() - {check.file for check in checks}
    damages = [Damage('head', file, 'is recorded, but the plan has no such file') for file in sorted(unknown)]
    found = prefetched(partial(_damage_of, state.name), checks, num_threads=num_threads, depth=4 * num_threads)
    for check, damage in zip(checks, found, strict=True):
        record = state.manifest.files.get(check.file)
        advance(record.num_bytes if record else 0)
        if damage is not None:
            damages.append(damage)
    if plan is not None:
        known = {damage.key for damage in damages}
        damages += _damages_of_rois(state, files, plan, known=known, num_threads=num_threads)
    # If a file of the index is damaged, that is already reported for the file.
    if index_damage and not any(damage.file.startswith('index/') for damage in damages):
        damages.insert(0, index_damage)
    return damages + list(_damages_of_folders(state, present))


class _Check(NamedTuple):
    """How to check a file, by its path below the cache's root; `run` raises CacheDamagedError."""

    file: str
    key: ShardKey | None
    run: Callable[[], None]


def _checks(state: CacheState, plan: CachePlan | None, files: CacheFiles) -> Iterator[_Check]:
    """What precedes the shards, then every file of every committed group, in the order of writing."""
    for file in state.manifest.files:
        if arrays.file_place(file) is None:
            yield _Check(file, None, partial(_check_content, files, file))
    columns = {level.name: column for column, level in enumerate(state.plan.levels)}
    buckets = {bucket.name: bucket for bucket in state.plan.buckets}
    for key in state.plan.group_files():
        if key not in state.committed:
            continue
        num_rows = len(buckets[key.bucket].rows(key.shard))
        specs = {spec.path: spec for spec in state.plan.bucket_specs(buckets[key.bucket])}
        for path, spec in specs.items():
            folder, array = path.rsplit('/', 1)
            if array == 'image_id' and plan is not None:
                image_ids = [image.image_id for image in plan.images(key)]
                run = partial(_check_image_ids, files, spec, key.shard, image_ids)
            elif spec.sharded:
                table = specs[f'{folder}/crc32c']
                run = partial(_check_shard, files, spec, key.shard, num_rows, table=table, column=columns[array])
            else:
                run = partial(_check_content, files, spec.file(key.shard), spec)
            yield _Check(spec.file(key.shard), key, run)


def _damage_of(name: str, check: _Check) -> Damage | None:
    try:
        check.run()
    except CacheDamagedError as error:
        return _damage(name, check.file, check.key, error)
    return None


def _damage(name: str, file: str, key: ShardKey | None, error: CacheDamagedError) -> Damage:
    # `file` names the file, and the caller of the verification adds the next step.
    reason = str(error).removesuffix('; extract it again').removesuffix(f'; {REPAIR}')
    for prefix in (f'{name}/{file}: ', f'{name}: ', f'{name}/'):
        reason = reason.removeprefix(prefix)
    return Damage('head' if key is None else 'shard', file, reason, key)


def _check_image_ids(files: CacheFiles, spec: ArraySpec, shard: int, image_ids: Sequence[int]) -> None:
    found = files.read_array(spec, shard=shard)[: len(image_ids)].tolist()
    for row, (one, wanted) in enumerate(zip(found, image_ids, strict=True)):
        if one != wanted:
            raise CacheDamagedError(
                f'{files.name}/{spec.file(shard)}: row {row} belongs to image {one}, the index states {wanted}'
            )


def _check_content(files: CacheFiles, file: str, spec: ArraySpec | None = None) -> None:
    """Reads a file whole: size, that of its array if it is of one, and hash."""
    size = files.size(file)
    if spec is not None:
        require_plain_bytes(spec, size, name=f'{files.name}/{file}')
    files.require_sha256(file, hashlib.file_digest(_opened(files, file), 'sha256').hexdigest())


def _check_shard(
    files: CacheFiles, spec: ArraySpec, shard: int, num_rows: int, *, table: ArraySpec, column: int
) -> None:
    """Reads chunk after chunk, which fill the shard up to its index without a gap, then the rest, for the hash.

    A column of `table` has the checksums.
    """
    file, digest, position = spec.file(shard), hashlib.sha256(), 0
    name = f'{files.name}/{file}'
    entries = files.read_shard_index(spec, shard=shard)[:num_rows].tolist()
    stated = files.read_array(table, shard=shard)[:, column].tolist()
    codes = np.empty(spec.row_shape, dtype=spec.dtype)
    content = _opened(files, file)
    for row, (offset, length) in enumerate(entries):
        if offset != position:
            raise CacheDamagedError(f'{name}: row {row} starts at byte {offset}, not at the end of the previous row')
        chunk = content.read(length)
        decode_chunk(chunk, out=codes, checksum=stated[row], name=f'{name}: row {row}')
        digest.update(chunk)
        position += length
    while piece := content.read(PIECE_BYTES):
        digest.update(piece)
    files.require_sha256(file, digest.hexdigest())


def _opened(files: CacheFiles, file: str) -> io.BufferedReader:
    """A file, to be read from its begin to its end."""
    return io.BufferedReader(_File(files, file), PIECE_BYTES)


class _File(io.RawIOBase):
    """The bytes of a file of a cache one after another, wherever it is."""

    def __init__(self, files: CacheFiles, file: str) -> None:
        self._files = files
        self._file = file
        self._position, self._size = 0, files.size(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._position)
        content = self._files.read_range(self._file, offset=self._position, length=length)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _damages_of_rois(
    state: CacheState, files: CacheFiles, plan: CachePlan, *, known: Collection[ShardKey | None], num_threads: int
) -> Iterator[Damage]:
    """Shard groups whose files are each as they were written, but hold proposals that no reader takes."""
    if state.plan.rois is None:
        return
    reader = RoiReader(files, state.plan.rois, plan.by_name)

    def damage_of(key: ShardKey) -> Damage | None:
        bucket = plan.by_name[key.bucket]
        try:
            for row in bucket.rows(key.shard):
                reader.read(bucket, row, bucket.images[row].image_id)
        except CacheDamagedError as error:
            return _damage(state.name, f'{arrays.HEADS}/{key.bucket}', key, error)
        return None

    keys = [key for key in plan.shard_keys() if key in state.committed and key not in known]
    yield from filter(None, prefetched(damage_of, keys, num_threads=num_threads, depth=4 * num_threads))


def _damages_of_folders(state: CacheState, present: Mapping[str, int]) -> Iterator[Damage]:
    """Files below the index and the folders of the padded shapes that do not belong there, and wrong metadata."""
    specs = state.plan.specs()
    metadata = metadata_files(specs)
    expected = metadata.keys() | {
        spec.file(shard) for spec in specs for shard in range(-(-spec.shape[0] // spec.rows_per_file))
    }
    for file in sorted(present.keys() - expected):
        parts = file.split('/')
        # While a cache is written, temporary files come and go.
        is_passing = parts[-1].startswith(TEMPORARY) and not state.is_finished
        if len(parts) > 1 and _FOLDERS_OF_ARRAYS.fullmatch(parts[0]) and not is_passing:
            yield Damage('stray', file, 'is not part of the cache')
    if not state.is_finished:  # an extraction repairs the metadata when it starts
        return
    for file, content in metadata.items():
        problem = _metadata_problem(state.folder, file, present.get(file), json.loads(content))
        if problem:
            yield Damage('metadata', file, problem)


def _metadata_problem(folder: Folder, file: str, num_bytes: int | None, wanted: Any) -> str | None:
    if num_bytes is None:
        return 'is missing'
    if num_bytes > MAX_METADATA_BYTES:
        return f'has {num_bytes} bytes'
    try:
        found = parse_json(folder.read_range(file, offset=0, length=num_bytes), name=file)
    except CacheDamagedError as error:
        return str(error).removeprefix(f'{file}: ')
    rows = differences(_without_empty(found), _without_empty(wanted))
    if not rows:
        return None
    name, is_, should = rows[0]
    return f'states {name} as {short(is_)}, expected {short(should)}'


def _without_empty(value: Any) -> Any:
    """Versions of zarr differ in whether they write what is empty."""
    if isinstance(value, dict):
        return {key: _without_empty(one) for key, one in value.items() if one not in (None, [], {})}
    return [_without_empty(one) for one in value] if isinstance(value, list) else value


@contextmanager
def no_writers(root: Path) -> Iterator[None]:
    """Keeps extractions out of the cache in `root`; UnavailableError while one is running."""
    with ExitStack() as stack:
        with disk_errors(root):
            stack.enter_context(cache_lock(root))
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
    root = Path(state.name)
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
            JournalEntry(plan=plan, **key._asdict(), files={name: records[name] for name in names})
            for key, names in state.plan.group_files().items()
            if has_bases and key in state.committed and key not in damaged and set(names) <= records.keys()
        ]
        journal.replace_entries(root, entries)
        if not has_bases:
            (root / BASIS_FILE).unlink(missing_ok=True)
        if state.is_finished:
            plan_file.write_plan_file(root, state.plan)
            (root / MANIFEST_FILE).unlink()
            fsync_directory(root)
    return Repair(is_unfinished=True, num_queued=state.num_shards - len(entries))
