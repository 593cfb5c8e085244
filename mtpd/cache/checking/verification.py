"""Verifies a cache: reads every file completely, decodes every chunk, and finds files that do not belong to it.

What is read is judged by the manifest; of an unfinished cache by the plan and the journal, and only what is committed.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from mtpd.cache.checking.state import CacheState
from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec, decode_chunk, require_plain_bytes
from mtpd.cache.format.plan import CachePlan, ShardKey
from mtpd.cache.format.strict_json import read_json, short
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.cache.reading.index import read_index
from mtpd.cache.reading.roi_rows import RoiReader
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.system.files import TEMPORARY, differences
from mtpd.system.prefetch import prefetched

Kind = Literal['shard', 'head', 'metadata', 'stray']

PIECE_BYTES = 2**22
_FOLDERS_OF_ARRAYS = re.compile(r'index|heads|\d+x\d+')


@dataclass(frozen=True)
class Damage:
    """A file that differs from what was written.

    Attributes:
        kind: `shard`: of a shard group, to be extracted again; `head`: of what precedes the shards (the index, the
            teacher's weights), which an extraction rewrites when it starts; `metadata`: a `zarr.json`, which nothing
            of mtpd reads, but other programs do; `stray`: a file that does not belong there.
        file: path below the cache's root.
        reason: what is wrong with it.
        key: of the shard group.
    """

    kind: Kind
    file: str
    reason: str
    key: ShardKey | None = None


@dataclass(frozen=True)
class FileCheck:
    """A file by its path below the cache's root, and all that is known about it.

    Attributes:
        spec: the array it is of, if it is of a group.
        num_rows: rows of the group; the file may have room for more.
        checksums: of a shard: the table of its chunks' checksums, and the column in it.
        image_ids: of an array of image ids: what it must hold, if known.
    """

    file: str
    key: ShardKey | None = None
    spec: ArraySpec | None = None
    num_rows: int = 0
    checksums: tuple[ArraySpec, int] | None = None
    image_ids: tuple[int, ...] | None = None

    @property
    def shard(self) -> int:
        """Number of the group's shard; 0 for a file of none."""
        return 0 if self.key is None else self.key.shard


def verify(state: CacheState, *, num_threads: int, advance: Callable[[int], object]) -> list[Damage]:
    """Reads everything; `advance` is called with the number of bytes of each file after reading it.

    Each thread holds a chunk of a shard, or a file of a small array, in memory.
    """
    files = CacheFiles(state.root, state.manifest.files)
    plan, index_damage = None, None
    # An unfinished cache may have no record of its index yet.
    if any(file.startswith('index/') for file in state.manifest.files):
        try:
            plan = read_index(files, state.manifest)
        except CacheDamagedError as error:
            index_damage = _damage(state.root, 'index', None, error)
    checks = list(_checks(state, plan))
    # No extraction wrote records of files that the plan has no place for.
    unknown = state.manifest.files.keys() - {check.file for check in checks}
    damages = [Damage('head', file, 'is recorded, but the plan has no such file') for file in sorted(unknown)]
    for check, damage in prefetched(partial(_checked, files), checks, num_threads=num_threads, depth=4 * num_threads):
        record = state.manifest.files.get(check.file)
        advance(record.num_bytes if record else 0)
        if damage is not None:
            damages.append(damage)
    if plan is not None:
        damages += _damages_of_rois(state, files, plan, known={damage.key for damage in damages})
    # If a file of the index is damaged, that is already reported for the file.
    if index_damage and not any(damage.file.startswith('index/') for damage in damages):
        damages.insert(0, index_damage)
    return damages + list(_damages_of_folders(state))


def _checks(state: CacheState, plan: CachePlan | None) -> Iterator[FileCheck]:
    """What precedes the shards, then every file of every committed group, in the order of writing."""
    yield from (FileCheck(file) for file in state.manifest.files if arrays.file_place(file) is None)
    layout = plan or state.plan.layout()
    level_names = [level.name for level in state.description.levels]
    for key in layout.shard_keys():
        if key not in state.committed:
            continue
        images = layout.images(key)
        image_ids = tuple(image.image_id for image in images) if plan is not None else None
        specs = {spec.path: spec for spec in state.description.bucket_specs(layout.by_name[key.bucket])}
        for path, spec in specs.items():
            folder, array = path.rsplit('/', 1)
            yield FileCheck(
                spec.file(key.shard),
                key=key,
                spec=spec,
                num_rows=len(images),
                checksums=(specs[f'{folder}/crc32c'], level_names.index(array)) if spec.sharded else None,
                image_ids=image_ids if array == 'image_id' else None,
            )


def _checked(files: CacheFiles, check: FileCheck) -> tuple[FileCheck, Damage | None]:
    try:
        _check_file(files, check)
    except CacheDamagedError as error:
        return check, _damage(files.root, check.file, check.key, error)
    return check, None


def _damage(root: Path, file: str, key: ShardKey | None, error: CacheDamagedError) -> Damage:
    # `file` names the file, and the caller of the verification adds the next step.
    reason = str(error).removesuffix('; extract it again').removesuffix(f'; {REPAIR}')
    for prefix in (f'{root / file}: ', f'{root}: ', f'{root}/'):
        reason = reason.removeprefix(prefix)
    return Damage('head' if key is None else 'shard', file, reason, key)


def _check_file(files: CacheFiles, check: FileCheck) -> None:
    """Reads the file whole: size, hash, and what its array says about it."""
    spec, path = check.spec, files.root / check.file
    if spec is not None and check.image_ids is not None:
        image_ids = files.read_array(spec, shard=check.shard)[: check.num_rows].tolist()
        for row, (found, wanted) in enumerate(zip(image_ids, check.image_ids, strict=True)):
            if found != wanted:
                raise CacheDamagedError(f'{path}: row {row} belongs to image {found}, the index states {wanted}')
        return
    size, digest = files.size(check.file), hashlib.sha256()
    try:
        with path.open('rb') as file:
            if spec is not None and check.checksums is not None:
                for chunk in _decoded_chunks(files, check, spec, check.checksums, file):
                    digest.update(chunk)
            elif spec is not None:
                require_plain_bytes(spec, size, name=str(path))
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise CacheDamagedError(f'{path}: cannot be read ({error.strerror})') from error
    files.require_sha256(check.file, digest.hexdigest())


def _decoded_chunks(
    files: CacheFiles, check: FileCheck, spec: ArraySpec, checksums: tuple[ArraySpec, int], file: BinaryIO
) -> Iterator[bytes]:
    """Chunk after chunk, which fill the shard up to its index without a gap; holds one at a time."""
    table, column = checksums
    stated = files.read_array(table, shard=check.shard)[:, column].tolist()
    entries = files.read_shard_index(spec, shard=check.shard)[: check.num_rows].tolist()
    codes = np.empty(spec.row_shape, dtype=spec.dtype)
    position = 0
    for row, (offset, length) in enumerate(entries):
        name = f'{files.root / check.file}: row {row}'
        if offset != position:
            raise CacheDamagedError(f'{name} starts at byte {offset}, not at the end of the previous row')
        chunk = file.read(length)
        decode_chunk(chunk, out=codes, checksum=stated[row], name=name)
        yield chunk
        position += length


def _damages_of_rois(
    state: CacheState, files: CacheFiles, plan: CachePlan, *, known: Collection[ShardKey | None]
) -> Iterator[Damage]:
    """Shard groups whose files are each as they were written, but hold proposals that no reader takes."""
    record = state.description.rois
    if record is None:
        return
    reader = RoiReader(files, record, plan.by_name)
    for key in plan.shard_keys():
        if key not in state.committed or key in known:
            continue
        bucket = plan.by_name[key.bucket]
        try:
            for row in bucket.rows(key.shard):
                reader.read(bucket, row, bucket.images[row].image_id)
        except CacheDamagedError as error:
            yield _damage(state.root, f'{arrays.HEADS}/{key.bucket}', key, error)


def _damages_of_folders(state: CacheState) -> Iterator[Damage]:
    """Files below the index and the folders of the padded shapes that do not belong there, and wrong metadata."""
    root, specs = state.root, state.plan.specs()
    metadata = metadata_files(specs)
    expected = metadata.keys() | {
        spec.file(shard) for spec in specs for shard in range(-(-spec.shape[0] // spec.rows_per_file))
    }
    for top in sorted(path for path in root.iterdir() if path.is_dir() and _FOLDERS_OF_ARRAYS.fullmatch(path.name)):
        for folder, _, names in os.walk(top):
            for name in sorted(names):
                file = (Path(folder) / name).relative_to(root).as_posix()
                # While a cache is written, temporary files come and go.
                is_passing = name.startswith(TEMPORARY) and not state.is_finished
                if file not in expected and not is_passing:
                    yield Damage('stray', file, 'is not part of the cache')
    if not state.is_finished:  # an extraction repairs the metadata when it starts
        return
    for file, content in metadata.items():
        problem = _metadata_problem(root / file, json.loads(content))
        if problem:
            yield Damage('metadata', file, problem)


def _metadata_problem(path: Path, wanted: Any) -> str | None:
    if not path.is_file():
        return 'is missing'
    try:
        found = read_json(path)
    except CacheDamagedError as error:
        return str(error).removeprefix(f'{path}: ')
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
