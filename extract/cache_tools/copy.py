"""`mtpd-cache copy`: a copy of a cache or of a part of it, and the card that describes it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.cache.checking import read_state
from mtpd.cache.copying import CARD_FILE, Selection, copy_groups, copy_writer, require_room
from mtpd.cache.format.manifest import ViewName
from mtpd.cache.writing.remote_destination import destination_of
from mtpd.data.coco import read_annotations
from mtpd.errors import CacheMismatchError, InputError, Interrupted
from mtpd.system.console import progress_bar, say
from mtpd.system.files import canonical_json, sha256_bytes
from mtpd.system.interrupt import stop_on_signals
from mtpd.system.text import format_bytes
from mtpd_extract.cache_tools.info import describe_cache


def run(
    *,
    source: Path | str,
    destination: Path | str,
    levels: Sequence[str] | None,
    views: Sequence[ViewName] | None,
    images: Path | None,
    license_name: str | None,
) -> None:
    """Copies, resumes a copy, or says that it is complete; the options are those of the command line."""
    cache = mtpd.cache.open(source)
    place = destination_of(destination)
    both_are_folders = isinstance(destination, Path) and isinstance(source, Path)
    if place.name == cache.name or (
        both_are_folders and os.path.exists(destination) and os.path.samefile(source, destination)
    ):
        raise InputError(f'{destination}: is the cache itself; give another place')
    selection = Selection(
        levels=None if levels is None else tuple(levels),
        views=None if views is None else tuple(views),
        **({} if images is None else _of_images(cache, images)),
    )
    writer = copy_writer(cache, place, selection)
    if isinstance(destination, Path) and not destination.exists():
        require_room(cache, writer, destination)
    with writer, stop_on_signals() as stop:
        pending = writer.pending()
        num_images, num_left = writer.plan.num_images, sum(len(writer.plan.images(key)) for key in pending)
        with progress_bar(
            total=num_images, initial=num_images - num_left, unit='image', desc=f'copy {destination}'
        ) as bar:
            is_complete = copy_groups(cache, writer, advance=bar.update, stop=lambda: bool(stop))
        if not is_complete:
            raise Interrupted(f'{destination}: stopped; run the same command again to resume')
        copy = mtpd.cache.open(destination)
        place.write(CARD_FILE, cache_card(copy, license_name=license_name).encode())
    num_bytes = sum(record.num_bytes for record in copy.manifest.files.values())
    say(f'{destination}: {len(copy):,} images, {format_bytes(num_bytes)}')


def cache_card(cache: CacheReader, *, license_name: str | None) -> str:
    """What someone who finds a cache on a hub wants to know, in Markdown with the front matter of hubs."""
    record = describe_cache(read_state(cache.name))
    provenance, data = record['provenance'], record['fingerprint'].get('data')
    teacher = _cell(provenance.get('teacher', 'unknown'))
    license_name = license_name or str(provenance.get('license', 'unknown'))
    data_set = _cell(provenance.get('annotations', 'an unknown data set'))
    digest = data.get('annotations', 'unknown') if isinstance(data, dict) else 'unknown'
    scale = 'x'.join(map(str, record['geometry']['scale']))
    sizes, errors = record['bytes'], _mean_errors(cache)
    of_images = sizes['maps'] + sizes['row_tables'] + sizes['rois']
    rows = [
        f'| {one["name"]} | {one["stride"]} | {one["channels"]} | {format_bytes(one["bytes"])} | '
        f'{errors[one["name"]]:.4f} |'
        for one in record['levels']
    ]
    stored = cache.manifest.description.rois
    rois = '' if stored is None else f'| proposals | at most {stored.num_rois} an image |\n'
    return f"""---
license: {json.dumps(license_name)}
tags: [object-detection, knowledge-distillation, feature-cache]
---

# Features of {teacher} on {data_set}

Compressed feature maps of a detector's neck: a cache of mtpd, to train a student without running the teacher.

| | |
|---|---|
| teacher | {teacher} |
| licence | {_cell(license_name)} |
| data set | {data_set}, sha256 `{_cell(digest)}` |
| images | {record['images']:,} at {scale} |
| views | {', '.join(record['views'])} |
| codec | {record['codec']} |
{rois}| size | {format_bytes(sizes['all'])}, {format_bytes(of_images / record['images'])} an image |
| fingerprint | `{record['fingerprint_sha256']}` |

| level | stride | channels | size | relative squared error, mean |
|---|---|---|---|---|
{chr(10).join(rows)}

The images are not included. What was made from a teacher and a data set may be bound to the licences of both.

## Use

```bash
mtpd-cache verify FOLDER      # every byte as it was written
mtpd-cache info FOLDER
```

```python
import mtpd.cache

cache = mtpd.cache.open('FOLDER')
maps = cache.read(cache.image_ids[0])  # level name -> float32 tensor (C, H, W)
```

In a stage file of `mtpd-train` it is `cache: FOLDER`, with the images and the annotation file of the data set above.
"""


def _of_images(cache: CacheReader, path: Path) -> dict[str, Any]:
    """What the images of an annotation file, of other annotations of the same images, make of a selection."""
    coco = read_annotations(path)
    if not coco.images:
        raise InputError(f'{path}: lists no images; give the annotation file of the images to copy')
    for image in coco.images:
        if image.id in cache and cache.sizes(image.id).original != (image.height, image.width):
            height, width = cache.sizes(image.id).original
            raise CacheMismatchError(
                f'{path}: image {image.id} is {image.width} x {image.height} px, and {width} x {height} px in '
                f'{cache.name}; give an annotation file of the same images'
            )
    image_ids = [image.id for image in coco.images]
    digest = sha256_bytes(canonical_json(image_ids))
    return {
        'image_ids': image_ids,
        'data': {'annotations': coco.sha256, 'image_ids': digest, 'num_images': len(image_ids)},
        'provenance': {'annotations': path.name, 'annotated_images': len(image_ids)},
    }


def _mean_errors(cache: CacheReader) -> dict[str, float]:
    """Level name -> mean over all images and views of ||stored - live||^2 / ||live||^2."""
    sums = dict.fromkeys((level.name for level in cache.levels), 0.0)
    for image_id in cache.image_ids:
        for view in cache.views:
            for name, value in cache.errors(image_id, view).items():
                sums[name] += value
    return {name: value / len(cache) / len(cache.views) for name, value in sums.items()}


def _cell(value: object) -> str:
    """A text in one line that cannot end a cell of a table or a code span."""
    return ' '.join(str(value).replace('|', '/').replace('`', "'").split())
