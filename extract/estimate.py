"""Estimates the disk space and the time of an extraction, from its plan and from a trial on a few of its batches.

The batches of the trial take all steps of a real run (read, resize, forward, encode, copy, compress, checksum, hash),
but nothing is written.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec, compressed_bound, index_bytes, roi_specs
from mtpd.cache.format.plan import Bucket, BucketRecord, CachePlan, ShardKey, SourceImage, num_elements
from mtpd.cache.format.tensor_files import max_basis_bytes
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.cache.writing.writer import ShardGroup, compression_threads
from mtpd.data.coco import spread
from mtpd.errors import UnavailableError
from mtpd.geometry import Size
from mtpd.system.console import progress_bar, warn
from mtpd.system.files import free_bytes, sha256_bytes
from mtpd.system.interrupt import StopFlag
from mtpd.system.text import format_bytes, format_duration
from mtpd_extract.extraction import NUM_BASIS_IMAGES, Batch, Extraction, batches, compute_bases, extract_groups

# Images of a trial, and its least number of batches.
NUM_IMAGES, MIN_BATCHES = 32, 4
# What images may compress worse than those of a trial.
TRIAL_MARGIN = 1.1
# What a file or a folder takes at least on common file systems.
BLOCK_BYTES = 4096
# A file's line in the manifest, beside its name, and the most of its lines in the journal and in the manifest.
RECORD_BYTES, MAX_RECORD_BYTES = 128, 1024
# Kept free for other writers to the disk.
MARGIN_BYTES = 64 * 2**20
NUM_COCO_IMAGES = 118_287
# The sizes (height, width) in px that came up more than once among 123 images of COCO 2017, and how often. The mean
# padded area at 1333x800 of these 84 is that of the 123 within 0.2 %.
COCO_SIZES: Mapping[Size, int] = {
    (480, 640): 25, (427, 640): 16, (640, 480): 9, (375, 500): 5, (426, 640): 5, (428, 640): 4, (640, 427): 4,
    (334, 500): 3, (425, 640): 3, (640, 621): 2, (429, 640): 2, (333, 500): 2, (500, 375): 2, (640, 426): 2,
}  # fmt: skip

# Level name -> compressed bytes of a code.
CodeBytes = Mapping[str, float]


@dataclass(frozen=True)
class Rates:
    """What a trial has measured, on `num_images` in all their views.

    `seconds_per_pixel` is of padded input, for all views of it; images are read and codes compressed concurrently.
    `bases_seconds` is what the channel statistics of `lean` take before the first shard.
    """

    num_images: int
    seconds_per_pixel: float
    code_bytes: CodeBytes
    bases_seconds: float


@dataclass(frozen=True)
class Prediction:
    """Bytes of all files, and the time from the first image to the manifest."""

    num_images: int
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = self.num_images / self.seconds
        return f'{format_bytes(self.num_bytes)}, {format_duration(self.seconds)} at {rate:.3g} images/s'


def measure_rates(extraction: Extraction) -> Rates:
    """Runs a first batch to warm up, then `NUM_IMAGES` images (`MIN_BATCHES` batches, if those hold more) on the clock.

    The batches are ones of the real run, at equal distances in its order, so that every padded shape, and batches that
    are not full, have their share.
    """
    everything = list(batches(extraction, extraction.plan.shard_keys()))
    num_batches = max(MIN_BATCHES, math.ceil(NUM_IMAGES / extraction.batch_size))
    warm_up, sample = _only(extraction, everything[:1]), _only(extraction, spread(everything, num_batches))
    is_lean = extraction.description.codec == 'lean'
    bases = compute_bases(warm_up) if is_lean else {}
    _extract_unwritten(warm_up, bases, name='warm-up')
    start = time.perf_counter()
    code_bytes = _extract_unwritten(sample, bases, name='trial')
    num_pixels = _num_pixels(sample.plan)
    seconds_per_pixel = (time.perf_counter() - start) / num_pixels
    num_images, num_basis_images = sample.plan.num_images, min(NUM_BASIS_IMAGES, extraction.plan.num_images)
    basis_pixels = num_basis_images * num_pixels / num_images if is_lean else 0
    bases_seconds = basis_pixels * seconds_per_pixel / len(extraction.description.views)
    return Rates(num_images, seconds_per_pixel, code_bytes, bases_seconds)


def predict(extraction: Extraction, rates: Rates) -> Prediction:
    """For the whole of this extraction, in one process: what is compressed by the trial, the rest exactly."""
    plan = extraction.plan
    specs = list(arrays.index_specs(plan.num_images).values())
    sizes = {spec.file(0): _content_bytes(spec, plan.num_images) for spec in specs}
    for bucket in plan.buckets:
        for spec in extraction.description.bucket_specs(bucket):
            specs.append(spec)
            for shard in range(bucket.num_shards):
                sizes[spec.file(shard)] = _content_bytes(spec, len(bucket.rows(shard)), rates.code_bytes)
    num_bytes = len(extraction.teacher_weights) + sum(size + len(file) + RECORD_BYTES for file, size in sizes.items())
    num_bytes += sum(map(len, metadata_files(specs).values()))
    if extraction.description.codec == 'lean':
        num_bytes += max_basis_bytes(extraction.levels)
    seconds = _num_pixels(plan) * rates.seconds_per_pixel + rates.bases_seconds
    return Prediction(plan.num_images, num_bytes, seconds)


def predict_coco(extraction: Extraction, rates: Rates) -> Prediction:
    """For COCO train2017 at the same geometry, levels, codec and views."""
    geometry, num_views = extraction.teacher.preprocessing.geometry, len(extraction.description.views)
    num_sizes = sum(COCO_SIZES.values())
    pixels = num_bytes = 0.0
    for size, count in COCO_SIZES.items():
        padded = geometry.padded(size)
        pixels += math.prod(padded) * count / num_sizes
        for level in extraction.levels:
            elements = num_elements([level], padded)
            num_bytes += elements * rates.code_bytes[level.name] * num_views * count / num_sizes
    bucket = BucketRecord(padded=(1, 1), num_images=1, rows_per_shard=1)
    num_bytes += sum(spec.row_bytes for spec in roi_specs(bucket, extraction.description.rois).values())
    return Prediction(
        NUM_COCO_IMAGES,
        round(NUM_COCO_IMAGES * num_bytes) + len(extraction.teacher_weights),
        NUM_COCO_IMAGES * pixels * rates.seconds_per_pixel + rates.bases_seconds,
    )


def groups_disk_bytes(extraction: Extraction, keys: Sequence[ShardKey], code_bytes: CodeBytes | None = None) -> int:
    """What the shard groups `keys` take on the disk; an upper bound where `code_bytes` is None."""
    total = 0
    for key in keys:
        bucket = extraction.plan.by_name[key.bucket]
        num_rows = len(bucket.rows(key.shard))
        total += sum(_disk_bytes(spec, num_rows, code_bytes) for spec in extraction.description.bucket_specs(bucket))
    return total


def cache_disk_bytes(extraction: Extraction, code_bytes: CodeBytes | None = None) -> int:
    """What the whole cache takes on the disk; an upper bound where `code_bytes` is None."""
    plan, description = extraction.plan, extraction.description
    index = sum(_disk_bytes(spec, plan.num_images) for spec in arrays.index_specs(plan.num_images).values())
    num_arrays = sum(len(description.bucket_specs(bucket)) for bucket in plan.buckets) + len(arrays.INDEX_COLUMNS)
    num_groups = 2 + len(plan.buckets) * (1 + len(description.views))
    num_groups += 0 if description.rois is None else 1 + len(plan.buckets)
    # Each array has its folder, its zarr.json and a folder for its files; each group the first two.
    metadata = BLOCK_BYTES * (3 * num_arrays + 2 * num_groups)
    groups = groups_disk_bytes(extraction, plan.shard_keys(), code_bytes)
    return groups + index + metadata + len(extraction.teacher_weights)


def require_room(needed: Callable[[CodeBytes | None], int], out: Path, *, rates: Callable[[], Rates]) -> None:
    """Refuses to start what will not fit on the disk, naming both sizes and what would make it fit.

    Where even codes that do not compress would fit there is nothing to measure. Otherwise `rates` runs a trial, which
    shows how well they compress: with `TRIAL_MARGIN` on top it must fit. `needed` gives the bytes to be written for the
    bytes of a code by level, or for None the most that is possible.
    """
    free = free_bytes(out)
    bound = needed(None)
    if bound + MARGIN_BYTES <= free:
        return
    predicted = needed({name: TRIAL_MARGIN * size for name, size in rates().code_bytes.items()})
    if predicted + MARGIN_BYTES > free:
        raise UnavailableError(
            f'{out}: needs about {format_bytes(predicted)} more (estimated from a few images, with a margin), but the '
            f'disk has {format_bytes(free)} free; store fewer levels (--levels), one view (--views plain), or a '
            'smaller --scale'
        )
    warn(
        f'{out}: {format_bytes(free)} are free and about {format_bytes(predicted)} are needed (estimated from a few '
        f'images, with a margin), but up to {format_bytes(bound)} are possible'
    )


def _num_pixels(plan: CachePlan) -> int:
    """Padded input pixels of one view of all images."""
    return sum(math.prod(bucket.padded) * bucket.num_images for bucket in plan.buckets)


def _only(extraction: Extraction, sample: Sequence[Batch]) -> Extraction:
    """The extraction of these batches alone, a shard group for each."""
    images: dict[str, list[SourceImage]] = {}
    for batch in sample:
        images.setdefault(batch.key.bucket, []).extend(batch.images)
    buckets = [
        Bucket(
            padded=extraction.plan.by_name[name].padded,
            num_images=len(several),
            rows_per_shard=extraction.batch_size,
            images=tuple(several),
        )
        for name, several in images.items()
    ]
    return replace(extraction, plan=CachePlan(tuple(buckets)))


def _extract_unwritten(extraction: Extraction, bases: Mapping[str, Tensor], *, name: str) -> CodeBytes:
    """Extracts everything but writes nothing."""
    plan, description = extraction.plan, extraction.description
    stored = {level.name: 0 for level in extraction.levels}

    def commit(group: ShardGroup) -> int:
        num_bytes = 0
        for file, content in group.files():
            sha256_bytes(content)  # takes time in a real run too
            place = arrays.file_place(file)
            if place is not None and place.array in stored:
                stored[place.array] += len(content) - index_bytes(plan.by_name[place.key.bucket].rows_per_shard)
            num_bytes += len(content)
        return num_bytes

    with compression_threads() as compressors:
        extract_groups(
            extraction,
            plan.shard_keys(),
            bases=bases,
            start_group=lambda key: ShardGroup(description, plan.by_name[key.bucket], key, compressors=compressors),
            commit=commit,
            stop=StopFlag(),
            bar=progress_bar(total=plan.num_images, unit='image', desc=name, smoothing=0.1, in_logs=False),
        )
    elements = {
        level.name: sum(len(one.images) * num_elements([level], one.padded) for one in plan.buckets)
        for level in extraction.levels
    }
    return {name: stored[name] / (len(description.views) * elements[name]) for name in stored}


def _content_bytes(spec: ArraySpec, num_rows: int, code_bytes: CodeBytes | None = None) -> int:
    """One file of an array that holds `num_rows` rows."""
    if not spec.sharded:
        return spec.file_bytes
    if code_bytes is None:
        row: float = compressed_bound(spec.row_bytes)
    else:
        row = math.prod(spec.row_shape) * code_bytes[spec.path.rsplit('/', 1)[1]]
    return math.ceil(num_rows * row) + index_bytes(spec.rows_per_file)


def _disk_bytes(spec: ArraySpec, num_rows: int, code_bytes: CodeBytes | None = None) -> int:
    """The same with its last block, its records and its folders: one for each axis but the last, c/<shard>/0/0/0."""
    return _content_bytes(spec, num_rows, code_bytes) + BLOCK_BYTES * len(spec.shape) + MAX_RECORD_BYTES
