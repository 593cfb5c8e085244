"""Verifies a cache: reads every file completely and decodes every chunk.

What is read is judged by the manifest; of an unfinished cache by the plan and the journal, and only what is committed.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mtpd.cache.checking.file_checks import FileCheck, check_file
from mtpd.cache.checking.folder_checks import metadata_problems, stray_files
from mtpd.cache.checking.state import CacheState
from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec
from mtpd.cache.format.plan import Bucket, CachePlan, ShardKey, SourceImage
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.cache.reading.index import read_index
from mtpd.cache.reading.roi_rows import RoiReader
from mtpd.errors import REPAIR, CacheDamagedError
from mtpd.system.prefetch import prefetched

Kind = Literal['shard', 'head', 'metadata', 'stray']


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


def verify(state: CacheState, *, num_threads: int, advance: Callable[[int], object]) -> list[Damage]:
    """Reads everything.

    Args:
        state: the cache's records.
        num_threads: that read and decode; each holds a chunk of a shard, or a file of a small array, in memory.
        advance: called with the number of bytes of each file after reading it.
    """
    files = CacheFiles(state.root, state.manifest.files)
    plan, index_damage = _plan(state, files)
    layout = plan or _layout_without_images(state)
    checks = list(_checks(state, layout, has_ids=plan is not None))
    damages = _unknown_records(state, checks)
    for check, problem in prefetched(partial(_try, files), checks, num_threads=num_threads, depth=4 * num_threads):
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


def _try(files: CacheFiles, check: FileCheck) -> tuple[FileCheck, CacheDamagedError | None]:
    try:
        check_file(files, check)
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


def _layout_without_images(state: CacheState) -> CachePlan:
    """The plan, but for which images are in it: that only the index knows."""
    unknown = SourceImage(-1, (1, 1))
    return CachePlan(
        tuple(Bucket(one.padded, (unknown,) * one.num_images, one.rows_per_shard) for one in state.manifest.buckets)
    )


def _specs(state: CacheState, bucket: Bucket) -> list[ArraySpec]:
    description = state.description
    levels = [level.to_level() for level in description.levels]
    return arrays.bucket_specs(
        bucket, views=description.views, levels=levels, codec=description.codec, rois=description.rois
    )


def _checks(state: CacheState, layout: CachePlan, *, has_ids: bool) -> Iterator[FileCheck]:
    """What precedes the shards, then every file of every committed group, in the order of writing."""
    yield from (FileCheck(file) for file in state.manifest.files if arrays.file_place(file) is None)
    level_names = [level.name for level in state.description.levels]
    for key in layout.shard_keys():
        if key not in state.committed:
            continue
        bucket, images = layout.by_name[key.bucket], layout.images(key)
        image_ids = tuple(image.image_id for image in images) if has_ids else None
        specs = {spec.path: spec for spec in _specs(state, bucket)}
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
    return metadata_files(_all_specs(state))


def _all_specs(state: CacheState) -> list[ArraySpec]:
    buckets = _layout_without_images(state).buckets
    index = arrays.index_specs(state.manifest.num_images).values()
    return [*index, *(spec for bucket in buckets for spec in _specs(state, bucket))]


def _damages_of_folders(state: CacheState) -> list[Damage]:
    metadata = expected_metadata(state)
    expected = metadata.keys() | {
        spec.file(shard) for spec in _all_specs(state) for shard in range(-(-spec.shape[0] // spec.rows_per_file))
    }
    strays = stray_files(state.root, expected=expected, is_finished=state.is_finished)
    damages = [Damage('stray', file, 'is not part of the cache') for file in strays]
    # An extraction repairs the metadata when it starts.
    if state.is_finished:
        damages += [Damage('metadata', *problem) for problem in metadata_problems(state.root, metadata)]
    return damages
