"""Reads COCO annotation files and checks them, so that later steps can trust what they hold.

The file is untrusted input: what is wrong with it is named once, here, before a long run starts. Training and
evaluation use what was checked; nothing reads the file a second time.
"""

import os
import re
from array import array
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from mtpd.data.annotation_table import AnnotationColumns, AnnotationTable, CocoAnnotation, CocoImage
from mtpd.data.records import Fields, collector_paused, flag, number, numbers, read_document, shown, text, whole
from mtpd.data.segmentation import check_segmentation, mask_area
from mtpd.errors import InputError
from mtpd.geometry import Geometry

Item = TypeVar('Item')
# Why an object is not used for training, after '' for one that is; mmdet ignores the same ones.
LEFT_OUT = (
    '',
    'marked ignore',
    'without width or height',
    'thinner than 1 px',
    'outside the image',
    'without area',
)

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
class CocoCategory:
    """A category with the file's own id."""

    id: int
    name: str


@dataclass(frozen=True)
class CocoSet:
    """A checked annotation file; images in the file's order, categories by ascending id.

    `annotations` are those of all images of the file, `images` may be fewer.
    """

    path: Path
    sha256: str
    images: tuple[CocoImage, ...]
    categories: tuple[CocoCategory, ...]
    annotations: AnnotationTable

    @property
    def has_masks(self) -> bool:
        """Whether any object has a segmentation; a set without them says nothing of masks."""
        return bool(self.annotations.has_mask.any())

    @cached_property
    def left_out(self) -> np.ndarray:
        """(N,) uint8: why training does not see an annotation, a number in `LEFT_OUT`, by mmdet's rules."""
        table = self.annotations
        x, y, width, height = table.bbox.T
        image_height, image_width = np.array([(one.height, one.width) for one in table.images]).reshape(-1, 2).T
        outside = (x >= image_width[table.image]) | (y >= image_height[table.image]) | (x + width <= 0)
        reasons = {
            'marked ignore': table.is_ignored,
            'without width or height': (width <= 0) | (height <= 0),
            'thinner than 1 px': (width < 1) | (height < 1),
            'outside the image': outside | (y + height <= 0),
            'without area': table.area <= 0,
        }
        assert tuple(reasons) == LEFT_OUT[1:]
        numbers = range(1, len(LEFT_OUT))
        return np.select(list(reasons.values()), [np.uint8(one) for one in numbers], np.uint8(0))

    @cached_property
    def with_objects(self) -> np.ndarray:
        """(I,) bool, of each of `images`: whether it has something to find: an object that training sees."""
        table = self.annotations
        seen = np.zeros(len(table.images), dtype=np.bool_)
        seen[table.image[(self.left_out == 0) & ~table.is_crowd]] = True
        return seen[[table.index(image.id) for image in self.images]]


