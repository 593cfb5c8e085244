"""A copy of a cache, or of some of its levels, views or images, as a cache of its own.

Rows are copied as they are stored, each checked by its checksum on the way: nothing is decoded. The writer is that of
an extraction, with its guarantees: a copy that was killed resumes, and opens only when it is complete. A copy of
everything equals the original byte for byte.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.manifest import Description, ViewName
from mtpd.cache.format.plan import Bucket, CachePlan
from mtpd.cache.reading.reader import CacheReader
from mtpd.cache.writing.destination import Destination
from mtpd.cache.writing.plan_file import plan_record
from mtpd.cache.writing.writer import CacheWriter
from mtpd.errors import CacheMismatchError, InputError, UnavailableError
from mtpd.system.files import free_bytes
from mtpd.system.prefetch import prefetched

CARD_FILE = 'README.md'
NUM_THREADS = 8  # that read rows: by URL each is a request


@dataclass(frozen=True)
class Selection:
    """What of a cache is copied; None: all of it.

    `data` replaces the record of the data set in the fingerprint, where the images are those of another annotation
    file, and `provenance` what is said of that file.
    """

    levels: tuple[str, ...] | None = None
    views: tuple[ViewName, ...] | None = None
    image_ids: Collection[int] | None = None
    data: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


def copy_writer(source: CacheReader, out: Destination, selection: Selection) -> CacheWriter:
    """A writer of the copy that has not been entered; CacheMismatchError for what the cache does not have."""
    plan, description = _selected_plan(source, selection), _selected_description(source, selection)
    return CacheWriter(out, description=description, plan=plan, teacher_weights=source.teacher_file())


def copy_groups(
    source: CacheReader, writer: CacheWriter, *, advance: Callable[[int], object], stop: Callable[[], bool]
) -> bool:
    """Copies all groups that are missing and publishes the copy; `advance` gets the number of images of each group.

    Returns whether all were copied: `stop` is asked before each group.
    """
    names, views = [level.name for level in writer.description.levels], writer.description.views
    if writer.description.codec == 'lean':
        writer.bases(lambda: {name: source.bases[name] for name in names})
    for key in writer.pending():
        if stop():
            return False
        group, images = writer.start_group(key), writer.plan.images(key)
        for view in views:
            read = partial(source.read_stored, view=view, levels=names)
            image_ids = [image.image_id for image in images]
            for stored in prefetched(read, image_ids, num_threads=NUM_THREADS, depth=2 * NUM_THREADS):
                group.append_stored(view, stored)
        if writer.description.rois is not None:
            group.append_rois([source.rois(image.image_id) for image in images])
        writer.commit(group)
        advance(len(images))
    if not writer.is_finished and (left := writer.finish()):
        raise UnavailableError(
            f'{writer.destination.name}: {len(left)} shards were written over by another process; run the same command '
            'again'
        )
    return True


def require_room(source: CacheReader, writer: CacheWriter, out: Path) -> None:
    """UnavailableError where `out` has less space than the copy takes, by the share of the levels and images."""
    views, total = writer.description.views, 0.0
    left_out = {level.name for level in source.levels} - {level.name for level in writer.description.levels}
    for file, record in source.manifest.files.items():
        place = file_place(file)
        # What is of no view belongs to all images or to their proposals.
        if place is None or not place.view or (place.view in views and place.array.split('.')[0] not in left_out):
            total += record.num_bytes
    needed = total * writer.plan.num_images / len(source)
    if needed > (free := free_bytes(out)):
        raise UnavailableError(
            f'{out}: the copy needs {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free; '
            'free some space, or copy fewer levels, views or images'
        )


def _selected_plan(source: CacheReader, selection: Selection) -> CachePlan:
    wanted = selection.image_ids
    if wanted is None:
        return source.plan
    missing = [one for one in wanted if one not in source]
    if missing:
        raise CacheMismatchError(
            f'{source.name}: lacks {len(missing)} of the {len(wanted)} images to copy, the first is {missing[0]}; '
            'leave them out'
        )
    chosen = frozenset(wanted)
    buckets = []
    for bucket in source.plan.buckets:
        images = tuple(image for image in bucket.images if image.image_id in chosen)
        if images:
            rows = min(bucket.rows_per_shard, len(images))
            buckets.append(Bucket(padded=bucket.padded, num_images=len(images), rows_per_shard=rows, images=images))
    if not buckets:
        raise InputError(f'{source.name}: no image to copy')
    return CachePlan(buckets=tuple(buckets))


def _selected_description(source: CacheReader, selection: Selection) -> Description:
    description = source.manifest.description
    names = [level.name for level in description.levels]
    for kind, wanted, stored in (('level', selection.levels, names), ('view', selection.views, description.views)):
        unknown = [one for one in wanted or () if one not in stored]
        if unknown:
            raise CacheMismatchError(f'{source.name}: has the {kind}s {", ".join(stored)}, not {unknown[0]}')
    levels = tuple(one for one in description.levels if selection.levels is None or one.name in selection.levels)
    views = tuple(one for one in description.views if selection.views is None or one in selection.views)
    fingerprint = dict(description.fingerprint)
    if (levels, views) != (description.levels, description.views) or selection.image_ids is not None:
        manifest = source.manifest
        fingerprint['copied_from'] = plan_record(manifest.description, manifest.buckets, manifest.files).sha256
    if selection.data is not None:
        fingerprint['data'] = dict(selection.data)
    provenance = {**description.provenance, **(selection.provenance or {})}
    changes = {'levels': levels, 'views': views, 'fingerprint': fingerprint, 'provenance': provenance}
    return description.model_copy(update=changes)
