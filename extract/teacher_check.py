"""A look at the teacher's maps of a few images before anything is written."""

from mtpd.cache.format.codecs import require_finite
from mtpd.data.coco import spread
from mtpd.detectors.map_statistics import MapStatistics
from mtpd.detectors.teacher_maps import require_repeated
from mtpd_extract.build import Extraction
from mtpd_extract.forward import load_images, view_maps

NUM_IMAGES = 4


def check_teacher(extraction: Extraction) -> None:
    """Refuses a teacher whose maps are not finite, as good as constant, or others each time.

    Raises:
        InputError: names the level, and the image where it is one.
    """
    statistics = {level.name: MapStatistics(level.name) for level in extraction.levels}
    everything = [(bucket, image) for bucket in extraction.plan.buckets for image in bucket.images]
    for number, (bucket, image) in enumerate(spread(everything, NUM_IMAGES)):
        pixels = load_images(extraction, [image])
        for view in extraction.views:
            maps = view_maps(extraction, pixels, padded=bucket.padded, view=view)
            if number == 0:
                again = view_maps(extraction, pixels, padded=bucket.padded, view=view)
                require_repeated(list(maps.values()), list(again.values()), name=extraction.teacher.name)
            for name, one in statistics.items():
                require_finite(maps[name], level=name, view=view, image_ids=[image.image_id])
                one.add(maps[name])
    for one in statistics.values():
        one.require_varied(name=extraction.teacher.name, advice='exclude the level with --levels')
