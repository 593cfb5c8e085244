"""Which images form which batch: pure functions of a seed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtpd.detectors.transforms import View
from mtpd.geometry import Size


class Request(NamedTuple):
    """One view of one image."""

    image_id: int
    view: View


def training_batches(
    sizes: Mapping[int, Size], *, batch_size: int, flip: float, seed: Sequence[int]
) -> list[list[Request]]:
    """One epoch of shuffled batches. Their number does not depend on the seed.

    Landscape and portrait images are batched apart, as mmdet does, since a mixed batch is padded to a square. Images
    left over when an epoch ends fill the last batches together.

    Args:
        sizes: image id -> original (height, width), px.
        batch_size: images a batch; the last may be smaller.
        flip: probability of the mirrored view.
        seed: of this epoch.
    """
    generator = np.random.default_rng(seed)
    image_ids = np.array(sorted(sizes), dtype=np.int64)
    generator.shuffle(image_ids)
    mirrored = generator.random(len(image_ids)) < flip
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


def evaluation_batches(padded: Mapping[int, Size], *, batch_size: int) -> list[list[Request]]:
    """Batches of images with one padded size, so that a prediction does not depend on its neighbours in the batch.

    Args:
        padded: image id -> (height, width) of its network input, px.
        batch_size: images a batch.
    """
    groups: dict[Size, list[Request]] = {}
    for image_id, size in padded.items():
        groups.setdefault(size, []).append(Request(image_id, 'plain'))
    return [batch for group in groups.values() for batch in _chunks(group, batch_size)]


def _chunks(requests: Sequence[Request], size: int) -> list[list[Request]]:
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]
