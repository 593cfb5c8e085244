"""Reads COCO annotation files and checks them, so that later steps can trust what they hold.

The file is untrusted input: what is wrong with it is named once, here, before a long run starts. Training and
evaluation use what was checked; nothing reads the file a second time.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os.path import isfile  # a name that no file can have is none; Path.is_file raises
from pathlib import Path
from typing import Literal, TypeVar

from mtpd.data.records import (
    Fields,
    collector_paused,
    flag,
    number,
    numbers,
    parse_each,
    parse_json,
    shown,
    text,
    whole,
)
from mtpd.data.segmentation import Segmentation, box_outline, check_segmentation, mask_area
from mtpd.errors import InputError
from mtpd.geometry import Geometry
from mtpd.system.files import sha256_bytes

Item = TypeVar('Item')
Box = tuple[float, float, float, float]
# Why an object is not used for training; mmdet ignores the same ones.
LeftOut = Literal['marked ignore', 'without width or height', 'thinner than 1 px', 'outside the image', 'without area']

MAX_SIDE, MAX_PIXELS = 2**20, 2**30  # of the images that OpenCV reads
# What an annotation may have, in spellings of label tools and converters, in small letters without underscores and
# hyphens -> the key that is read. Other spellings are refused: they would be ignored silently.
SPELLINGS = {
    'iscrowd': 'iscrowd', 'crowd': 'iscrowd', 'iscrowds': 'iscrowd', 'ignore': 'ignore', 'ignored': 'ignore',
    'isignore': 'ignore', 'isignored': 'ignore', 'area': 'area', 'segmentation': 'segmentation',
    'segmentations': 'segmentation',
}  # fmt: skip
MAX_COORDINATE = 1e9  # px; float32 numbers are 64 px apart there


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of the set; `height` and `width` in px.

    `file_name` is relative to the image folder and does not leave it.
    """

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

    `bbox` (x, y, width, height) in px of the original image is not clipped to it; `category` is a 0-based index into
    `CocoSet.categories`; `area` is in px. The box of a crowd covers a group; training ignores it, it is not background.
    Training leaves out an object that the file says to `ignore`, as mmdet, evaluation does not, as pycocotools.
    `segmentation`: polygons [[x, y, x, y, ...], ...] in px, or a run-length encoding of the image's size, or None;
    `num_bad_polygons` were left out, see `mtpd.data.segmentation.check_segmentation`.
    """

    bbox: Box
    category: int
    is_crowd: bool
    area: float
    segmentation: Segmentation | None = None
    is_ignored: bool = False
    num_bad_polygons: int = 0

    @property
    def box(self) -> Box:
        """(x1, y1, x2, y2) in px."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height

    @property
    def is_object(self) -> bool:
        return not self.is_crowd and not self.is_ignored

    def mask(self, image: CocoImage) -> Segmentation:
        """Its segmentation, or the outline of its box where it has none."""
        return self.segmentation or box_outline(self.box, height=image.height, width=image.width)


@dataclass(frozen=True)
class CocoSet:
    """A checked annotation file; images in the file's order, categories by ascending id.

    `annotations` are by image id, in the file's order; every image has an entry.
    """

    path: Path
    sha256: str
    images: tuple[CocoImage, ...]
    categories: tuple[CocoCategory, ...]
    annotations: Mapping[int, tuple[CocoAnnotation, ...]]

    @cached_property
    def has_masks(self) -> bool:
        """Whether any object has a segmentation; a set without them says nothing of masks."""
        return any(one.segmentation is not None for several in self.annotations.values() for one in several)


@collector_paused()
def read_annotations(path: Path) -> CocoSet:
    """Reads and checks an annotation file in COCO's format.

    Of an image `id`, `file_name`, `height` and `width` are read, of a category `id` and `name`, of an annotation
    `image_id`, `category_id` and `bbox`, all of which must be there; and its `iscrowd` and `ignore` (missing or null:
    no), `area` (missing or null: that of the mask, or else of the box) and `segmentation` (missing or empty: none);
    other spellings of these, such as `is_crowd`, are refused. Everything else may be missing or be anything, such as
    the ids of annotations, which are not used.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot read the annotation file ({error.strerror}); check the path') from None
    document = parse_json(path, content)
    if not isinstance(document, dict):
        raise InputError(f'{path}: holds a {_kind(document)}, expected a COCO annotation object')

    images = tuple(parse_each(path, document, 'images', _parse_image))
    categories = tuple(sorted(parse_each(path, document, 'categories', _parse_category), key=lambda c: c.id))
    _check_unique(path, 'images', [image.id for image in images])
    _check_unique(path, 'categories', [category.id for category in categories])

    by_id = {image.id: image for image in images}
    indices = {category.id: index for index, category in enumerate(categories)}
    annotations: dict[int, list[CocoAnnotation]] = {image.id: [] for image in images}
    for image_id, one in parse_each(path, document, 'annotations', lambda r: _parse_annotation(r, by_id, indices)):
        annotations[image_id].append(one)
    return CocoSet(path, sha256_bytes(content), images, categories, {i: tuple(a) for i, a in annotations.items()})


def training_annotations(coco_set: CocoSet, image: CocoImage) -> tuple[CocoAnnotation, ...]:
    """The annotations of an image that training sees, see `why_left_out`. Crowds stay, to be ignored as regions."""
    return tuple(a for a in coco_set.annotations[image.id] if why_left_out(a, image) is None)


def why_left_out(annotation: CocoAnnotation, image: CocoImage) -> LeftOut | None:
    """Why training does not see an annotation, by mmdet's rules; None: it does."""
    if annotation.is_ignored:
        return 'marked ignore'
    x, y, width, height = annotation.bbox
    if width <= 0 or height <= 0:
        return 'without width or height'
    if width < 1 or height < 1:
        return 'thinner than 1 px'
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        return 'outside the image'
    return 'without area' if annotation.area <= 0 else None


