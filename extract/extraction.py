"""The extraction itself: images in, teacher forward, codes out, shard group by shard group."""

import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from mtpd.cache.codecs import EncodedMaps, encode
from mtpd.cache.manifest import ViewName
from mtpd.cache.parts import Part
from mtpd.cache.plan import ShardKey, SourceImage
from mtpd.cache.shard_group import ShardGroup
from mtpd.cache.writer import CacheWriter
from mtpd.interrupt import StopFlag
from mtpd.prefetch import BackgroundQueue, prefetched
from mtpd_extract.build import Extraction
from mtpd_extract.calibration import compute_bases
from mtpd_extract.forward import load_images, view_maps

# Views of batches that wait to be compressed and written; with the shard group in hand this bounds the memory.
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
    bases = writer.bases(partial(compute_bases, extraction)) if extraction.codec == 'lean' else {}
    bases = {name: basis.to(extraction.device) for name, basis in bases.items()}
    progress = Progress(extraction, keys, total=writer.share(), part=writer.part)
    with (
        progress,
        closing(_loaded(extraction, keys, loading=loading)) as batches,
        BackgroundQueue(depth=QUEUE_DEPTH) as queue,
    ):
        group: ShardGroup | None = None
        for batch, pixels in batches:
            if group is None:
                if stop:
                    return
                group = writer.start_group(batch.key)
            for view in extraction.views:
                queue.submit(
                    partial(group.append, view, _encode_view(extraction, batch, pixels, view=view, bases=bases))
                )
            progress.advance(len(batch.images), is_stopping=bool(stop))
            if batch.is_last:
                queue.submit(partial(progress.commit, writer, group))
                group = None


def _encode_view(
    extraction: Extraction, batch: Batch, pixels: Sequence[Tensor], *, view: ViewName, bases: Mapping[str, Tensor]
) -> dict[str, EncodedMaps]:
    """The codes of one view of a batch, quantised on the device and brought to the host."""
    padded = extraction.plan.by_name[batch.key.bucket].padded
    maps = view_maps(extraction, pixels, padded=padded, view=view)
    encoded = {}
    for level in extraction.levels:
        codes = encode(maps[level.name], extraction.codec, target=extraction.target_error, basis=bases.get(level.name))
        encoded[level.name] = replace(codes, basis=None).to(torch.device('cpu'))
    return encoded


def _loaded(
    extraction: Extraction, keys: Sequence[ShardKey], *, loading: Loading
) -> Generator[tuple[Batch, list[Tensor]], None, None]:
    """Batches with their resized images uint8 (3, h, w), read ahead in threads."""

    def load(batch: Batch) -> tuple[Batch, list[Tensor]]:
        return batch, load_images(extraction, batch.images)

    batches = _batches(extraction, keys, batch_size=loading.batch_size)
    return prefetched(load, batches, num_threads=loading.num_threads, depth=2 * loading.num_threads)


def _batches(extraction: Extraction, keys: Sequence[ShardKey], *, batch_size: int) -> Iterator[Batch]:
    for key in keys:
        images = extraction.plan.images(key)
        for start in range(0, len(images), batch_size):
            yield Batch(key, images[start : start + batch_size], is_last=start + batch_size >= len(images))


class Progress:
    """The progress bar on stderr: images/s, MB/s on disk, time left."""

    def __init__(
        self, extraction: Extraction, keys: Sequence[ShardKey], *, total: Sequence[ShardKey], part: Part
    ) -> None:
        num_images = sum(len(extraction.plan.images(key)) for key in total)
        todo = sum(len(extraction.plan.images(key)) for key in keys)
        # A log file gets few lines, a terminal a moving bar.
        interval = 0.5 if sys.stderr.isatty() else 10
        self._bar = tqdm(
            total=num_images,
            initial=num_images - todo,
            unit='image',
            desc='extract' if part.is_whole else f'part {part}',
            mininterval=interval,
            smoothing=0.1,
        )
        self._bytes = 0

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, num_images: int, *, is_stopping: bool) -> None:
        """Counts images that the teacher has seen."""
        if is_stopping:
            self._bar.set_description('finishing this shard; Ctrl-C again stops at once', refresh=False)
        self._bar.update(num_images)

    def commit(self, writer: CacheWriter, group: ShardGroup) -> None:
        """Commits a full group and shows the rate of writing."""
        self._bytes += writer.commit(group)
        elapsed = self._bar.format_dict['elapsed']
        self._bar.set_postfix_str(f'{self._bytes / 1e6 / max(elapsed, 1e-9):.1f} MB/s', refresh=False)
