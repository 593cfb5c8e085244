"""Checks COCO masks before pycocotools sees them.

pycocotools' C code trusts its input: a broken run-length string writes past its buffers, a polygon with a coordinate
of 1e9 px ends the process. Both come from annotation files, so both are refused here with an error.
"""

import math
from typing import Any

Segmentation = list[list[float]] | dict[str, Any]


def check_segmentation(segmentation: Any, *, height: int, width: int) -> Segmentation | None:
    """The mask of an object in an image of `height` x `width` px, or None where there is none that can be used.

    Polygons [[x, y, x, y, ...], ...] of fewer than three points are left out, as in mmdet. A run-length encoding is
    {'size': [height, width], 'counts': ...} with a list of run lengths or COCO's compressed string.

    Raises:
        ValueError: the mask is malformed.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, height, width)
        return segmentation
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError('segmentation is neither a list of polygons nor a run-length encoding')
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    limit = 2 * max(height, width)
    for polygon in polygons:
        if not math.isfinite(sum(polygon)) or min(polygon) < -limit or max(polygon) > limit:
            raise ValueError('segmentation has a polygon with a point that is not finite or lies far outside the image')
    return polygons or None


def decode_counts(counts: str) -> list[int]:
    """The run lengths that COCO's compressed string stands for.

    Each number is written in groups of 5 bits, lowest first, as characters from '0' on; 32 marks that more follow and
    16, in the last group, a negative number. From the fourth on, numbers are differences to the last but one.

    Raises:
        ValueError: the string has other characters or ends within a number.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        group = ord(character) - ord('0')
        if not 0 <= group < 64:
            raise ValueError(f'segmentation has the character {character!r} in its run lengths')
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError('segmentation has run lengths that end within a number')
    return runs


def _check_run_lengths(segmentation: dict[str, Any], height: int, width: int) -> None:
    size, counts = segmentation['size'], segmentation['counts']
    if size != [height, width]:
        raise ValueError(f'segmentation is of size {size!r:.80}, its image of size {[height, width]}')
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise ValueError('segmentation has run lengths that are not whole numbers from 0 on')
    if sum(runs) != height * width:
        raise ValueError(f'segmentation has run lengths that add up to {sum(runs)}, wanted {height} x {width}')
