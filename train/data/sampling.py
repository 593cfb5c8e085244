"""Which images form which batch: pure functions of a seed."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtpd.detectors.transforms import View
from mtpd.geometry import Size

# Shards whose images are shuffled together where shards are given.
WINDOW = 8


class Request(NamedTuple):
    """One view of one image."""

    image_id: int
    view: View


def training_batches(
    sizes: Mapping[int, Size],
    *,
    batch_size: int,
    flip: float,
    seed: Sequence[int],
    shards: Mapping[int, Hashable] | None = None,
) -> list[list[Request]]:
    """One epoch of shuffled batches. Their number does not depend on the seed.

    Landscape and portrait images are batched apart, as mmdet does, since a mixed batch is padded to a square. Images
    left over when an epoch ends fill the last batches together.

    With `shards` (image id -> the shard that its maps are read from), every epoch distributes these again over windows
    of WINDOW, and the images are shuffled within a window, so that few files are read at a time. An image may come
    anywhere in an epoch, but images of one shard meet in a batch more often than others.

    `sizes` are original (height, width) in px, `flip` is the probability of the mirrored view, `seed` is of this epoch.
    """
    generator = np.random.default_rng(seed)
    image_ids = np.array(sorted(sizes), dtype=np.int64)
    generator.shuffle(image_ids)
    mirrored = generator.random(len(image_ids)) < flip
    if shards is not None:
        # Numbered in the order in which the shuffled images name them, which is random but not uniform.
        numbers: dict[Hashable, int] = {}
        of_image = [numbers.setdefault(shards[one], len(numbers)) for one in image_ids.tolist()]
        windows = generator.permutation(len(numbers))[np.array(of_image, dtype=np.int64)] // WINDOW
        # A stable sort: within a window the images stay shuffled.
        image_ids = image_ids[np.argsort(windows, kind='stable')]
    batches: list[list[Request]] = []
    open_batches: dict[bool, list[Request]] = {False: [], True: []}
    for image_id, flipped in zip(image_ids.tolist(), mirrored.tolist(), strict=True):
        height, width = sizes[image_id]
        batch = open_batches[height > width]
        batch.append(Request(image_id, 'flip' if flipped else 'plain'))
        if len(batch) == batch_size:
            batches.append(batch.copy())
            batch.clear()
    rest = open_batches[False] + open_batches[True]
    return batches + _chunks(rest, batch_size)


class Share(NamedTuple):
    """What one of several processes has of a batch."""

    requests: list[Request]
    weight: float  # their share of all images of the batch


def share_of(batch: Sequence[Request], *, rank: int, size: int) -> Share:
    """The share of process `rank`, from 0, of `size`: each image once, or repeated without weight if there are few."""
    own = list(batch[rank::size])
    return Share(own, len(own) / len(batch)) if own else Share([batch[rank % len(batch)]], 0.0)


def evaluation_batches(padded: Mapping[int, Size], *, batch_size: int) -> list[list[Request]]:
    """Batches of images with one size in `padded` (px), so that a prediction does not depend on its neighbours."""
    groups: dict[Size, list[Request]] = {}
    for image_id, size in padded.items():
        groups.setdefault(size, []).append(Request(image_id, 'plain'))
    return [batch for group in groups.values() for batch in _chunks(group, batch_size)]


def _chunks(requests: Sequence[Request], size: int) -> list[list[Request]]:
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]