@collector_paused()
def read_annotations(path: Path) -> CocoSet:
    """Reads and checks an annotation file in COCO's format.

    Of an image `id`, `file_name`, `height` and `width` are read, of a category `id` and `name`, of an annotation
    `image_id`, `category_id` and `bbox`, all of which must be there; and its `iscrowd` and `ignore` (missing or null:
    no), `area` (missing or null: that of the mask, or else of the box) and `segmentation` (missing or empty: none);
    other spellings of these, such as `is_crowd`, are refused. Everything else may be missing or be anything, such as
    the ids of annotations, which are not used.
    """
    images: list[CocoImage] = []
    rows: dict[int, int] = {}
    categories: list[CocoCategory] = []
    columns, category_ids = AnnotationColumns(), array('q')
    early: list[Fields] = []

    def add_image(record: Fields) -> None:
        images.append(_parse_image(record))
        _require_new(images[-1].id, rows)
        rows[images[-1].id] = len(rows)

    def add_annotation(record: Fields) -> None:
        if not images:  # They may follow.
            early.append(record)
            return
        image_id = whole(record, 'image_id', 0)
        if image_id not in rows:
            raise ValueError(f"image_id {image_id} is not among 'images'")
        category_ids.append(whole(record, 'category_id', 0))
        _add_annotation(record, images[rows[image_id]], rows[image_id], columns)

    known: dict[int, None] = {}

    def add_category(record: Fields) -> None:
        categories.append(CocoCategory(whole(record, 'id', 0), text(record, 'name')))
        _require_new(categories[-1].id, known)
        known[categories[-1].id] = None

    digest = read_document(path, {'images': add_image, 'annotations': add_annotation, 'categories': add_category})
    for index, record in enumerate(early):
        try:
            if not images:
                raise ValueError("its image is not among 'images', which is empty")
            add_annotation(record)
        except ValueError as error:
            raise InputError(f'{path}: annotations[{index}]: {error}') from None
    categories.sort(key=lambda one: one.id)
    ids, found = np.array([one.id for one in categories], dtype=np.int64), np.frombuffer(category_ids, dtype=np.int64)
    indices = np.searchsorted(ids, found)
    unknown = np.flatnonzero(~np.isin(found, ids))
    if unknown.size:
        raise InputError(
            f"{path}: annotations[{unknown[0]}]: category_id {found[unknown[0]]} is not among 'categories'"
        )
    return CocoSet(path, digest, tuple(images), tuple(categories), AnnotationTable(images, columns, indices))


def training_annotations(coco_set: CocoSet, image: CocoImage) -> tuple[CocoAnnotation, ...]:
    """The annotations of an image that training sees, see `CocoSet.left_out`. Crowds stay, to be ignored as regions."""
    table = coco_set.annotations
    return tuple(table.annotation(row) for row in table.rows(image.id) if not coco_set.left_out[row])


def coco_paths(coco: Path, split: str) -> tuple[Path, Path]:
    """Image folder and annotation file of a split, for instance `train2017`, in COCO's own layout."""
    return coco / split, coco / 'annotations' / f'instances_{split}.json'


def spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Up to `count` of `items`, at equal distances."""
    number = min(count, len(items))
    return tuple(items[index * len(items) // number] for index in range(number))


def missing_images(images: Sequence[CocoImage], folder: Path) -> tuple[str, ...]:
    """File names of the images that are not in `folder`, in their order, as messages can show them."""
    names_in = cache(lambda parent: _file_names(folder / parent))  # a look at each file would take a network minutes
    names = (image.file_name for image in images)
    return tuple(_shown_name(one) for one in names if os.path.basename(one) not in names_in(os.path.dirname(one)))


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:  # there is none, or no name that a folder can have
        return set()


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


def _require_new(value: int, earlier: Container[int]) -> None:
    if value in earlier:
        raise ValueError(f'id {value} is already used by an earlier one; ids must be unique')


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


@lru_cache(maxsize=64)  # records of a file have the same keys
def _misspelt(keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The keys that are another spelling, each with the key that is read."""
    plain = {key: key.lower().replace('_', '').replace('-', '') for key in keys}
    return tuple((key, SPELLINGS[one]) for key, one in plain.items() if one in SPELLINGS and key != SPELLINGS[one])


def _add_annotation(record: Fields, image: CocoImage, row: int, columns: AnnotationColumns) -> None:
    """Checks an annotation of the image with index `row` and adds it to the columns."""
    for written, key in _misspelt(tuple(record)):
        if key not in record:
            raise ValueError(f'has the key {written!r} with {shown(record[written])}, expected it under {key!r}')
    bbox = numbers(record, 'bbox', 4, limit=MAX_COORDINATE, meaning='[x, y, width, height] in px')
    segmentation, num_bad_polygons = check_segmentation(
        record.get('segmentation'), height=image.height, width=image.width
    )
    area = number(record, 'area')
    if area is None:
        area = bbox[2] * bbox[3]
        if segmentation is not None:
            area = mask_area(segmentation, height=image.height, width=image.width)
    columns.append(
        row,
        bbox,
        area,
        segmentation,
        is_crowd=flag(record, 'iscrowd'),
        is_ignored=flag(record, 'ignore'),
        num_bad_polygons=num_bad_polygons,
    )
