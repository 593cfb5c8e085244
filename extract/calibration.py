"""What `lean` must know of a teacher before the first shard: the principal directions of its channels."""

from torch import Tensor

from mtpd.cache.format.basis import Covariance
from mtpd.cache.format.codecs import require_finite
from mtpd.data.coco import spread
from mtpd.system.console import progress_bar
from mtpd_extract.build import Extraction
from mtpd_extract.forward import load_images, view_maps

# Directions belong to the teacher and not to images: a basis of other images took as many bits on real features.
NUM_IMAGES = 64


def compute_bases(extraction: Extraction) -> dict[str, Tensor]:
    """Level name -> orthonormal columns (C, C) float32 on the CPU, from a sample spread over the data set."""
    covariances = {level.name: Covariance(level.channels) for level in extraction.levels}
    # In the order of the buckets, so that each shape has its share.
    everything = [(bucket, image) for bucket in extraction.plan.buckets for image in bucket.images]
    sample = spread(everything, NUM_IMAGES)
    for bucket, image in progress_bar(sample, desc='channel statistics', unit='image', in_logs=False):
        maps = view_maps(extraction, load_images(extraction, [image]), padded=bucket.padded, view='plain')
        for name, covariance in covariances.items():
            # Encoding finds them too, but on the way there a basis of NaN would be stored.
            energy = maps[name].float().square().sum((2, 3))
            require_finite(energy, level=name, view='plain', image_ids=[image.image_id])
            covariance.add(maps[name])
    return {name: covariance.basis() for name, covariance in covariances.items()}
