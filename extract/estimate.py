"""What an extraction will take on disk, and whether there is room for it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from mtpd.cache.codecs import bytes_per_element
from mtpd.cache.plan import CachePlan, ShardKey, num_elements
from mtpd.errors import UnavailableError
from mtpd_extract.build import Extraction

# Kept free beside the cache itself, for the journal, the manifest and whatever else writes to the disk.
MARGIN_BYTES = 64 * 2**20


def image_bytes(extraction: Extraction, plan: CachePlan, key: ShardKey) -> int:
    """Upper bound of what one image of a shard group takes: its codes uncompressed, its scales, all views."""
    elements = num_elements(extraction.levels, plan.by_name[key.bucket].padded)
    scales = 8 * sum(level.channels for level in extraction.levels) if extraction.codec == 'int8' else 0
    overhead = (16 + 4 + 12) * len(extraction.levels) + 8
    return len(extraction.views) * (elements * bytes_per_element(extraction.codec) + scales + overhead)


def total_bytes(extraction: Extraction, keys: Sequence[ShardKey]) -> int:
    """Upper bound of what the shard groups `keys` take."""
    plan = extraction.plan
    return sum(image_bytes(extraction, plan, key) * len(plan.images(key)) for key in keys)


def free_bytes(path: Path) -> int:
    """Free space of the file system that `path` is, or would be, on."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def require_room(extraction: Extraction, keys: Sequence[ShardKey], out: Path) -> None:
    """Refuses to start what cannot fit.

    Raises:
        UnavailableError: names both sizes and what would make it fit.
    """
    needed, free = total_bytes(extraction, keys), free_bytes(out)
    if needed + MARGIN_BYTES > free:
        raise UnavailableError(
            f'{out}: the cache needs up to {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; store '
            'fewer levels (--levels), one view (--views plain), or a smaller --scale'
        )
