"""Which images form which batch: pure functions of a seed."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtpd.detectors.samples import View
from mtpd.geometry import Size

# Shards whose images are shuffled together where shards are given.
WINDOW = 8


class Request(NamedTuple):
    """One view of one image."""

    image_id: int
    view: View


def training_batches(
    padded: Mapping[int, Size],
    *,
    batch_size: int,
    flip: float,
    seed: Sequence[int],
    shards: Mapping[int, Hashable] | None = None,
) -> list[list[Request]]:
    """One epoch of shuffled batches: every image once, `num_batches` batches, one of which may be smaller.

    The images of a batch have the same size in `padded`, image id -> (height, width) of its own input in px, or that of
    a neighbour by aspect ratio where those of one size do not fill a batch: a batch is padded to its largest image.
    Which images of a size meet, and the order of the batches, is random.

    With `shards` (image id -> the shard that its maps are read from), every epoch distributes these again over windows
    of WINDOW, and images and batches are shuffled within a window, so that few files are read at a time. An image may
    come anywhere in an epoch, but images of one shard meet in a batch more often than others.

    `flip` is the probability of the mirrored view, `seed` is of this epoch.
    """
    generator = np.random.default_rng(seed)
    image_ids = np.array(sorted(padded), dtype=np.int64)
    generator.shuffle(image_ids)
    mirrored = generator.random(len(image_ids)) < flip
    windows = np.zeros(len(image_ids), dtype=np.int64)
    if shards is not None:
        # Numbered in the order in which the shuffled images name them, which is random but not uniform.
        numbers: dict[Hashable, int] = {}
        of_image = [numbers.setdefault(shards[one], len(numbers)) for one in image_ids.tolist()]
        windows = generator.permutation(len(numbers))[np.array(of_image, dtype=np.int64)] // WINDOW
    heights, widths = np.array([padded[one] for one in image_ids.tolist()], dtype=np.int64).reshape(-1, 2).T
    # A stable sort: images of one size stay shuffled.
    order = np.lexsort((heights, heights / widths, windows))
    lengths = np.full(num_batches(len(image_ids), batch_size), batch_size)
    # Else the images of the last size would always be those of the smaller batch, in which each counts more.
    lengths[generator.integers(len(lengths))] -= lengths.sum() - len(image_ids)
    ends = np.cumsum(lengths)
    requests = [
        Request(one, 'flip' if flipped else 'plain')
        for one, flipped in zip(image_ids[order].tolist(), mirrored[order].tolist(), strict=True)
    ]
    sequence = np.lexsort((generator.permutation(len(ends)), windows[order][ends - lengths]))
    return [requests[ends[one] - lengths[one] : ends[one]] for one in sequence]


def num_batches(num_images: int, batch_size: int) -> int:
    """Batches of an epoch."""
    return -(-num_images // batch_size)


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
