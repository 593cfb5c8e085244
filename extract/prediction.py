"""What an extraction will take, by a trial on a sample of its images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mtpd.cache.format import arrays
from mtpd.cache.format.basis import max_basis_bytes
from mtpd.cache.format.plan import Bucket, SourceImage
from mtpd.cache.format.shard import index_bytes
from mtpd.cache.format.zarr_metadata import metadata_files
from mtpd.geometry import Size
from mtpd.system.text import format_duration
from mtpd_extract.build import Extraction
from mtpd_extract.estimate import gigabytes
from mtpd_extract.trial import Trial, num_pixels

# A file in the manifest: its size, its hash and the punctuation, beside its name.
RECORD_BYTES = 128
NUM_COCO_IMAGES = 118_287
# The sizes (height, width) in px that came up more than once among 123 images of COCO 2017, and how often. The mean
# padded area at 1333x800 of these 84 is that of the 123 within 0.2 %.
COCO_SIZES: Mapping[Size, int] = {
    (480, 640): 25,
    (427, 640): 16,
    (640, 480): 9,
    (375, 500): 5,
    (426, 640): 5,
    (428, 640): 4,
    (640, 427): 4,
    (334, 500): 3,
    (425, 640): 3,
    (640, 621): 2,
    (429, 640): 2,
    (333, 500): 2,
    (500, 375): 2,
    (640, 426): 2,
}


@dataclass(frozen=True)
class Prediction:
    """What will come of it: bytes of all files, and the time from the first image to the manifest."""

    num_images: int
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = self.num_images / self.seconds
        return f'{gigabytes(self.num_bytes)}, {format_duration(self.seconds)} at {rate:.3g} images/s'


def predict(extraction: Extraction, trial: Trial) -> Prediction:
    """For the whole of this extraction, in one process."""
    seconds = num_pixels(extraction.plan) * trial.seconds_per_pixel + trial.bases_seconds
    return Prediction(extraction.plan.num_images, predict_bytes(extraction, trial), seconds)


def predict_bytes(extraction: Extraction, trial: Trial) -> int:
    """Bytes of all files of the cache: what is compressed by the trial, the rest exactly."""
    plan = extraction.plan
    index = list(arrays.index_specs(plan.num_images).values())
    specs, total = list(index), float(len(extraction.teacher_weights))
    records = [spec.file(0) for spec in index]
    total += sum(spec.file_bytes for spec in index)
    for bucket in plan.buckets:
        of_bucket = arrays.bucket_specs(
            bucket,
            views=extraction.views,
            levels=extraction.levels,
            codec=extraction.codec,
            rois=extraction.description.rois,
        )
        specs += of_bucket
        for spec in of_bucket:
            records += [spec.file(shard) for shard in range(bucket.num_shards)]
            if spec.sharded:
                per_element = trial.bytes_per_element[spec.path.rsplit('/', 1)[1]]
                total += math.prod(spec.shape) * per_element + bucket.num_shards * index_bytes(spec.rows_per_file)
            else:
                total += bucket.num_shards * spec.file_bytes
    if extraction.codec == 'lean':
        total += max_basis_bytes(extraction.levels)
    total += sum(len(content) for content in metadata_files(specs).values())
    return round(total + sum(len(name) + RECORD_BYTES for name in records))


def predict_coco(extraction: Extraction, trial: Trial) -> Prediction:
    """For COCO train2017 at the same geometry, levels, codec and views."""
    geometry = extraction.teacher.preprocessing.geometry
    num_sizes = sum(COCO_SIZES.values())
    pixels = num_bytes = 0.0
    for size, count in COCO_SIZES.items():
        padded = geometry.padded(size)
        pixels += math.prod(padded) * count / num_sizes
        for level in extraction.levels:
            elements = level.channels * math.prod(level.grid(*padded))
            num_bytes += elements * trial.bytes_per_element[level.name] * len(extraction.views) * count / num_sizes
    bucket = Bucket((1, 1), (SourceImage(-1, (1, 1)),), 1)
    num_bytes += sum(spec.row_bytes for spec in arrays.roi_specs(bucket, extraction.description.rois).values())
    return Prediction(
        NUM_COCO_IMAGES,
        round(NUM_COCO_IMAGES * num_bytes) + len(extraction.teacher_weights),
        NUM_COCO_IMAGES * pixels * trial.seconds_per_pixel + trial.bases_seconds,
    )
