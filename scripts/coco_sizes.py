"""What caches of COCO train2017 take: measured bits per element of a cache, times the elements of COCO's images.

    python scripts/coco_sizes.py CACHE --annotations data/coco/annotations/instances_train2017.json

The annotation file gives the mix of image sizes; a sample of COCO does, since the result is scaled to the 118287 images
of train2017. Hours are computed from published speeds on V100s (fp32): of extraction, which runs the teacher twice an
image, from inference in mmdet's model zoo; of training, 12 epochs of the 117266 images with objects, from training in
Detectron2's, which states seconds an iteration of 16 images on eight GPUs. Last line: `bits B` per element.
"""

from pathlib import Path

import mtpd.cache
from measuring import described_parser
from mtpd.cache.format.plan import num_elements
from mtpd.data.coco import read_annotations
from mtpd.geometry import Geometry, Level, level_name

NUM_IMAGES, NUM_TRAINED = 118_287, 117_266
GEOMETRY = Geometry((1333, 800))


def _levels(first: int, end: int) -> tuple[Level, ...]:
    return tuple(Level(level_name(2**k), 2**k, 256) for k in range(first, end))


PYRAMIDS = {
    'P3-P7, 256 channels (RetinaNet)': (GEOMETRY, _levels(3, 8)),
    'P2-P5, 256 channels (Faster, Mask, Cascade R-CNN)': (GEOMETRY, _levels(2, 6)),
    'P4, 768 channels, 640x640 (DINOv3 ViT-B)': (Geometry((640, 640), keep_ratio=False), (Level('p4', 16, 768),)),
}
TEACHER_SPEEDS = {'RetinaNet-R101': 15.0, 'RetinaNet-X101-64x4d': 8.7}
STUDENT_SECONDS = {'RetinaNet-R50': 0.205, 'Faster R-CNN-R50': 0.210, 'Mask R-CNN-R50': 0.261}


def bits_per_element(cache_path: Path) -> float:
    """Bytes of a cache but for its tensors that are stored once (weights, bases), over its feature values, times 8."""
    cache = mtpd.cache.open(cache_path)
    elements = len(cache.views) * sum(num_elements(cache.levels, cache.sizes(one).padded) for one in cache.image_ids)
    files = (path for path in cache_path.rglob('*') if path.is_file() and path.suffix != '.safetensors')
    return 8 * sum(path.stat().st_size for path in files) / elements


def main() -> None:
    parser = described_parser(__doc__)
    parser.add_argument('cache', type=Path)
    parser.add_argument('--annotations', type=Path, required=True)
    arguments = parser.parse_args()
    bits = bits_per_element(arguments.cache)
    images = read_annotations(arguments.annotations).images
    print(f'{"levels":<52}{"MB/image/view":>14}{"one view":>10}{"plain+flip":>12}')
    for name, (geometry, levels) in PYRAMIDS.items():
        elements = sum(num_elements(levels, geometry.padded((one.height, one.width))) for one in images) / len(images)
        megabytes = elements * bits / 8e6
        gigabytes = megabytes * NUM_IMAGES / 1e3
        print(f'{name:<52}{megabytes:>14.2f}{gigabytes:>7.0f} GB{2 * gigabytes:>9.0f} GB')
    for name, speed in TEACHER_SPEEDS.items():
        print(f'extraction, {name}, both views, one V100 at {speed} images/s: {2 * NUM_IMAGES / speed / 3600:.1f} h')
    for name, seconds in STUDENT_SECONDS.items():
        speed = 16 / 8 / seconds
        print(
            f'a stage of 12 epochs, {name}, one V100 at {speed:.1f} images/s: {12 * NUM_TRAINED / speed / 3600:.0f} h'
        )
    print(f'bits {bits:.2f}')


if __name__ == '__main__':
    main()
