"""Whether cell (y, x) of a level means the same pixels of the same image in several caches."""

from collections.abc import Sequence
from typing import Any

from mtpd.cache import CacheReader
from mtpd.errors import CacheMismatchError

EXTRACT_AGAIN = 'extract both with the same settings'


def require_same_images(caches: Sequence[CacheReader]) -> None:
    """Checks that caches hold the same images of the same data set at the same size.

    Padding may differ: it is at the right and the bottom and counts for nothing.

    Raises:
        CacheMismatchError: names what differs.
    """
    first = caches[0]
    for other in caches[1:]:
        missing = [image_id for image_id in first.image_ids if image_id not in other]
        extra = [image_id for image_id in other.image_ids if image_id not in first]
        if missing or extra:
            where, lacks = (first, other) if missing else (other, first)
            raise CacheMismatchError(
                f'{first.path} and {other.path} hold different images ({len(first)} and {len(other)}): image '
                f'{(missing or extra)[0]} is in {where.path} and not in {lacks.path}; {EXTRACT_AGAIN}'
            )
        if _annotations(first) != _annotations(other):
            raise CacheMismatchError(
                f'{first.path} and {other.path} were extracted with different annotation files (sha256 '
                f'{str(_annotations(first))[:12]} and {str(_annotations(other))[:12]}); {EXTRACT_AGAIN}'
            )
        for image_id in first.image_ids:
            sizes, others = first.sizes(image_id), other.sizes(image_id)
            for kind in ('original', 'resized'):
                here, there = getattr(sizes, kind), getattr(others, kind)
                if here != there:
                    raise CacheMismatchError(
                        f'{first.path} and {other.path} hold image {image_id} at different sizes: {kind} '
                        f'{here[1]}x{here[0]} px and {there[1]}x{there[0]} px; {EXTRACT_AGAIN} (mtpd-extract --scale)'
                    )


def _annotations(cache: CacheReader) -> Any:
    data = cache.manifest.description.fingerprint.get('data')
    return data.get('annotations') if isinstance(data, dict) else None
