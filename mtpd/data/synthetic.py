"""Makes a COCO-format data set of coloured shapes on textured noise, with exact boxes and masks.

A class is known by its outline alone: colours, sizes, angles and textures are drawn without regard to it. Every image
has its own random stream, so it does not change when the number of images does.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle

from mtpd.errors import InputError
from mtpd.geometry import Size
from mtpd.system.files import canonical_json

Image = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
SPLITS = ('train2017', 'val2017')
# With gaps, as COCO's own ids, so that ids cannot be confused with indices.
CATEGORY_IDS = (1, 2, 4, 7, 8, 11)
LEAST_VISIBLE = 0.5  # part of a shape that others may not hide
LEAST_CONTRAST = 80  # between a shape's colour and the background's mean, in grey levels (Euclidean over BGR)
# Either way from upright, in radians: about 17 degrees. Free rotation made the set far harder to learn.
MOST_TURN = 0.3
PLACEMENT_TRIES = 20
JPEG_QUALITY = 95
SUBPIXEL_BITS = 4  # cv2 draws at 1/16 px


@dataclass(frozen=True)
class SyntheticSpec:
    """What a synthetic set is made of.

    `num_empty` images of each split, the last ones, have no shape. One of `sizes` (height, width) in px is drawn for
    each image. `num_shapes` are the least and most shapes in an image, `shape_px` the least and most diameter of a
    shape's circumscribed circle, in px.
    """

    num_train: int = 600
    num_val: int = 150
    num_empty: int = 1
    sizes: tuple[Size, ...] = ((128, 128),)
    num_shapes: tuple[int, int] = (1, 5)
    shape_px: tuple[int, int] = (14, 52)
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = min((min(size) for size in self.sizes), default=0)
        if not 2 <= self.shape_px[0] <= self.shape_px[1] <= smallest:
            raise InputError(f'shapes of {self.shape_px} px must have 2 px or more and fit images of {self.sizes} px')
        if not 1 <= self.num_shapes[0] <= self.num_shapes[1]:
            raise InputError(f'{self.num_shapes} shapes an image: expected minimum and maximum, at least 1')
        if not 0 <= self.num_empty <= min(self.num_train, self.num_val):
            raise InputError(f'{self.num_empty} empty images do not fit {self.num_train} + {self.num_val} images')


def make_synthetic_set(folder: Path, spec: SyntheticSpec, *, on_image: Callable[[], object] = lambda: None) -> bool:
    """Writes the set in COCO's layout: `train2017/`, `val2017/`, `annotations/instances_*.json`.

    The folder appears only when the set is complete. `on_image` is called after each image. Returns False if the same
    set is there already; a folder that holds something else is refused.
    """
    record = canonical_json(asdict(spec))
    if folder.exists():
        if (folder / 'synthetic.json').is_file() and (folder / 'synthetic.json').read_bytes() == record:
            return False
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f'{folder}: holds something other than this set; choose another folder or remove it')
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.tmp-{folder.name}-', dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp's 0700 would shut out other users of the set
        (temporary / 'annotations').mkdir()
        first_id = 1
        for number, (split, num_images) in enumerate(zip(SPLITS, (spec.num_train, spec.num_val), strict=True)):
            document = _make_split(temporary / split, spec, number, first_id, num_images, on_image)
            (temporary / 'annotations' / f'instances_{split}.json').write_text(json.dumps(document))
            first_id += num_images
        (temporary / 'synthetic.json').write_bytes(record)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _make_split(
    folder: Path, spec: SyntheticSpec, split: int, first_id: int, num_images: int, on_image: Callable[[], object]
) -> dict[str, Any]:
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        random = np.random.default_rng([spec.seed, split, index])
        image, objects = draw_image(random, spec, is_empty=index >= num_images - spec.num_empty)
        image_id = first_id + index
        file_name = f'{image_id:012d}.jpg'
        _, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / file_name).write_bytes(encoded.tobytes())
        images.append({'id': image_id, 'file_name': file_name, 'height': image.shape[0], 'width': image.shape[1]})
        for number, (category, mask) in enumerate(objects):
            # Unique over both splits, as no image has room for a thousand shapes.
            annotations.append({'id': image_id * 1000 + number, 'image_id': image_id, **_annotation(category, mask)})
        on_image()
    categories = [
        {'id': category_id, 'name': name, 'supercategory': 'shape'}
        for category_id, name in zip(CATEGORY_IDS, SHAPES, strict=True)
    ]
    info = {'description': f'Synthetic shapes, {SPLITS[split]}, seed {spec.seed}'}
    return {'info': info, 'licenses': [], 'images': images, 'annotations': annotations, 'categories': categories}


def draw_image(
    random: np.random.Generator, spec: SyntheticSpec, *, is_empty: bool = False
) -> tuple[Image, list[tuple[int, Mask]]]:
    """Draws one image: (height, width, 3) BGR, and each shape's class index and visible mask, farthest shape first."""
    height, width = spec.sizes[random.integers(len(spec.sizes))]
    canvas = _texture(random, height, width)
    background = canvas.mean((0, 1))
    wanted = 0 if is_empty else int(random.integers(spec.num_shapes[0], spec.num_shapes[1] + 1))
    classes: list[int] = []
    whole: list[Mask] = []
    visible: list[Mask] = []
    for _ in range(wanted * PLACEMENT_TRIES):
        if len(visible) == wanted:
            break
        shape = int(random.integers(len(SHAPES)))
        radius = random.uniform(*spec.shape_px) / 2
        centre = (random.uniform(radius, width - radius), random.uniform(radius, height - radius))
        mask = shape_mask(SHAPES[shape], centre, radius, random.uniform(-MOST_TURN, MOST_TURN), (height, width))
        remaining = [other & ~mask for other in visible]
        if any(r.sum() < LEAST_VISIBLE * w.sum() for r, w in zip(remaining, whole, strict=True)):
            continue
        classes.append(shape)
        whole.append(mask)
        visible = [*remaining, mask]
        canvas[mask] = _surface(random, background, int(mask.sum()))
    blurred = cv2.GaussianBlur(canvas, (3, 3), 0.6)  # edges as soft as a camera's
    return np.clip(blurred, 0, 255).astype(np.uint8), list(zip(classes, visible, strict=True))


