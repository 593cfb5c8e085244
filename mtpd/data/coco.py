"""Reads COCO annotation files and checks them, so that later steps can trust what they hold.

The file is untrusted input: what is wrong with it is named once, here, before a long run starts.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mtpd.data.segmentation import Segmentation, check_segmentation
from mtpd.errors import InputError
from mtpd.files import sha256_bytes
from mtpd.geometry import Geometry

Box = tuple[float, float, float, float]
Record = TypeVar('Record')

MAX_ID = 2**63 - 1  # ids are kept as int64 in caches


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of the set; `height` and `width` in px, `file_name` relative to the image folder."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class CocoCategory:
    """A category with the file's own id."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """An object in an image.

    Attributes:
        box: (x1, y1, x2, y2) in px of the original image, as annotated: not clipped to the image.
        category: 0-based index into `CocoSet.categories`.
        is_crowd: whether the box covers a group; such a box is ignored in training, not background.
        area: of the object, in px.
        segmentation: polygons [[x, y, x, y, ...], ...] in px, or a run-length encoding of the image's size, or None.
    """

    box: Box
    category: int
    is_crowd: bool
    area: float
    segmentation: Segmentation | None


@dataclass(frozen=True)
class CocoSet:
    """A checked annotation file.

    Attributes:
        path: the file.
        sha256: hex digest of its bytes.
        images: in the file's order.
        categories: by ascending id.
        annotations: by image id, in the file's order; every image has an entry.
    """

    path: Path
    sha256: str
    images: tuple[CocoImage, ...]
    categories: tuple[CocoCategory, ...]
    annotations: Mapping[int, tuple[CocoAnnotation, ...]]


def read_annotations(path: Path) -> CocoSet:
    """Reads and checks an annotation file in COCO's format. Annotations marked `ignore` are left out, as in mmdet.

    Raises:
        InputError: the file is missing, is no JSON or holds something that cannot be used; the message says where.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot read the annotation file ({error.strerror}); check the path') from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: not valid JSON ({error}); the file may be truncated, fetch it again') from None
    if not isinstance(document, dict):
        raise InputError(f'{path}: holds a {type(document).__name__}, wanted a COCO annotation object')

    images = tuple(_parse_each(path, document, 'images', _parse_image))
    categories = tuple(sorted(_parse_each(path, document, 'categories', _parse_category), key=lambda c: c.id))
    _check_unique(path, 'images', [image.id for image in images])
    _check_unique(path, 'categories', [category.id for category in categories])

    sizes = {image.id: (image.height, image.width) for image in images}
    indices = {category.id: index for index, category in enumerate(categories)}
    annotations: dict[int, list[CocoAnnotation]] = {image.id: [] for image in images}
    for parsed in _parse_each(path, document, 'annotations', lambda r: _parse_annotation(r, sizes, indices)):
        if parsed is not None:
            image_id, annotation = parsed
            annotations[image_id].append(annotation)
    return CocoSet(path, sha256_bytes(content), images, categories, {i: tuple(a) for i, a in annotations.items()})


def training_annotations(coco_set: CocoSet, image: CocoImage) -> tuple[CocoAnnotation, ...]:
    """The annotations of an image that training sees, by mmdet's rules.

    Boxes outside the image, thinner than one px or of no area are left out. Crowds stay, to be ignored as regions.
    """
    return tuple(a for a in coco_set.annotations[image.id] if _is_trainable(a, image))


def image_path(folder: Path, file_name: str) -> Path:
    """Where the image of an annotation file lies.

    Only the name is judged: a symbolic link below `folder` may lead elsewhere, as data folders often span disks, and
    whoever can place a link there needs no annotation file to do harm.

    Raises:
        InputError: `file_name` is no plain relative path or would leave `folder`.
    """
    _check_file_name(file_name)
    return folder / file_name


def missing_images(coco_set: CocoSet, folder: Path) -> tuple[str, ...]:
    """File names of the set's images that are not in `folder`, in the set's order."""
    return tuple(image.file_name for image in coco_set.images if not image_path(folder, image.file_name).is_file())


