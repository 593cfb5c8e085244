"""The objects of a data set in flat arrays: as Python objects those of COCO take 2.4 GB, and each process that reads
them gets copies of the pages that their reference counts are on.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpd.data.segmentation import Segmentation, box_outline

Box = tuple[float, float, float, float]


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


class AnnotationTable(Mapping[int, tuple[CocoAnnotation, ...]]):
    """Image id -> its annotations, in the file's order; every image has an entry.

    The arrays have a row for each of the N annotations, those of an image together, images in the order of the set.

    Attributes:
        images: all images of the set.
        image: (N,) int32 index of the image in the set.
        bbox: (N, 4) float64, (x, y, width, height) in px.
        category: (N,) int32.
        area: (N,) float64, px.
        is_crowd: (N,) bool.
        is_ignored: (N,) bool.
        has_mask: (N,) bool, whether there is a segmentation.
        num_bad_polygons: (N,) int32.
    """

    def __init__(self, images: Sequence[CocoImage], columns: 'AnnotationColumns', categories: np.ndarray) -> None:
        """`categories` (N,) are those of the rows of `columns`, as indices."""
        self.images = images
        self._rows = {image.id: row for row, image in enumerate(images)}
        order = np.argsort(np.frombuffer(columns.image, dtype=np.int32), kind='stable')

        def ordered(name: str, dtype: type) -> np.ndarray:
            # Each column goes when its copy is there: all of them twice are gigabytes for Objects365.
            return np.frombuffer(columns.__dict__.pop(name), dtype=dtype)[order]

        self.image = ordered('image', np.int32)
        self.area = ordered('area', np.float64)
        self.is_crowd = ordered('is_crowd', np.bool_)
        self.is_ignored = ordered('is_ignored', np.bool_)
        self.num_bad_polygons = ordered('num_bad_polygons', np.int32)
        self.bbox = np.frombuffer(columns.__dict__.pop('bbox'), dtype=np.float64).reshape(-1, 4)[order]
        self.category = categories.astype(np.int32)[order]
        self._segmentations: _Segmentations | None = _Segmentations(columns, order)
        self.has_mask = self._segmentations.present()
        self._starts = np.searchsorted(self.image, np.arange(len(images) + 1))

    def __getitem__(self, image_id: int) -> tuple[CocoAnnotation, ...]:
        return tuple(map(self.annotation, self.rows(image_id)))

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def index(self, image_id: int) -> int:
        """The index of an image in the set."""
        return self._rows[image_id]

    def image_of(self, image_id: int) -> CocoImage:
        """The image with an id."""
        return self.images[self._rows[image_id]]

    def rows(self, image_id: int) -> range:
        """The rows of an image's annotations."""
        row = self._rows[image_id]
        return range(int(self._starts[row]), int(self._starts[row + 1]))

    def forget_masks(self) -> None:
        """Frees the segmentations, most of what COCO's annotations take: from now on no annotation has one."""
        self._segmentations = None
        self.has_mask = np.zeros_like(self.has_mask)

    def annotation(self, row: int) -> CocoAnnotation:
        """The annotation of a row."""
        x, y, width, height = self.bbox[row].tolist()
        return CocoAnnotation(
            (x, y, width, height),
            int(self.category[row]),
            bool(self.is_crowd[row]),
            float(self.area[row]),
            None if self._segmentations is None else self._segmentations[row],
            bool(self.is_ignored[row]),
            int(self.num_bad_polygons[row]),
        )


class _Segmentations:
    """The segmentations of a table by their row, all points in one array."""

    def __init__(self, columns: 'AnnotationColumns', in_file: np.ndarray) -> None:
        """`in_file` (N,) are the places of the rows in the file."""
        self._in_file = in_file
        self._num_polygons = np.frombuffer(columns.num_polygons, dtype=np.int32)
        self._first_polygons = np.cumsum(self._num_polygons) - self._num_polygons
        self._ends = np.frombuffer(columns.polygon_ends, dtype=np.int64)
        self._points = np.frombuffer(columns.points)
        self._run_lengths = columns.run_lengths

    def present(self) -> np.ndarray:
        """(N,) bool, whether a row has one."""
        found: np.ndarray = self._num_polygons[self._in_file] > 0
        found[np.isin(self._in_file, list(self._run_lengths))] = True
        return found

    def __getitem__(self, row: int) -> Segmentation | None:
        number = int(self._in_file[row])
        first, count = int(self._first_polygons[number]), int(self._num_polygons[number])
        if not count:
            return self._run_lengths.get(number)
        ends = self._ends[max(0, first - 1) : first + count].tolist()
        starts = ends[:-1] if first else [0, *ends[:-1]]
        return [self._points[start:end].tolist() for start, end in zip(starts, ends[-count:], strict=True)]


class AnnotationColumns:
    """The arrays of an `AnnotationTable` while a file is read, in its order."""

    def __init__(self) -> None:
        self.image = array('i')
        self.bbox = array('d')
        self.area = array('d')
        self.is_crowd = array('b')
        self.is_ignored = array('b')
        self.num_bad_polygons = array('i')
        self.num_polygons = array('i')
        self.polygon_ends = array('q')
        self.points = array('d')
        self.run_lengths: dict[int, dict[str, Any]] = {}  # few: crowds

    def append(
        self,
        image: int,
        bbox: Sequence[float],
        area: float,
        segmentation: Segmentation | None,
        *,
        is_crowd: bool,
        is_ignored: bool,
        num_bad_polygons: int,
    ) -> None:
        """Adds a row; `image` is the image's index in the set."""
        num_polygons = 0
        if isinstance(segmentation, dict):
            self.run_lengths[len(self.image)] = segmentation
        elif segmentation:
            num_polygons = len(segmentation)
            for polygon in segmentation:
                self.points.extend(array('d', polygon))  # twice as fast as from a list
                self.polygon_ends.append(len(self.points))
        self.num_polygons.append(num_polygons)
        self.image.append(image)
        self.bbox.extend(array('d', bbox))
        self.area.append(area)
        self.is_crowd.append(is_crowd)
        self.is_ignored.append(is_ignored)
        self.num_bad_polygons.append(num_bad_polygons)
