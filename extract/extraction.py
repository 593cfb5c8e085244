"""The extraction itself: images in, teacher forward, codes out, shard group by shard group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from mtpd.cache.codecs import EncodedMaps, encode
from mtpd.cache.plan import ShardKey, SourceImage
from mtpd.cache.shard_group import ShardGroup
from mtpd.cache.writer import CacheWriter
from mtpd.data.images import read_image
from mtpd.detectors.preprocessing import normalise
from mtpd.detectors.transforms import image_view
from mtpd.interrupt import StopFlag
from mtpd.prefetch import BackgroundQueue, prefetched
from mtpd_extract.build import Extraction

# Batches that wait to be compressed and written; with the shard group in hand this bounds the memory.
QUEUE_DEPTH = 4


@dataclass(frozen=True)
class Loading:
    """How images are read: images a forward pass, and threads that decode and resize them."""

    batch_size: int
    num_threads: int


@dataclass(frozen=True)
class Batch:
    """Images of one shard group, in row order; `is_last` closes the group."""

    key: ShardKey
    images: tuple[SourceImage, ...]
    is_last: bool


def extract_groups(
    extraction: Extraction, writer: CacheWriter, keys: Sequence[ShardKey], *, loading: Loading, stop: StopFlag
) -> None:
    """Runs the teacher over the shard groups `keys` and commits each when it is full.

    When `stop` is set it finishes the group in hand and returns.
    """
    device = next(extraction.teacher.module.parameters()).device
    progress = Progress(extraction, keys)
    with progress, BackgroundQueue(depth=QUEUE_DEPTH) as queue:
        group: ShardGroup | None = None
        for batch, images in _loaded(extraction, keys, loading=loading, stop=stop):
            group = group or writer.start_group(batch.key)
            padded = extraction.plan.by_name[batch.key.bucket].padded
            for view in extraction.views:
                encoded = _encode_view(extraction, images, view=view, padded=padded, device=device)
                queue.submit(partial(group.append, view, encoded))
            progress.advance(len(batch.images))
            if batch.is_last:
                queue.submit(partial(progress.commit, writer, group))
                group = None
        queue.wait()


def _encode_view(
    extraction: Extraction, images: Sequence[Tensor], *, view: str, padded: tuple[int, int], device: torch.device
) -> dict[str, EncodedMaps]:
    """The codes of one view of a batch, quantised on the device and brought to the host."""
    moved = [image.to(device, non_blocking=True) for image in images]
    if view == 'flip':
        moved = [image.flip(-1) for image in moved]
    maps = extraction.teacher.maps(
        normalise(moved, padded=padded, normalisation=extraction.teacher.preprocessing.normalisation)
    )
    encoded = {}
    for level in extraction.levels:
        codes = encode(maps[level.name], extraction.codec)
        encoded[level.name] = EncodedMaps(codes.codes.cpu(), None if codes.scale is None else codes.scale.cpu())
    return encoded


def _loaded(
    extraction: Extraction, keys: Sequence[ShardKey], *, loading: Loading, stop: StopFlag
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Batches with their resized images uint8 (3, h, w), read ahead in threads."""
    geometry = extraction.teacher.preprocessing.geometry

    def load(batch: Batch) -> tuple[Batch, list[Tensor]]:
        images = [read_image(extraction.paths[image.image_id], size=image.size) for image in batch.images]
        return batch, [image_view(image, geometry=geometry, view='plain') for image in images]

    batches = _batches(extraction, keys, batch_size=loading.batch_size, stop=stop)
    return prefetched(load, batches, num_threads=loading.num_threads, depth=2 * loading.num_threads)


def _batches(extraction: Extraction, keys: Sequence[ShardKey], *, batch_size: int, stop: StopFlag) -> Iterator[Batch]:
    for key in keys:
        if stop:
            return
        images = extraction.plan.images(key)
        for start in range(0, len(images), batch_size):
            yield Batch(key, images[start : start + batch_size], is_last=start + batch_size >= len(images))


class Progress:
    """The progress bar: images/s, MB/s on disk, time left."""

    def __init__(self, extraction: Extraction, keys: Sequence[ShardKey]) -> None:
        total = extraction.plan.num_images
        todo = sum(len(extraction.plan.images(key)) for key in keys)
        self._bar = tqdm(
            total=total, initial=total - todo, unit='image', desc='extract', mininterval=0.5, smoothing=0.1
        )
        self._bytes = 0

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, num_images: int) -> None:
        """Counts images that the teacher has seen."""
        self._bar.update(num_images)

    def commit(self, writer: CacheWriter, group: ShardGroup) -> None:
        """Commits a full group and shows the rate of writing."""
        self._bytes += writer.commit(group)
        elapsed = self._bar.format_dict['elapsed']
        self._bar.set_postfix_str(f'{self._bytes / 1e6 / max(elapsed, 1e-9):.1f} MB/s', refresh=False)
