"""The extraction itself: images in, teacher forward, codes out, shard group by shard group."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps, encode
from mtpd.cache.format.manifest import ViewName
from mtpd.cache.format.plan import ShardKey, SourceImage
from mtpd.cache.writing.shard_group import ShardGroup
from mtpd.detectors.teacher_heads import teacher_rois
from mtpd.heads.rois import ImageRois
from mtpd.system.console import progress_bar
from mtpd.system.interrupt import StopFlag
from mtpd.system.prefetch import BackgroundQueue, prefetched
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


class Sink(Protocol):
    """Where shard groups go: a `CacheWriter`, or a trial that writes nothing."""

    def bases(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The rotation of each level."""

    def start_group(self, key: ShardKey) -> ShardGroup:
        """An empty group."""

    def commit(self, group: ShardGroup) -> int:
        """Takes a full group; returns its bytes."""


def extract_groups(
    extraction: Extraction,
    sink: Sink,
    keys: Sequence[ShardKey],
    *,
    loading: Loading,
    stop: StopFlag,
    progress: 'Progress',
) -> None:
    """Runs the teacher over the shard groups `keys` and hands each to `sink` when it is full.

    When `stop` is set it finishes the group in hand and returns.
    """
    bases = sink.bases(partial(compute_bases, extraction)) if extraction.codec == 'lean' else {}
    bases = {name: basis.to(extraction.device) for name, basis in bases.items()}
    with (
        progress,
        closing(_loaded(extraction, keys, loading=loading)) as loaded,
        BackgroundQueue(depth=QUEUE_DEPTH) as queue,
    ):
        group: ShardGroup | None = None
        for batch, pixels in loaded:
            if group is None:
                if stop:
                    return
                group = sink.start_group(batch.key)
            for view in extraction.views:
                copies = _encode_view(extraction, batch, pixels, view=view, bases=bases)
                queue.submit(partial(copies.append_to, group, view=view))
            progress.advance(len(batch.images), is_stopping=bool(stop))
            if batch.is_last:
                queue.submit(partial(progress.commit, sink, group))
                group = None


def _encode_view(
    extraction: Extraction, batch: Batch, pixels: Sequence[Tensor], *, view: ViewName, bases: Mapping[str, Tensor]
) -> 'Copies':
    """The codes of one view of a batch, quantised on the device and on their way to the host."""
    padded = extraction.plan.by_name[batch.key.bucket].padded
    maps = view_maps(extraction, pixels, padded=padded, view=view)
    rois = _rois(extraction, batch, maps) if view == 'plain' else None
    encoded = {}
    for level in extraction.levels:
        codes = encode(maps[level.name], extraction.codec, target=extraction.target_error, basis=bases.get(level.name))
        encoded[level.name] = replace(codes, basis=None).to(torch.device('cpu'))
    if extraction.device.type != 'cuda':
        return Copies(encoded, rois, None)
    arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrival.record(torch.cuda.current_stream(extraction.device))
    return Copies(encoded, rois, arrival)


def _rois(extraction: Extraction, batch: Batch, maps: Mapping[str, Tensor]) -> list[ImageRois] | None:
    """The teacher's proposals, where the cache is to hold them."""
    record = extraction.description.rois
    if extraction.proposing_head is None or record is None:
        return None
    originals = [image.size for image in batch.images]
    return teacher_rois(
        extraction.teacher, extraction.proposing_head, maps, originals=originals, num_rois=record.num_rois
    )


@dataclass(frozen=True)
class Copies:
    """Maps on the host that a GPU may still be copying: such copies continue while the host does something else.

    Attributes:
        maps: level name -> codes; not to be looked at before the arrival.
        rois: the teacher's proposals of each image, if these go with the view; they are there.
        arrival: comes when all are there; None without a GPU.
    """

    maps: dict[str, EncodedMaps]
    rois: Sequence[ImageRois] | None
    arrival: torch.cuda.Event | None

    def append_to(self, group: ShardGroup, *, view: str) -> None:
        """Waits for the copies and compresses them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        group.append(view, self.maps)
        if self.rois is not None:
            group.append_rois(self.rois)


def _loaded(
    extraction: Extraction, keys: Sequence[ShardKey], *, loading: Loading
) -> Generator[tuple[Batch, list[Tensor]], None, None]:
    """Batches with their resized images uint8 (3, h, w), read ahead in threads."""

    def load(batch: Batch) -> tuple[Batch, list[Tensor]]:
        return batch, load_images(extraction, batch.images)

    planned = batches(extraction, keys, batch_size=loading.batch_size)
    return prefetched(load, planned, num_threads=loading.num_threads, depth=2 * loading.num_threads)


def batches(extraction: Extraction, keys: Sequence[ShardKey], *, batch_size: int) -> Iterator[Batch]:
    """The forward passes over the shard groups `keys`."""
    for key in keys:
        images = extraction.plan.images(key)
        for start in range(0, len(images), batch_size):
            yield Batch(key, images[start : start + batch_size], is_last=start + batch_size >= len(images))


class Progress:
    """The progress bar on stderr: images/s, MB/s on disk, time left; without `is_log` only on a terminal."""

    def __init__(self, num_images: int, *, done: int = 0, name: str, is_log: bool = True) -> None:
        self._bar = progress_bar(total=num_images, initial=done, unit='image', desc=name, smoothing=0.1, in_logs=is_log)
        self._bytes = 0

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, num_images: int, *, is_stopping: bool) -> None:
        """Counts images that the teacher has seen."""
        if is_stopping:
            self._bar.set_description('finishing this shard; press Ctrl-C again to stop immediately', refresh=False)
        self._bar.update(num_images)

    def commit(self, sink: Sink, group: ShardGroup) -> None:
        """Commits a full group and shows the rate of writing."""
        self._bytes += sink.commit(group)
        if self._bar.disable:
            return
        elapsed = self._bar.format_dict['elapsed']
        self._bar.set_postfix_str(f'{self._bytes / 1e6 / max(elapsed, 1e-9):.1f} MB/s', refresh=False)