def coco_paths(coco: Path, split: str) -> tuple[Path, Path]:
    """Image folder and annotation file of a split, for instance `train2017`, in COCO's own layout."""
    return coco / split, coco / 'annotations' / f'instances_{split}.json'


def spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Up to `count` of `items`, at equal distances."""
    number = min(count, len(items))
    return tuple(items[index * len(items) // number] for index in range(number))


def missing_images(images: Sequence[CocoImage], folder: Path) -> tuple[str, ...]:
    """File names of the images that are not in `folder`, in their order, as messages can show them."""
    names = (image.file_name for image in images)
    return tuple(_shown_name(name) for name in names if not isfile(folder / name))


def _shown_name(file_name: str) -> str:
    """Quoted where it has spaces or line breaks that a message in one line would lose."""
    return file_name if file_name == ' '.join(file_name.split()) and file_name.isprintable() else repr(file_name)


def require_pixels(images: Sequence[CocoImage], geometry: Geometry) -> None:
    """Refuses images so long and thin that the resize leaves nothing of them."""
    for image in images:
        if min(geometry.resized((image.height, image.width))) < 1:
            raise InputError(
                f'{image.file_name}: {image.width} x {image.height} px would be an empty image at scale '
                f'{geometry.scale[0]}x{geometry.scale[1]}; remove it from the annotation file or choose a larger scale'
            )


def _kind(document: object) -> str:
    if not isinstance(document, list):
        return f'{type(document).__name__}'
    first = document[0] if document else None
    is_found = isinstance(first, dict) and 'score' in first and 'image_id' in first
    return 'list that looks like detections (a results file)' if is_found else 'list'


def _check_unique(path: Path, key: str, ids: Sequence[int]) -> None:
    seen: set[int] = set()
    for index, value in enumerate(ids):
        if value in seen:
            raise InputError(
                f'{path}: {key}[{index}]: id {value} is already used by an earlier one; ids must be unique'
            )
        seen.add(value)


def _parse_image(record: Fields) -> CocoImage:
    # Only the name is judged: a symbolic link in the image folder may lead elsewhere, as data folders often span disks,
    # and someone who can place a link there needs no annotation file to do harm.
    file_name = text(record, 'file_name')
    parts = file_name.split('/')
    if '\0' in file_name or '\\' in file_name or re.match('[A-Za-z]:', file_name):
        raise ValueError(f'file_name {shown(file_name)} has a NUL, a backslash or a drive letter')
    if file_name.startswith('/') or '..' in parts or not set(parts) - {'', '.'}:
        raise ValueError(f'file_name {shown(file_name)} leaves the image folder; expected a path relative to it')
    height, width = whole(record, 'height', 1, MAX_SIDE), whole(record, 'width', 1, MAX_SIDE)
    if height * width > MAX_PIXELS:
        raise ValueError(f'height x width is {height} x {width}, expected at most {MAX_PIXELS} px, the limit of OpenCV')
    return CocoImage(whole(record, 'id', 0), file_name, height, width)


def _parse_category(record: Fields) -> CocoCategory:
    return CocoCategory(whole(record, 'id', 0), text(record, 'name'))


@lru_cache(maxsize=64)  # records of a file have the same keys
def _misspelt(keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The keys that are another spelling, each with the key that is read."""
    plain = {key: key.lower().replace('_', '').replace('-', '') for key in keys}
    return tuple((key, SPELLINGS[one]) for key, one in plain.items() if one in SPELLINGS and key != SPELLINGS[one])


def _parse_annotation(
    record: Fields, images: Mapping[int, CocoImage], indices: Mapping[int, int]
) -> tuple[int, CocoAnnotation]:
    image_id, category_id = whole(record, 'image_id', 0), whole(record, 'category_id', 0)
    if image_id not in images:
        raise ValueError(f"image_id {image_id} is not among 'images'")
    if category_id not in indices:
        raise ValueError(f"category_id {category_id} is not among 'categories'")
    for written, key in _misspelt(tuple(record)):
        if key not in record:
            raise ValueError(f'has the key {written!r} with {shown(record[written])}, expected it under {key!r}')
    x, y, width, height = numbers(record, 'bbox', 4, limit=MAX_COORDINATE, meaning='[x, y, width, height] in px')
    image = images[image_id]
    segmentation, num_bad_polygons = check_segmentation(
        record.get('segmentation'), height=image.height, width=image.width
    )
    area = number(record, 'area')
    if area is None:
        area = width * height
        if segmentation is not None:
            area = mask_area(segmentation, height=image.height, width=image.width)
    return image_id, CocoAnnotation(
        (x, y, width, height),
        indices[category_id],
        flag(record, 'iscrowd'),
        area,
        segmentation,
        flag(record, 'ignore'),
        num_bad_polygons,
    )
