"""What training and evaluation do not use of an annotation file, and what looks wrong in it, in messages."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from posixpath import normpath

from mtpd.data.coco import Box, CocoAnnotation, CocoImage, CocoSet, why_left_out
from mtpd.data.segmentation import Segmentation, mask_extent

MAX_EVALUATED_AREA = 1e10  # pycocotools' largest object, in px
# Boxes that leave the image are few and leave it by a little in a sound file; with corners for sizes nearly half do.
LEAST_BEYOND, SLACK = 0.1, 1.0  # share of the boxes; px
# Masks that hardly share their boxes are few in a sound file; some hundred of a file say whether it is one.
LEAST_ASIDE, LEAST_OVERLAP, NUM_MEASURED = 0.1, 0.5, 400
MOST_CROWDS = 0.5  # share of the annotations; COCO has one in a hundred


def training_account(coco: CocoSet) -> str | None:
    """How many objects training does not see, and why; None: it sees all of them."""
    found = [why_left_out(one, image) for image, one in _objects(coco)]
    reasons: Counter[str] = Counter(reason for reason in found if reason is not None)
    left_out = f'{sum(reasons.values())} of {len(found)} objects are ignored: {_listed(reasons)}'
    return _account(coco, [left_out] if reasons else [])


def nothing_to_train_on(coco: CocoSet) -> str:
    """Why no image has an object to train on."""
    reasons: Counter[str] = Counter(why_left_out(one, image) or 'crowds' for image, one in _objects(coco))
    listed = f'of its annotations {_listed(reasons)}' if reasons else 'it has no annotations'
    return '; '.join([listed, *suspicions(coco)])


def evaluation_account(coco: CocoSet, *, with_masks: bool) -> str | None:
    """What is odd about the objects that are to be found; None: nothing. pycocotools decides what counts.

    `with_masks`: the detector gives masks, too.
    """
    found: Counter[str] = Counter()
    for image, one in _objects(coco):
        if one.is_crowd:
            continue
        reason = why_left_out(one, image)
        if reason in ('without width or height', 'outside the image'):
            found[f'{reason}, which count as missed'] += 1
        elif not 0 <= one.area <= MAX_EVALUATED_AREA:
            found[f'with an area outside 0 to {MAX_EVALUATED_AREA:g} px, which are not counted'] += 1
        elif one.is_ignored:
            found['marked ignore, which are counted like the others'] += 1
        if with_masks and coco.has_masks and one.segmentation is None:
            found['without a mask, for which the box outline is used'] += 1
    num_objects = sum(map(len, coco.annotations.values()))
    parts = [f'of {num_objects} objects {_listed(found)}'] if found else []
    if all(one.is_crowd for _, one in _objects(coco)):
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
    num_objects = sum(map(len, coco.annotations.values()))
    num_crowds = sum(one.is_crowd for _, one in _objects(coco))
    if num_crowds > MOST_CROWDS * num_objects:
        found.append(
            f'{num_crowds} annotations, most of the file, are crowds, which detectors need not find; set iscrowd to 0 '
            'for single objects, such as masks that a label tool stores as run lengths'
        )
    if not num_objects:
        return found
    if all(0 <= value <= 1 for _, one in _objects(coco) for value in one.bbox):
        found.append(
            'no bbox has a value above 1: the boxes look normalized, expected [x, y, width, height] in px; '
            'multiply them by the width and height of their image'
        )
    elif _look_like_corners(coco, num_objects):
        found.append(
            'the values of bbox look like [x1, y1, x2, y2], since many boxes exceed their image otherwise; expected '
            '[x, y, width, height]: subtract x1, y1 from x2, y2'
        )
    elif line := _masks_aside(coco):
        found.append(line)
    return found


def _objects(coco: CocoSet) -> Iterator[tuple[CocoImage, CocoAnnotation]]:
    # Never held as a list: for a million pairs Python's garbage collector takes longer than reading the file.
    return ((image, one) for image in coco.images for one in coco.annotations[image.id])


def _masks_aside(coco: CocoSet) -> str | None:
    num_with_masks = sum(_can_be_measured(one) for _, one in _objects(coco))
    with_masks = ((image, one) for image, one in _objects(coco) if _can_be_measured(one))
    measured = list(islice(with_masks, None, None, max(1, num_with_masks // NUM_MEASURED)))
    aside = [image for image, one in measured if _overlap(one.box, image, one.segmentation or []) < LEAST_OVERLAP]
    if len(aside) < LEAST_ASIDE * len(measured) or not aside:
        return None
    return (
        f'{len(aside)} of {len(measured)} compared masks hardly overlap their boxes, the first in '
        f'{aside[0].file_name}: expected bbox [x, y, width, height] and segmentation in px of the same image; '
        'check their units, image size and order'
    )


def _can_be_measured(annotation: CocoAnnotation) -> bool:
    return bool(annotation.segmentation) and not annotation.is_crowd and min(annotation.bbox[2:]) > 0


def _overlap(box: Box, image: CocoImage, segmentation: Segmentation) -> float:
    """Intersection over union of a box and the extent of its mask, each a little larger than stated."""
    extent = mask_extent(segmentation, height=image.height, width=image.width)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        (x1 - SLACK, y1 - SLACK, x2 + SLACK, y2 + SLACK) for x1, y1, x2, y2 in (box, extent)
    )
    common = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    return common / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common)


def _look_like_corners(coco: CocoSet, num_objects: int) -> bool:
    num_beyond = 0
    for image, one in _objects(coco):
        x, y, third, fourth = one.bbox
        if not (x < third <= image.width + SLACK and y < fourth <= image.height + SLACK):
            return False
        num_beyond += x + third > image.width + SLACK or y + fourth > image.height + SLACK
    return num_beyond >= LEAST_BEYOND * num_objects


def _account(coco: CocoSet, parts: list[str]) -> str | None:
    num_repeated = sum(
        count - 1
        for image in coco.images
        for count in Counter(
            (one.category, one.bbox) for one in coco.annotations[image.id] if not one.is_crowd
        ).values()
    )
    if num_repeated:
        parts.append(
            f'{num_repeated} objects repeat an earlier one (same image, category and bbox) and are counted again'
        )
    num_polygons = sum(one.num_bad_polygons for _, one in _objects(coco))
    if num_polygons:
        parts.append(f'{num_polygons} polygons are ignored: fewer than 3 points, or an odd number of values')
    return f'{coco.path}: {"; ".join(parts)}' if parts else None


def _listed(reasons: Counter[str]) -> str:
    return ', '.join(f'{count} {reason}' for reason, count in reasons.most_common())
