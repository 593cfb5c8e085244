"""What training and evaluation do not use of an annotation file, and what looks wrong in it, in messages."""

from collections import Counter
from collections.abc import Sequence
from posixpath import normpath

import numpy as np

from mtpd.data.annotation_table import AnnotationTable, Box
from mtpd.data.coco import LEFT_OUT, CocoSet
from mtpd.data.segmentation import Segmentation, mask_extent

MAX_EVALUATED_AREA = 1e10  # pycocotools' largest object, in px
# Boxes that leave the image are few and leave it by a little in a sound file; with corners for sizes nearly half do.
LEAST_BEYOND, SLACK = 0.1, 1.0  # share of the boxes; px
# Masks that hardly share their boxes are few in a sound file; some hundred of a file say whether it is one.
LEAST_ASIDE, LEAST_OVERLAP, NUM_MEASURED = 0.1, 0.5, 400
MOST_CROWDS = 0.5  # share of the annotations; COCO has one in a hundred


def training_account(coco: CocoSet) -> str | None:
    """How many objects training does not see, and why; None: it sees all of them."""
    reasons = _counted(coco.left_out, LEFT_OUT)
    left_out = f'{sum(reasons.values())} of {coco.left_out.size} objects are ignored: {_listed(reasons)}'
    return _account(coco, [left_out] if reasons else [])


def nothing_to_train_on(coco: CocoSet) -> str:
    """Why no image has an object to train on."""
    reasons = _counted(coco.left_out, ('crowds', *LEFT_OUT[1:]))
    listed = f'of its annotations {_listed(reasons)}' if reasons else 'it has no annotations'
    return '; '.join([listed, *suspicions(coco)])


def evaluation_account(coco: CocoSet, *, with_masks: bool) -> str | None:
    """What is odd about the objects that are to be found; None: nothing. pycocotools decides what counts.

    `with_masks`: the detector gives masks, too.
    """
    table = coco.annotations
    missed = ('without width or height', 'outside the image')
    names = [
        '',
        *(f'{reason}, which count as missed' for reason in missed),
        f'with an area outside 0 to {MAX_EVALUATED_AREA:g} px, which are not counted',
        'marked ignore, which are counted like the others',
    ]
    # In the order in which they are asked: an object is counted once.
    is_odd = [
        *(coco.left_out == LEFT_OUT.index(reason) for reason in missed),
        (table.area < 0) | (table.area > MAX_EVALUATED_AREA),
        table.is_ignored,
    ]
    found = _counted(np.select(is_odd, range(1, len(names)))[~table.is_crowd], names)
    if with_masks and coco.has_masks and (num_without := int((~table.is_crowd & ~table.has_mask).sum())):
        found['without a mask, for which the box outline is used'] = num_without
    parts = [f'of {table.area.size} objects {_listed(found)}'] if found else []
    if table.is_crowd.all():
        parts.append('all objects are crowds, so there is no AP')
    if with_masks and not coco.has_masks:
        parts.append('no object has a mask, so masks are not evaluated')
    return _account(coco, parts)


def suspicions(coco: CocoSet) -> list[str]:
    """Likely mistakes in the whole file, one line each with the next step."""
    found = []
    names = Counter(normpath(image.file_name) for image in coco.images)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        found.append(
            f'{len(repeated)} image files are listed under several image ids, the first is {repeated[0]}: each counts '
            'as a separate image; merge their records'
        )
    table = coco.annotations
    num_objects, num_crowds = table.area.size, int(table.is_crowd.sum())
    if num_crowds > MOST_CROWDS * num_objects:
        found.append(
            f'{num_crowds} annotations, most of the file, are crowds, which detectors need not find; set iscrowd to 0 '
            'for single objects, such as masks that a label tool stores as run lengths'
        )
    if not num_objects:
        return found
    if ((table.bbox >= 0) & (table.bbox <= 1)).all():
        found.append(
            'no bbox has a value above 1: the boxes look normalized, expected [x, y, width, height] in px; '
            'multiply them by the width and height of their image'
        )
    elif _look_like_corners(coco):
        found.append(
            'the values of bbox look like [x1, y1, x2, y2], since many boxes exceed their image otherwise; expected '
            '[x, y, width, height]: subtract x1, y1 from x2, y2'
        )
    elif line := _masks_aside(coco):
        found.append(line)
    return found


def _masks_aside(coco: CocoSet) -> str | None:
    table = coco.annotations
    rows = np.flatnonzero(table.has_mask & ~table.is_crowd & (table.bbox[:, 2:] > 0).all(axis=1))
    measured = rows[:: max(1, rows.size // NUM_MEASURED)].tolist()
    aside = [row for row in measured if _is_aside(table, row)]
    if len(aside) < LEAST_ASIDE * len(measured) or not aside:
        return None
    return (
        f'{len(aside)} of {len(measured)} compared masks hardly overlap their boxes, the first in '
        f'{table.images[table.image[aside[0]]].file_name}: expected bbox [x, y, width, height] and segmentation in px '
        'of the same image; check their units, image size and order'
    )


def _is_aside(table: AnnotationTable, row: int) -> bool:
    one = table.annotation(row)
    return _overlap(one.box, one.segmentation or []) < LEAST_OVERLAP


def _overlap(box: Box, segmentation: Segmentation) -> float:
    """Intersection over union of a box and the extent of its mask, each a little larger than stated."""
    extent = mask_extent(segmentation)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        (x1 - SLACK, y1 - SLACK, x2 + SLACK, y2 + SLACK) for x1, y1, x2, y2 in (box, extent)
    )
    common = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    return common / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common)


def _look_like_corners(coco: CocoSet) -> bool:
    table = coco.annotations
    x, y, third, fourth = table.bbox.T
    if not ((x < third) & (y < fourth)).all():  # what follows takes memory
        return False
    height, width = np.array([(one.height, one.width) for one in table.images]).T[:, table.image] + SLACK
    if not ((third <= width) & (fourth <= height)).all():
        return False
    return bool(((x + third > width) | (y + fourth > height)).mean() >= LEAST_BEYOND)


def _account(coco: CocoSet, parts: list[str]) -> str | None:
    table = coco.annotations
    keys = [table.is_crowd, table.image, table.category, *table.bbox.T]
    order = np.lexsort(keys)
    is_repeated = ~table.is_crowd[order[1:]]
    for key in keys:
        in_order = key[order]
        is_repeated &= in_order[1:] == in_order[:-1]
    if num_repeated := int(is_repeated.sum()):
        parts.append(
            f'{num_repeated} objects repeat an earlier one (same image, category and bbox) and are counted again'
        )
    if num_polygons := int(table.num_bad_polygons.sum()):
        parts.append(f'{num_polygons} polygons are ignored: fewer than 3 points, or an odd number of values')
    return f'{coco.path}: {"; ".join(parts)}' if parts else None


def _counted(numbers: np.ndarray, names: Sequence[str]) -> Counter[str]:
    """How often each number that has a name occurs, by that name."""
    counts = np.bincount(numbers, minlength=len(names)).tolist()
    return Counter({name: count for name, count in zip(names, counts, strict=True) if name and count})


def _listed(reasons: Counter[str]) -> str:
    return ', '.join(f'{count} {reason}' for reason, count in reasons.most_common())
