"""Feature caches: one folder holds one teacher's compressed maps over one data set at one geometry.

cache = mtpd.cache.open('cache/r101')
maps = cache.read(cache.image_ids[0], view='flip')     # {'p3': float32 (C, H, W), ...}
"""

import os
from pathlib import Path

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.cache.reading.reader import CacheReader, ImageSizes


def open(path: str | os.PathLike[str]) -> CacheReader:
    """Opens a finished cache for reading.

    Raises:
        CacheIncompleteError: there is no cache, or its extraction has not finished.
        CacheMismatchError: it is not a cache of a format version that this program reads.
        CacheDamagedError: its manifest or index was changed after it was written.
    """
    return CacheReader(Path(path))


__all__ = ['CacheReader', 'EncodedMaps', 'ImageSizes', 'open']
