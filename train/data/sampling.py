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
    of WINDOW, and the images are shuffled within a window, so that few files are read at a time. Still, an image may
    come anywhere in an epoch, any two may meet in a batch, and views are drawn for each image by itself. But two images
    of one shard are always in one window, so they meet more often; and those of a window come near each other.

    `sizes` are original (height, width) in px, `flip` is the probability of the mirrored view, `seed` is of this epoch.
    """
    generator = np.random.default_rng(seed)
    image_ids = np.array(sorted(sizes), dtype=np.int64)
    generator.shuffle(image_ids)
    mirrored = generator.random(len(image_ids)) < flip
    if shards is not None:
        windows = _windows([shards[one] for one in image_ids.tolist()], generator)
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
    """The share of process `rank`, from 0, of `size`: together they have each image once.

    Where there are fewer images than processes, some repeat one, which then has no weight, so that all take the step.
    """
    own = list(batch[rank::size])
    return Share(own, len(own) / len(batch)) if own else Share([batch[rank % len(batch)]], 0.0)


def evaluation_batches(padded: Mapping[int, Size], *, batch_size: int) -> list[list[Request]]:
    """Batches of images with one padded size, so that a prediction does not depend on its neighbours in the batch.

    `padded` is image id -> (height, width) of its network input, px.
    """
    groups: dict[Size, list[Request]] = {}
    for image_id, size in padded.items():
        groups.setdefault(size, []).append(Request(image_id, 'plain'))
    return [batch for group in groups.values() for batch in _chunks(group, batch_size)]


def _windows(shards: Sequence[Hashable], generator: np.random.Generator) -> np.ndarray:
    """The window of each image, given its shard: (N,) int64."""
    numbers: dict[Hashable, int] = {}
    # Numbered in the order in which the shuffled images name them, which is random but not uniform.
    of_image = np.array([numbers.setdefault(one, len(numbers)) for one in shards], dtype=np.int64)
    windows: np.ndarray = generator.permutation(len(numbers))[of_image] // WINDOW
    return windows


def _chunks(requests: Sequence[Request], size: int) -> list[list[Request]]:
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]
