"""Verifies a cache: reads every file completely, decodes every chunk, and finds files that do not belong to it.

What is read is judged by the manifest; of an unfinished cache by the plan and the journal, and only what is committed.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from mtpd.cache.checking.state import CacheState
from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import (
    ArraySpec,
    decode_chunk,
    decode_index,
    decode_plain,
    index_bytes,
    require_plain_bytes,
)
from mtpd.cache.format.plan import CachePlan, ShardKey
from mtpd.cache.format.strict_json import read_json, short
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.cache.reading.index import read_index
from mtpd.cache.reading.roi_rows import RoiReader
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.system.files import differences
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
    """A file and all that is known about it.

    Attributes:
        file: path below the cache's root.
        key: the shard group it is of, if any.
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


def verify(state: CacheState, *, num_threads: int, advance: Callable[[int], object]) -> list[Damage]:
    """Reads everything.

    Args:
        state: the cache's records.
        num_threads: that read and decode; each holds a chunk of a shard, or a file of a small array, in memory.
        advance: called with the number of bytes of each file after reading it.
    """
    files = CacheFiles(state.root, state.manifest.files)
    plan, index_damage = _plan(state, files)
    checks = list(_checks(state, plan))
    damages = _unknown_records(state, checks)
    for check, problem in prefetched(partial(_checked, files), checks, num_threads=num_threads, depth=4 * num_threads):
        record = state.manifest.files.get(check.file)
        advance(record.num_bytes if record else 0)
        if problem is not None:
            damages.append(_damage(state, check, problem))
    if plan is not None:
        damages += _damages_of_rois(state, files, plan, known={damage.key for damage in damages})
    # If a file of the index is damaged, that is already reported for the file.
    if index_damage and not any(damage.file.startswith('index/') for damage in damages):
        damages.insert(0, index_damage)
    return damages + _damages_of_folders(state)


def _plan(state: CacheState, files: CacheFiles) -> tuple[CachePlan | None, Damage | None]:
    """The plan by the index; an unfinished cache may have no record of its index yet."""
    if not any(file.startswith('index/') for file in state.manifest.files):
        return None, None
    try:
        return read_index(files, state.manifest), None
    except CacheDamagedError as error:
        return None, _damage(state, FileCheck('index'), error)


def _checked(files: CacheFiles, check: FileCheck) -> tuple[FileCheck, CacheDamagedError | None]:
    try:
        _check_file(files, check)
    except CacheDamagedError as error:
        return check, error
    return check, None


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
            yield _damage(state, FileCheck(f'{arrays.HEADS}/{key.bucket}', key=key), error)


def _damage(state: CacheState, check: FileCheck, error: CacheDamagedError) -> Damage:
    # `file` names the file, and the caller of the verification adds the next step.
    reason = str(error).removesuffix('; extract it again').removesuffix(f'; {REPAIR}')
    for prefix in (f'{state.root / check.file}: ', f'{state.root}: ', f'{state.root}/'):
        reason = reason.removeprefix(prefix)
    return Damage('head' if check.key is None else 'shard', check.file, reason, check.key)


def _checks(state: CacheState, plan: CachePlan | None) -> Iterator[FileCheck]:
    """What precedes the shards, then every file of every committed group, in the order of writing."""
    yield from (FileCheck(file) for file in state.manifest.files if arrays.file_place(file) is None)
    layout = plan or state.plan.layout()
    level_names = [level.name for level in state.description.levels]
    for key in layout.shard_keys():
        if key not in state.committed:
            continue
        bucket, images = layout.by_name[key.bucket], layout.images(key)
        image_ids = tuple(image.image_id for image in images) if plan is not None else None
        specs = {spec.path: spec for spec in state.description.bucket_specs(bucket)}
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


def _unknown_records(state: CacheState, checks: Sequence[FileCheck]) -> list[Damage]:
    """Files on record that the plan has no place for: no extraction wrote such records."""
    unknown = state.manifest.files.keys() - {check.file for check in checks}
    return [Damage('head', file, 'is recorded, but the plan has no such file') for file in sorted(unknown)]


def expected_metadata(state: CacheState) -> dict[str, bytes]:
    """Path below the root -> content of every `zarr.json` of the cache."""
    return metadata_files(state.plan.specs())