def require_pixels(images: Sequence[CocoImage], geometry: Geometry) -> None:
    """Refuses images so long and thin that the resize leaves nothing of them.

    Raises:
        InputError: names the first such image.
    """
    for image in images:
        if min(geometry.resized((image.height, image.width))) < 1:
            raise InputError(
                f'{image.file_name}: of {image.width} x {image.height} px nothing is left at scale '
                f'{geometry.scale[0]}x{geometry.scale[1]}; take it out of the annotation file or choose a larger scale'
            )


def _is_trainable(annotation: CocoAnnotation, image: CocoImage) -> bool:
    x1, y1, x2, y2 = annotation.box
    overlaps = min(x2, image.width) > max(x1, 0) and min(y2, image.height) > max(y1, 0)
    return overlaps and x2 - x1 >= 1 and y2 - y1 >= 1 and annotation.area > 0


def _parse_each(path: Path, document: dict[str, Any], key: str, parse: Callable[[Any], Record]) -> Iterator[Record]:
    records = document.get(key)
    if not isinstance(records, list):
        raise InputError(f"{path}: has no list '{key}'; a COCO annotation file has images, annotations and categories")
    for index, record in enumerate(records):
        try:
            if not isinstance(record, dict):
                raise TypeError(f'it is a {type(record).__name__}, wanted an object')
            parsed = parse(record)
        except KeyError as error:
            raise InputError(f'{path}: {key}[{index}]: {error} is missing') from None
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f'{path}: {key}[{index}]: {error}') from None
        yield parsed


def _check_unique(path: Path, key: str, ids: list[int]) -> None:
    seen: set[int] = set()
    for index, value in enumerate(ids):
        if value in seen:
            raise InputError(f'{path}: {key}[{index}]: id {value} is taken by an earlier one; ids must be unique')
        seen.add(value)


def _parse_image(record: dict[str, Any]) -> CocoImage:
    file_name = record['file_name']
    _check_file_name(file_name)
    return CocoImage(_whole(record, 'id', 0), file_name, _whole(record, 'height', 1), _whole(record, 'width', 1))


def _parse_category(record: dict[str, Any]) -> CocoCategory:
    name = record['name']
    if not isinstance(name, str) or not name:
        raise ValueError(f'name is {name!r:.80}, wanted a text')
    return CocoCategory(_whole(record, 'id', 0), name)


def _parse_annotation(
    record: dict[str, Any], sizes: dict[int, tuple[int, int]], indices: dict[int, int]
) -> tuple[int, CocoAnnotation] | None:
    image_id, category_id = _whole(record, 'image_id', 0), _whole(record, 'category_id', 0)
    if image_id not in sizes:
        raise ValueError(f"image_id {image_id} is not among 'images'")
    if category_id not in indices:
        raise ValueError(f"category_id {category_id} is not among 'categories'")
    if record.get('ignore'):
        return None
    x1, y1, box_width, box_height = _numbers(record, 'bbox', record['bbox'], 4)
    (area,) = _numbers(record, 'area', [record.get('area', box_width * box_height)], 1)
    height, width = sizes[image_id]
    segmentation = check_segmentation(record.get('segmentation'), height=height, width=width)
    box = (x1, y1, x1 + box_width, y1 + box_height)
    return image_id, CocoAnnotation(box, indices[category_id], bool(record.get('iscrowd')), area, segmentation)


def _whole(record: dict[str, Any], key: str, least: int) -> int:
    value = record[key]
    if type(value) is not int or not least <= value <= MAX_ID:
        raise ValueError(f'{key} is {value!r:.80}, wanted a whole number from {least} on')
    return value


def _numbers(record: dict[str, Any], key: str, values: Any, count: int) -> list[float]:
    numeric = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numeric or len(values) != count or not math.isfinite(sum(values)):
        raise ValueError(f'{key} is {record.get(key)!r:.80}, wanted {count} finite number(s)')
    return [float(value) for value in values]


def _check_file_name(file_name: Any) -> None:
    if not isinstance(file_name, str) or not file_name:
        raise InputError(f'file_name is {file_name!r:.80}, wanted a text')
    path = PurePosixPath(file_name)
    if '\0' in file_name or '\\' in file_name or re.match('[A-Za-z]:', file_name):
        raise InputError(f'file_name {file_name!r:.80} has a NUL, a backslash or a drive letter')
    if path.is_absolute() or '..' in path.parts or not path.parts:
        raise InputError(f'file_name {file_name!r:.80} leaves the image folder; wanted a path relative to it')