def _texture(random: np.random.Generator, height: int, width: int) -> Pixels:
    """Blotches of colour at three scales and noise on each pixel, around a random mean colour."""
    canvas = np.full((height, width, 3), random.uniform(60, 196, 3), np.float32)
    for cell, strength in ((48, 10.0), (16, 6.0), (6, 4.0)):
        grid = random.normal(0, strength, (-(-height // cell) + 1, -(-width // cell) + 1, 3)).astype(np.float32)
        canvas += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    canvas += random.normal(0, 20, canvas.shape).astype(np.float32)
    return canvas


def _surface(random: np.random.Generator, background: Pixels, num_pixels: int) -> Pixels:
    """Colours of a shape's pixels: any one that stands out from the background, with noise."""
    colour = random.uniform(0, 255, 3)
    while np.linalg.norm(colour - background) < LEAST_CONTRAST:
        colour = random.uniform(0, 255, 3)
    return (colour + random.normal(0, random.uniform(4, 20), (num_pixels, 3))).astype(np.float32)


def _annotation(category: int, mask: Mask) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        'category_id': CATEGORY_IDS[category],
        'bbox': [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        'area': int(mask.sum()),
        'iscrowd': 0,
        'segmentation': {'size': list(mask.shape), 'counts': encoded['counts'].decode()},
    }


def shape_mask(name: str, centre: tuple[float, float], radius: float, angle: float, size: tuple[int, int]) -> Mask:
    """The pixels of one of `SHAPES` in a mask of `size` (height, width), turned clockwise by `angle` in radians.

    `centre` is (x, y) and `radius` that of the circumscribed circle, in px.
    """
    mask = np.zeros(size, np.uint8)
    if name in ('circle', 'ring'):
        _fill(mask, centre, radius * _unit_circle(64), 1)
        if name == 'ring':
            _fill(mask, centre, radius * 0.55 * _unit_circle(64), 0)
    else:
        sine, cosine = np.sin(angle), np.cos(angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])
        _fill(mask, centre, radius * _corners(name) @ turn, 1)
    return mask.astype(bool)


def _corners(name: str) -> Points:
    """Corner points (x, y) of the upright shape, on and in the unit circle, in order around it."""
    if name == 'square':
        return _unit_circle(4, start=np.pi / 4)
    if name == 'triangle':
        return _unit_circle(3, start=-np.pi / 2)
    if name == 'star':
        points = _unit_circle(10, start=-np.pi / 2)
        points[1::2] *= 0.45
        return points
    assert name == 'cross', name
    # The arms are 0.6 of their length wide; (1, 0.3) is on the circle after scaling.
    quarters = [np.array([[0.3, 1.0], [0.3, 0.3], [1.0, 0.3]])]
    for _ in range(3):
        quarters.append(quarters[-1] @ np.array([[0.0, -1.0], [1.0, 0.0]]))
    corners: Points = np.concatenate(quarters) / np.hypot(1.0, 0.3)
    return corners


def _unit_circle(num_points: int, *, start: float = 0.0) -> Points:
    angles = start + np.arange(num_points) * 2 * np.pi / num_points
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _fill(mask: npt.NDArray[np.uint8], centre: tuple[float, float], points: Points, value: int) -> None:
    fixed = np.rint((points + centre) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], value, shift=SUBPIXEL_BITS)
