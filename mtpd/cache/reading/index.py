"""The index of a cache: which image is in which row, and how large it is; checked against itself and the manifest."""

from functools import cache

import numpy as np

from mtpd.cache.format import arrays
from mtpd.cache.format.manifest import Manifest
from mtpd.cache.format.plan import Bucket, CachePlan, SourceImage
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.errors import CacheDamagedError
from mtpd.geometry import Geometry, Size


def read_index(files: CacheFiles, manifest: Manifest) -> CachePlan:
    """The plan that a cache was written by; CacheDamagedError where the index contradicts itself or the manifest."""
    columns = {name: files.read_array(spec, shard=0) for name, spec in arrays.index_specs(manifest.num_images).items()}
    sizes = [bucket.num_images for bucket in manifest.buckets]
    problem = _problem(columns, sizes)
    if problem:
        raise CacheDamagedError(f'{files.root}: {problem}; extract it again')
    order = np.lexsort((columns['row'], columns['bucket']))
    image_ids = columns['image_id'][order].tolist()
    names = 'original', 'resized', 'padded'
    original, resized, padded = (list(map(tuple, columns[name][order].tolist())) for name in names)
    geometry: Geometry = manifest.description.geometry.to_geometry()

    @cache  # a data set has far fewer sizes than images
    def expected(size: Size) -> tuple[Size, Size]:
        return geometry.resized(size), geometry.padded(size)

    buckets, start = [], 0
    for number, record in enumerate(manifest.buckets):
        rows = slice(start, start + record.num_images)
        for own, *stated in zip(original[rows], resized[rows], padded[rows], strict=True):
            if expected(own) != tuple(stated) or stated[1] != record.padded:
                raise CacheDamagedError(
                    f'{files.root}: the index contradicts the manifest about bucket {number}; extract it again'
                )
        images = tuple(map(SourceImage, image_ids[rows], original[rows]))
        buckets.append(Bucket(padded=record.padded, images=images, rows_per_shard=record.rows_per_shard))
        start += record.num_images
    return CachePlan(buckets=tuple(buckets))


def _problem(columns: dict[str, np.ndarray], sizes: list[int]) -> str | None:
    """What of the index contradicts itself or the numbers of images of the buckets."""
    bucket, row = columns['bucket'], columns['row']
    if np.unique(columns['image_id']).size < bucket.size:
        return 'the index lists an image twice'
    if bucket.min() < 0 or bucket.max() >= len(sizes) or np.bincount(bucket).tolist() != sizes:
        return 'the index and the manifest differ in the number of images of a bucket'
    order = np.lexsort((row, bucket))
    if not np.array_equal(row[order], np.concatenate([np.arange(size) for size in sizes])):
        return 'the index does not assign every row of a bucket to one image'
    if min(columns[name].min() for name in ('original', 'resized', 'padded')) < 1:
        return 'the index has sizes below 1 px'
    return None
