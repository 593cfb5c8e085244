"""A copy of a cache, or of some of its levels, views or images, as a cache of its own.

Rows are copied as they are stored, each checked by its checksum on the way: nothing is decoded. The writer is that of
an extraction, with its guarantees: a copy that was killed resumes, and opens only when it is complete. A copy of
everything equals the original byte for byte.
"""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.manifest import MANIFEST_FILE, Description, ViewName, manifest_content
from mtpd.cache.format.plan import Bucket, CachePlan
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.reading.reader import CacheReader
from mtpd.cache.reading.remote import RemoteFolder
from mtpd.cache.writing.plan_file import PlanRecord, plan_record
from mtpd.cache.writing.writer import CacheWriter
from mtpd.errors import CacheMismatchError, InputError, UnavailableError
from mtpd.system.files import free_bytes, sha256_bytes

CARD_FILE = 'README.md'
UPLOAD_FILE = 'upload.sha256'


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


def copy_writer(source: CacheReader, out: Path, selection: Selection) -> CacheWriter:
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
            for image in images:
                group.append_stored(view, source.read_stored(image.image_id, view, levels=names))
        if writer.description.rois is not None:
            group.append_rois([source.rois(image.image_id) for image in images])
        writer.commit(group)
        advance(len(images))
    if not writer.is_finished:
        writer.finish()
    return True


def require_room(source: CacheReader, writer: CacheWriter) -> None:
    """UnavailableError where the disk has less space than the copy takes, by the share of the levels and images."""
    views, total = writer.description.views, 0.0
    left_out = {level.name for level in source.levels} - {level.name for level in writer.description.levels}
    for file, record in source.manifest.files.items():
        place = file_place(file)
        # What is of no view belongs to all images or to their proposals.
        if place is None or not place.view or (place.view in views and place.array.split('.')[0] not in left_out):
            total += record.num_bytes
    needed = total * writer.plan.num_images / len(source)
    if needed > (free := free_bytes(writer.root)):
        raise UnavailableError(
            f'{writer.root}: the copy needs {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free; '
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
        fingerprint['copied_from'] = _plan_record(source).sha256
    if selection.data is not None:
        fingerprint['data'] = dict(selection.data)
    provenance = {**description.provenance, **(selection.provenance or {})}
    changes = {'levels': levels, 'views': views, 'fingerprint': fingerprint, 'provenance': provenance}
    return description.model_copy(update=changes)


def upload(source: CacheReader, folder: RemoteFolder, *, card: bytes, advance: Callable[[int], object]) -> None:
    """Copies a cache to an object store: its files, each verified by its hash, then the manifest.

    Until then no reader opens it. `advance` gets the bytes of each file. An upload that was killed resumes: a note says
    what is being uploaded, and what is there with the right size is not sent again, as an object is written whole or
    not at all. CacheMismatchError: another cache is there, or is being uploaded.
    """
    manifest = manifest_content(source.manifest)
    digest = sha256_bytes(manifest).encode()
    # By its number a note of this very call is known, where the answer to the first request was lost.
    note = digest + b' ' + secrets.token_hex(8).encode()
    found = folder.create(UPLOAD_FILE, note) or note
    if not found.startswith(digest):
        raise CacheMismatchError(
            f'{folder.name}: another cache is being uploaded here; choose another URL, or delete {UPLOAD_FILE} there'
        )
    if folder.stored_size(MANIFEST_FILE) is None:
        for file, content in metadata_files(_plan_record(source).specs()).items():
            folder.put(file, content)
        for file, record in source.manifest.files.items():
            # What is there is of this upload only where it was begun before.
            if found == note or folder.stored_size(file) != record.num_bytes:
                folder.put(file, source.verified_file(file))
            advance(record.num_bytes)
        folder.put(CARD_FILE, card)
    present = folder.create(MANIFEST_FILE, manifest)
    folder.delete(UPLOAD_FILE)
    if present not in (None, manifest):
        raise CacheMismatchError(f'{folder.name}: holds another cache; choose another URL')


def _plan_record(source: CacheReader) -> PlanRecord:
    manifest = source.manifest
    return plan_record(manifest.description, manifest.buckets, manifest.files)
