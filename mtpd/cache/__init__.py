"""Feature caches: one folder holds one teacher's compressed maps over one data set at one geometry.

cache = mtpd.cache.open('cache/r101')
maps = cache.read(cache.image_ids[0], view='flip')     # {'p3': float32 (C, H, W), ...}
"""

import os
from pathlib import Path

from mtpd.cache.format.codecs import EncodedMaps, batch_images
from mtpd.cache.reading.cache_files import LocalFolder
from mtpd.cache.reading.mirror import Mirror
from mtpd.cache.reading.reader import CacheReader, ImageSizes
from mtpd.cache.reading.remote import RemoteFolder
from mtpd.system.files import is_url


def open(
    path: str | os.PathLike[str], *, mirror: str | os.PathLike[str] | None = None, mirror_bytes: int = 200 * 10**9
) -> CacheReader:
    """Opens a finished cache for reading.

    Args:
        path: a folder, or the URL of one in an object store or on a web server: `s3://bucket/r101`, `gs://...`,
            `az://...`, `https://...`. A URL needs the extra `remote`; credentials are those of the environment.
        mirror: for a URL, a folder in which whole shards are kept, each verified; None: byte ranges are read.
        mirror_bytes: how much the mirror keeps at most; what was used least recently is deleted from it.

    Raises:
        CacheIncompleteError: there is no cache, or its extraction has not finished.
        CacheMismatchError: it is not a cache of a format version that this program reads.
        CacheDamagedError: its manifest or index was changed after it was written.
        UnavailableError: the object store cannot be reached, or does not let this user in.
    """
    if is_url(path):
        kept = None if mirror is None else Mirror(Path(mirror), mirror_bytes)
        return CacheReader(RemoteFolder(str(path), mirror=kept))
    return CacheReader(LocalFolder(Path(path)))


__all__ = ['CacheReader', 'EncodedMaps', 'ImageSizes', 'batch_images', 'open']
