"""A trial on a few batches: how fast this extraction is here, and how well its codes compress.

The batches go the way of a real run (read, resize, forward, encode, copy, compress, checksum, hash); only that nothing
is written.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from torch import Tensor

from mtpd.cache.format import arrays
from mtpd.cache.format.plan import Bucket, CachePlan, ShardKey
from mtpd.cache.format.shard import index_bytes
from mtpd.cache.writing.shard_group import ShardGroup
from mtpd.cache.writing.writer import MAX_COMPRESSORS
from mtpd.system.files import sha256_bytes
from mtpd.system.interrupt import StopFlag
from mtpd_extract.build import Extraction
from mtpd_extract.calibration import NUM_IMAGES as NUM_BASIS_IMAGES
from mtpd_extract.extraction import Batch, Loading, Progress, batches, extract_groups

NUM_IMAGES = 32
MIN_BATCHES = 4


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        num_images: that it ran over, each in all views.
        seconds_per_pixel: of padded input, for all views of it; reading and compressing go on beside the teacher.
        bytes_per_element: level name -> compressed bytes of a code.
        bases_seconds: what the channel statistics of `lean` take before the first shard.
    """

    num_images: int
    seconds_per_pixel: float
    bytes_per_element: Mapping[str, float]
    bases_seconds: float


def run_trial(extraction: Extraction, loading: Loading) -> Trial:
    """Runs a first batch to warm up, then `NUM_IMAGES` images (`MIN_BATCHES` batches, if those hold more) on the clock.

    The batches are ones of the real run, at equal distances in its order, so that every padded shape, and batches that
    are not full, have their share.

    Raises:
        InputError: an image cannot be read, or the teacher gives what cannot be stored.
    """
    everything = list(batches(extraction, extraction.plan.shard_keys(), batch_size=loading.batch_size))
    number = min(len(everything), max(MIN_BATCHES, math.ceil(NUM_IMAGES / loading.batch_size)))
    sample = _only(extraction, [everything[i * len(everything) // number] for i in range(number)], loading)
    with ThreadPoolExecutor(min(MAX_COMPRESSORS, os.cpu_count() or 1), thread_name_prefix='compress') as compressors:
        sink = _Sink(sample, compressors)
        _run(_only(extraction, everything[:1], loading), sink, loading, name='warm-up')
        sink.sizes.clear()
        start = time.perf_counter()
        _run(sample, sink, loading, name='trial')
        seconds = time.perf_counter() - start
    seconds_per_pixel = seconds / num_pixels(sample.plan)
    mean_pixels = num_pixels(sample.plan) / sample.plan.num_images
    num_basis_images = min(NUM_BASIS_IMAGES, extraction.plan.num_images) if extraction.codec == 'lean' else 0
    return Trial(
        num_images=sample.plan.num_images,
        seconds_per_pixel=seconds_per_pixel,
        bytes_per_element=_bytes_per_element(sample, sink.sizes),
        bases_seconds=num_basis_images * mean_pixels * seconds_per_pixel / len(extraction.views),
    )


def num_pixels(plan: CachePlan) -> int:
    """Padded input pixels of one view of all images."""
    return sum(math.prod(bucket.padded) * len(bucket.images) for bucket in plan.buckets)


def _only(extraction: Extraction, sample: Sequence[Batch], loading: Loading) -> Extraction:
    """The extraction of these batches alone, a shard group for each."""
    images: dict[str, list[Batch]] = {}
    for batch in sample:
        images.setdefault(batch.key.bucket, []).append(batch)
    buckets = [
        Bucket(
            extraction.plan.by_name[name].padded,
            tuple(image for batch in group for image in batch.images),
            loading.batch_size,
        )
        for name, group in images.items()
    ]
    return replace(extraction, plan=CachePlan(tuple(buckets)))


def _run(extraction: Extraction, sink: '_Sink', loading: Loading, *, name: str) -> None:
    sink.plan = extraction.plan
    keys = extraction.plan.shard_keys()
    progress = Progress(extraction.plan.num_images, name=name, is_log=False)
    extract_groups(extraction, sink, keys, loading=loading, stop=StopFlag(), progress=progress)


def _bytes_per_element(sample: Extraction, sizes: Mapping[tuple[ShardKey, str], int]) -> dict[str, float]:
    elements = dict.fromkeys((level.name for level in sample.levels), 0)
    stored = dict(elements)
    for (key, file), num_bytes in sizes.items():
        place = arrays.file_place(file)
        if place is not None and place.array in stored:
            bucket = sample.plan.by_name[key.bucket]
            level = next(level for level in sample.levels if level.name == place.array)
            elements[level.name] += len(bucket.rows(key.shard)) * level.channels * math.prod(level.grid(*bucket.padded))
            stored[level.name] += num_bytes - index_bytes(bucket.rows_per_shard)
    return {name: stored[name] / elements[name] for name in stored}


class _Sink:
    """Takes shard groups as a `CacheWriter` does, and keeps the sizes of their files."""

    def __init__(self, extraction: Extraction, compressors: ThreadPoolExecutor) -> None:
        self.plan = extraction.plan
        self.sizes: dict[tuple[ShardKey, str], int] = {}
        self._extraction = extraction
        self._compressors = compressors
        self._bases: dict[str, Tensor] | None = None

    def bases(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        if self._bases is None:
            self._bases = dict(compute())
        return self._bases

    def start_group(self, key: ShardKey) -> ShardGroup:
        one = self._extraction
        bucket = self.plan.by_name[key.bucket]
        return ShardGroup(
            bucket=bucket,
            key=key,
            views=one.views,
            levels=one.levels,
            codec=one.codec,
            compressors=self._compressors,
            rois=one.description.rois,
        )

    def commit(self, group: ShardGroup) -> int:
        total = 0
        for name, content in group.files():
            sha256_bytes(content)
            self.sizes[group.key, name] = len(content)
            total += len(content)
        return total
