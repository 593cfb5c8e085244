"""Checks COCO masks before pycocotools sees them, and measures what passed.

pycocotools' C code trusts its input: a broken run-length string writes past its buffers, a polygon with a coordinate
of 1e9 px ends the process. Both come from annotation files, so both are refused here with an error.
"""

import math
from typing import Any

from pycocotools import mask as rle

from mtpd.data.records import shown

Polygons = list[list[float]]
Segmentation = Polygons | dict[str, Any]

MAX_COUNT_BITS = 40  # of a run length, far above that of the largest image
WANTED = 'expected polygons [[x, y, x, y, ...], ...] of numbers in px, or a run-length encoding'


def check_segmentation(segmentation: Any, *, height: int, width: int) -> tuple[Segmentation | None, int]:
    """The mask of an object in an image of `height` x `width` px, and how many of its polygons are left out.

    The mask is None where there is none that can be used: null, [], {}, '', or no polygon that is one. Polygons
    [[x, y, x, y, ...], ...] of fewer than three points or with an odd number of values are left out, as in mmdet. A
    run-length encoding is {'size': [height, width], 'counts': ...} with a list of run lengths or COCO's compressed
    string. Raises ValueError for malformed masks.
    """
    if segmentation is None or segmentation in ([], {}, ''):
        return None, 0
    if isinstance(segmentation, dict):
        return _check_run_lengths(segmentation, height, width), 0
    if not isinstance(segmentation, list):
        raise ValueError(f'segmentation is {shown(segmentation)}, {WANTED}')
    _check_polygons(segmentation, limit=2 * max(height, width))
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return polygons or None, len(segmentation) - len(polygons)


def mask_area(segmentation: Segmentation, *, height: int, width: int) -> float:
    """Number of pixels of a checked mask, as COCO's own `area`."""
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation['counts'], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    return float(rle.area(encoded))


def mask_extent(segmentation: Segmentation, *, height: int, width: int) -> tuple[float, float, float, float]:
    """The box (x1, y1, x2, y2) around a checked mask, in px; zeros where it is empty."""
    if isinstance(segmentation, list):
        columns, rows = ([value for one in segmentation for value in one[start::2]] for start in (0, 1))
        return min(columns), min(rows), max(columns), max(rows)
    encoded = segmentation
    if isinstance(segmentation['counts'], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    x, y, columns_inside, rows_inside = map(float, rle.toBbox(encoded))
    return x, y, x + columns_inside, y + rows_inside


def box_outline(box: tuple[float, float, float, float], *, height: int, width: int) -> Polygons:
    """The part of a box (x1, y1, x2, y2) in the image, as a polygon: the mask of an object that has no other."""
    x1, x2 = (min(max(x, 0.0), float(width)) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), float(height)) for y in (box[1], box[3]))
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def decode_counts(counts: str) -> list[int]:
    """The run lengths that COCO's compressed string stands for.

    Each number is written in groups of 5 bits, lowest first, as characters from '0' on; 32 marks that more follow and
    16, in the last group, a negative number. From the fourth on, numbers are differences to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        group = ord(character) - ord('0')
        if not 0 <= group < 64:
            raise ValueError(
                f'segmentation: counts has the character {character!r}, which is not valid in compressed run lengths'
            )
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            if shift > MAX_COUNT_BITS:
                raise ValueError('segmentation: counts has a number larger than any image')
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError('segmentation: counts ends within a number')
    return runs


def _check_polygons(polygons: list[Any], *, limit: int) -> None:
    for index, polygon in enumerate(polygons):
        if not isinstance(polygon, list):
            raise ValueError(f'segmentation[{index}] is {shown(polygon)}, {WANTED}')
        if not {*map(type, polygon)} <= {int, float}:
            place, value = next((i, one) for i, one in enumerate(polygon) if type(one) not in (int, float))
            raise ValueError(f'segmentation[{index}][{place}] is {shown(value)}, {WANTED}')
        # A NaN is within no limits, but min and max may pass over it.
        if polygon and not (-limit <= min(polygon) and max(polygon) <= limit and not math.isnan(sum(polygon))):
            place, value = next((i, one) for i, one in enumerate(polygon) if not -limit <= one <= limit)
            raise ValueError(
                f'segmentation[{index}][{place}] is {shown(value)}: a point that is not finite or far outside the '
                f'image, {WANTED}'
            )
    if len(polygons) > 2 and all(len(polygon) == 2 for polygon in polygons):
        raise ValueError(f'segmentation is {shown(polygons)}, a list of points [x, y]; {WANTED}')


def _check_run_lengths(segmentation: dict[str, Any], height: int, width: int) -> Segmentation:
    for key in ('size', 'counts'):
        if key not in segmentation:
            raise ValueError(f"segmentation: {key!r} is missing; {WANTED} {{'size': [height, width], 'counts': ...}}")
    size, counts = segmentation['size'], segmentation['counts']
    if not isinstance(size, list) or bool in map(type, size) or size != [height, width]:
        raise ValueError(f'segmentation: size is {shown(size)}, expected the size of its image, {[height, width]}')
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not {*map(type, runs)} <= {int} or min(runs, default=0) < 0:
        raise ValueError(
            f'segmentation: counts is {shown(counts)}, expected run lengths: non-negative whole numbers, or '
            'a compressed string'
        )
    if sum(runs) != height * width:
        raise ValueError(
            f'segmentation: counts has run lengths that add up to {shown(sum(runs))}, expected {height} x {width}'
        )
    return {'size': [height, width], 'counts': counts}
