"""What an extraction will take on disk, and whether there is room for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mtpd.cache.format import arrays
from mtpd.cache.format.arrays import ArraySpec
from mtpd.cache.format.plan import Bucket, ShardKey
from mtpd.cache.format.shard import compressed_bound, index_bytes
from mtpd.errors import UnavailableError
from mtpd.system.console import warn
from mtpd.system.files import free_bytes
from mtpd_extract.build import Extraction

# What a file or a folder takes at least on common file systems.
BLOCK_BYTES = 4096
# A file's lines in the journal and in the manifest.
RECORD_BYTES = 1024
# Kept free for other writers to the disk.
MARGIN_BYTES = 64 * 2**20
# What images may compress worse than those of a trial.
TRIAL_MARGIN = 1.1


PerElement = Mapping[str, float]


def groups_bytes(extraction: Extraction, keys: Sequence[ShardKey], per_element: PerElement | None = None) -> int:
    """What the shard groups `keys` take on the disk.

    Args:
        extraction: gives the arrays.
        keys: the groups.
        per_element: level name -> bytes that a code is taken to compress to; None for an upper bound.
    """
    total = 0
    for key in keys:
        bucket = extraction.plan.by_name[key.bucket]
        num_rows = len(bucket.rows(key.shard))
        total += sum(_file_bytes(spec, num_rows, per_element) for spec in _specs(extraction, bucket))
    return total


def total_bytes(extraction: Extraction, per_element: PerElement | None = None) -> int:
    """What the whole cache takes on the disk; `per_element` as for `groups_bytes`."""
    plan = extraction.plan
    index = sum(_file_bytes(spec, plan.num_images) for spec in arrays.index_specs(plan.num_images).values())
    num_arrays = sum(len(_specs(extraction, bucket)) for bucket in plan.buckets) + len(arrays.INDEX_COLUMNS)
    num_groups = 2 + len(plan.buckets) * (1 + len(extraction.views))
    num_groups += 0 if extraction.description.rois is None else 1 + len(plan.buckets)
    # Each array has its folder, its zarr.json and a folder for its files; each group the first two.
    metadata = BLOCK_BYTES * (3 * num_arrays + 2 * num_groups)
    return groups_bytes(extraction, plan.shard_keys(), per_element) + index + metadata + len(extraction.teacher_weights)


def require_room(needed: Callable[[PerElement | None], int], out: Path, *, trial: Callable[[], PerElement]) -> None:
    """Refuses to start what will not fit.

    Where even codes that do not compress would fit there is nothing to ask. Otherwise a trial on a few images says how
    well they compress, which is several times for `lean`: with `TRIAL_MARGIN` on top it must fit. What was committed is
    kept should the disk fill up all the same.

    Args:
        needed: bytes per element by level name, or None for the most that is possible -> bytes to be written.
        out: where to.
        trial: measures bytes per element; called only when it matters.

    Raises:
        UnavailableError: names both sizes and what would make it fit.
    """
    free = free_bytes(out)
    bound = needed(None)
    if bound + MARGIN_BYTES <= free:
        return
    predicted = needed({name: TRIAL_MARGIN * size for name, size in trial().items()})
    if predicted + MARGIN_BYTES > free:
        raise UnavailableError(
            f'{out}: needs about {gigabytes(predicted)} more (estimated from a few images, with a margin), but the '
            f'disk has {gigabytes(free)} free; store fewer levels (--levels), one view (--views plain), or a smaller '
            '--scale'
        )
    warn(
        f'{out}: {gigabytes(free)} are free and about {gigabytes(predicted)} are needed (estimated from a few '
        f'images, with a margin), but up to {gigabytes(bound)} are possible'
    )


def gigabytes(num_bytes: int) -> str:
    """A size for people."""
    return f'{num_bytes / 1e9:.2f} GB' if num_bytes >= 1e9 else f'{num_bytes / 1e6:.1f} MB'


def _specs(extraction: Extraction, bucket: Bucket) -> list[ArraySpec]:
    return arrays.bucket_specs(
        bucket,
        views=extraction.views,
        levels=extraction.levels,
        codec=extraction.codec,
        rois=extraction.description.rois,
    )


def _file_bytes(spec: ArraySpec, num_rows: int, per_element: PerElement | None = None) -> int:
    """One file of an array that holds `num_rows` rows, with its last block and its folders."""
    if spec.sharded:
        level = spec.path.rsplit('/', 1)[1]
        row = (
            compressed_bound(spec.row_bytes) if per_element is None else math.prod(spec.row_shape) * per_element[level]
        )
        content = math.ceil(num_rows * row) + index_bytes(spec.rows_per_file)
    else:
        content = spec.file_bytes
    # One folder for each axis but the last: c/<shard>/0/0/0.
    return content + BLOCK_BYTES * len(spec.shape) + RECORD_BYTES