def _damages_of_folders(state: CacheState) -> list[Damage]:
    metadata = expected_metadata(state)
    expected = metadata.keys() | {
        spec.file(shard) for spec in state.plan.specs() for shard in range(-(-spec.shape[0] // spec.rows_per_file))
    }
    strays = _stray_files(state.root, expected=expected, is_finished=state.is_finished)
    damages = [Damage('stray', file, 'is not part of the cache') for file in strays]
    # An extraction repairs the metadata when it starts.
    if state.is_finished:
        damages += [Damage('metadata', *problem) for problem in _metadata_problems(state.root, metadata)]
    return damages


def _check_file(files: CacheFiles, check: FileCheck) -> None:
    """Reads the file whole: size, hash, and what its array says about it."""
    size = files.size(check.file)
    digest = hashlib.sha256()
    try:
        with (files.root / check.file).open('rb') as file:
            if check.spec is not None and check.spec.sharded:
                _read_shard(files, check, file, size=size, digest=digest)
            elif check.spec is not None:
                _read_plain(check, check.spec, file, size=size, digest=digest)
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise CacheDamagedError(f'{files.root / check.file}: cannot be read ({error.strerror})') from error
    files.require_sha256(check.file, digest.hexdigest())


def _read_plain(check: FileCheck, spec: ArraySpec, file: BinaryIO, *, size: int, digest: 'hashlib._Hash') -> None:
    require_plain_bytes(spec, size, name=check.file)
    if check.image_ids is None:
        return
    content = file.read(size)
    digest.update(content)
    found = decode_plain(content, spec, name=check.file)[: check.num_rows].tolist()
    wrong = [row for row, pair in enumerate(zip(found, check.image_ids, strict=True)) if pair[0] != pair[1]]
    if wrong:
        raise CacheDamagedError(
            f'{check.file}: row {wrong[0]} belongs to image {found[wrong[0]]}, the index states '
            f'{check.image_ids[wrong[0]]}'
        )


def _read_shard(files: CacheFiles, check: FileCheck, file: BinaryIO, *, size: int, digest: 'hashlib._Hash') -> None:
    """Decodes chunk after chunk, which fill the shard up to its index without a gap; holds one at a time."""
    assert check.spec is not None
    assert check.checksums is not None
    table_spec, column = check.checksums
    assert check.key is not None
    checksums = files.read_array(table_spec, shard=check.key.shard)[:, column]
    codes = np.empty(check.spec.row_shape, dtype=check.spec.dtype)
    name = str(files.root / check.file)
    tail_bytes = index_bytes(check.spec.rows_per_file)
    file.seek(max(0, size - tail_bytes))
    entries = decode_index(
        file.read(tail_bytes),
        chunks_per_shard=check.spec.rows_per_file,
        num_chunks=check.num_rows,
        chunk_bytes=check.spec.row_bytes,
        shard_bytes=size,
        name=name,
    )
    file.seek(0)
    position = 0
    for row in range(check.num_rows):
        offset, length = (int(value) for value in entries[row])
        if offset != position:
            raise CacheDamagedError(f'{name}: row {row} starts at byte {offset}, not at the end of the previous row')
        chunk = file.read(length)
        digest.update(chunk)
        decode_chunk(chunk, out=codes, checksum=int(checksums[row]), name=f'{name}: row {row}')
        position += length


def _stray_files(root: Path, *, expected: Collection[str], is_finished: bool) -> Iterator[str]:
    """Files below the index and the folders of the padded shapes that are not `expected`, by path below `root`.

    While a cache is written, temporary files come and go; they are not counted then.
    """
    for top in sorted(path for path in root.iterdir() if path.is_dir() and _FOLDERS_OF_ARRAYS.fullmatch(path.name)):
        for folder, _, names in os.walk(top):
            for name in sorted(names):
                file = (Path(folder) / name).relative_to(root).as_posix()
                is_passing = name.startswith('.tmp-') and not is_finished
                if file not in expected and not is_passing:
                    yield file


def _metadata_problems(root: Path, expected: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """(path below `root`, reason) of every expected `zarr.json` that is missing or has other content."""
    for file, content in expected.items():
        path = root / file
        if not path.is_file():
            yield file, 'is missing'
            continue
        try:
            found = read_json(path)
        except CacheDamagedError as error:
            yield file, str(error).removeprefix(f'{path}: ')
            continue
        rows = differences(_without_empty(found), _without_empty(json.loads(content)))
        if rows:
            name, is_, should = rows[0]
            yield file, f'states {name} as {short(is_)}, expected {short(should)}'


def _without_empty(value: Any) -> Any:
    """Versions of zarr differ in whether they write what is empty."""
    if isinstance(value, dict):
        return {key: _without_empty(one) for key, one in value.items() if one not in (None, [], {})}
    return [_without_empty(one) for one in value] if isinstance(value, list) else value
