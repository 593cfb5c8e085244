"""What an extraction is made from: the fingerprint must be equal to resume it, the provenance is for information.

Levels, views, codec and geometry are next to the fingerprint in the manifest and must be equal too.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mtpd.cache.checking import read_state
from mtpd.data.annotation_table import CocoImage
from mtpd.data.coco import CocoSet
from mtpd.detectors.teachers import Teacher, teacher_fingerprint
from mtpd.errors import CacheError
from mtpd.system.environment import describe_device, versions
from mtpd.system.files import canonical_json, differences, sha256_bytes

LIBRARIES = (
    'mtpd', 'torch', 'torchvision', 'mmdet', 'mmengine', 'zarr', 'numcodecs', 'opencv-python', 'simplejpeg', 'numpy'
)  # fmt: skip
STAT_THREADS = 16


def fingerprint(teacher: Teacher, coco: CocoSet, images: Sequence[CocoImage]) -> dict[str, Any]:
    """What must be equal: the teacher, the annotation file, and which of its images are extracted."""
    content = {
        **teacher_fingerprint(teacher),
        'input': {'decoder': 'opencv', 'interpolation': teacher.preprocessing.geometry.interpolation},
        'data': {
            'annotations': coco.sha256,
            'image_ids': sha256_bytes(canonical_json([image.id for image in images])),
            'num_images': len(images),
        },
    }
    # As it comes back from a file: lists for tuples.
    as_read: dict[str, Any] = json.loads(canonical_json(content))
    return as_read


def provenance(
    teacher: Teacher, coco: CocoSet, paths: Mapping[int, Path], device: torch.device, *, license_name: str | None
) -> dict[str, Any]:
    """Names and versions, for information; `paths` are those of the images, by id.

    Only the sizes of image files are recorded: hashing COCO takes minutes. An extraction that stopped at a broken image
    resumes when the image is repaired, so they are not part of the fingerprint.
    """
    return {
        'teacher': teacher.name,
        **({} if teacher.classes is None else {'classes': list(teacher.classes)}),
        **({'license': stated} if (stated := license_name or teacher.license) else {}),
        'annotations': coco.path.name,
        'annotated_images': len(coco.images),
        'image_bytes': sha256_bytes(canonical_json(_file_sizes(list(paths.values())))),
        'device': describe_device(device),
        'versions': versions(LIBRARIES),
    }


def changes_since(out: Path | str, now: Mapping[str, Any]) -> list[str]:
    """What differs from the run that began the unfinished extraction in `out`, if any; `now` is the provenance."""
    try:
        state = read_state(out)
    except CacheError:
        return []
    then = state.manifest.description.provenance
    rows = differences(then.get('device'), now['device'], prefix='device')
    rows += differences(then.get('versions'), now['versions'])
    changes = [f'{name} was {old} and is {new}' for name, old, new in rows]
    if then.get('image_bytes') != now['image_bytes']:
        changes.append('the sizes of image files changed')
    return [] if state.is_finished else changes


def _file_sizes(paths: Sequence[Path]) -> list[int]:
    """Bytes of each file; by threads, since each takes a network file system a millisecond."""
    runs = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(STAT_THREADS) as threads:
        return [
            size for sizes in threads.map(lambda run: [path.stat().st_size for path in run], runs) for size in sizes
        ]
