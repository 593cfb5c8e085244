"""Images and annotated objects on their way to a detector: resized, mirrored, and collected in batches.

A view of an image is one of the two that a cache holds: `plain`, the resized image, and `flip`, the resized image
mirrored left to right. Padding comes after that, when a batch is normalised. Pixels, boxes and masks are those that
mmdet's `Resize`, `FixScaleResize` and `RandomFlip` give.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import PIL.Image
import pycocotools.mask
import torch
from torch import Tensor

from mtpd.detectors.preprocessing import Preprocessing, normalise
from mtpd.geometry import Geometry, Size

View = Literal['plain', 'flip']

# By the names of mmdet's `Resize.interpolation`.
_OPENCV = {
    'nearest': cv2.INTER_NEAREST, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC, 'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}  # fmt: skip
_PILLOW = {
    name: PIL.Image.Resampling[name.upper()] for name in ('nearest', 'bilinear', 'bicubic', 'box', 'lanczos', 'hamming')
}

INTERPOLATIONS = {'cv2': tuple(_OPENCV), 'pillow': tuple(_PILLOW)}


@dataclass(frozen=True)
class Instance:
    """One annotated object, in px of the original image."""

    box: tuple[float, float, float, float]  # absolute xyxy
    label: int  # class index, 0-based
    ignore: bool = False  # a crowd region, which is neither object nor background
    segmentation: Any = None  # COCO polygons or run-length code


@dataclass(frozen=True)
class Target:
    """The annotated objects of a view, in px of the resized and perhaps mirrored image."""

    boxes: Tensor  # float32 (N, 4), absolute xyxy, clipped to the image
    labels: Tensor  # int64 (N,), class indices, 0-based
    ignored: Tensor  # float32 (M, 4), crowd regions
    ignored_labels: Tensor  # int64 (M,)
    masks: Tensor | None  # uint8 (N, h, w), 1 inside; None: not asked for

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays: every tensor that a worker process sends is an open file until it is used.
        values = (self.boxes, self.labels, self.ignored, self.ignored_labels, self.masks)
        return _target_of, tuple(None if one is None else one.numpy() for one in values)

    def to(self, device: torch.device) -> 'Target':
        """The same on a device; copies do not wait for it. Masks stay where they are."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ('boxes', 'labels', 'ignored', 'ignored_labels')
        }
        return replace(self, **moved)


def _target_of(*values: Any) -> Target:
    return Target(*(None if one is None else torch.from_numpy(one) for one in values))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sample:
    """One view of one image, ready to be batched."""

    image: Tensor  # uint8 or, if the geometry says so, float32 (3, h, w), BGR, resized, perhaps mirrored, not padded
    image_id: int
    view: View
    original: Size  # of the image before the resize
    target: Target | None = None  # for training

    @property
    def resized(self) -> Size:
        """Size of the image without padding."""
        return int(self.image.shape[1]), int(self.image.shape[2])

    @property
    def objects(self) -> Target:
        """The annotated objects of a sample for training."""
        assert self.target is not None, 'a sample for inference'
        return self.target

    def pin_memory(self) -> 'Sample':
        """The sample with its pixels where a GPU can fetch them by itself; torch's DataLoader looks for this method."""
        return replace(self, image=self.image.pin_memory())


def image_view(image: np.ndarray, *, geometry: Geometry, view: View) -> Tensor:
    """The pixels of a view, (3, h, w) BGR as in `Sample`, from a decoded image uint8 (H, W, 3) BGR."""
    if geometry.float_pixels:
        image = image.astype(np.float32)
    pixels = _resized(image, geometry)
    if view == 'flip':
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def make_sample(
    image: np.ndarray,
    *,
    image_id: int,
    geometry: Geometry,
    view: View,
    instances: Sequence[Instance] | None = None,
    with_masks: bool = False,
) -> Sample:
    """A view of an image, uint8 (H, W, 3) BGR, with its annotations (None for inference) moved along."""
    pixels = image_view(image, geometry=geometry, view=view)
    original, resized = (image.shape[0], image.shape[1]), (int(pixels.shape[1]), int(pixels.shape[2]))
    target = None
    if instances is not None:
        objects = [one for one in instances if not one.ignore]
        crowds = [one for one in instances if one.ignore]
        sizes: dict[str, Any] = {'original': original, 'resized': resized, 'view': view}
        boxes, ignored = (_moved_boxes(part, **sizes) for part in (objects, crowds))
        labels, ignored_labels = (
            torch.tensor([one.label for one in part], dtype=torch.int64) for part in (objects, crowds)
        )
        masks = _moved_masks(objects, **sizes) if with_masks else None
        target = Target(boxes, labels, ignored, ignored_labels, masks)
    return Sample(pixels, image_id, view, original, target)


def collate(samples: Sequence[Sample], *, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Normalised inputs (B, 3, H, W) on `device`, each image at the top left, padded to the largest of the batch."""
    sizes = [preprocessing.geometry.padded(sample.original) for sample in samples]
    padded = max(height for height, _ in sizes), max(width for _, width in sizes)
    images = [sample.image.to(device, non_blocking=True) for sample in samples]
    return normalise(images, padded=padded, normalisation=preprocessing.normalisation)


def _resized(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    height, width = geometry.resized((image.shape[0], image.shape[1]))
    if geometry.backend == 'pillow':
        resample = _PILLOW[geometry.interpolation]
        return np.array(PIL.Image.fromarray(image).resize((width, height), resample))
    return cv2.resize(image, (width, height), interpolation=_OPENCV[geometry.interpolation])


def _moved_boxes(instances: Sequence[Instance], *, original: Size, resized: Size, view: View) -> Tensor:
    boxes = torch.tensor([one.box for one in instances], dtype=torch.float32).reshape(-1, 4)
    (height, width), (new_height, new_width) = original, resized
    boxes = boxes * boxes.new_tensor([new_width / width, new_height / height]).repeat(2)
    boxes[:, 0::2].clamp_(0, new_width)
    boxes[:, 1::2].clamp_(0, new_height)
    if view == 'flip':
        boxes[:, 0::2] = new_width - boxes[:, [2, 0]]
    return boxes


def _moved_masks(instances: Sequence[Instance], *, original: Size, resized: Size, view: View) -> Tensor:
    """uint8 (N, h, w). An object without a mask is its own box."""
    height, width = resized
    masks = np.zeros((len(instances), height, width), dtype=np.uint8)
    for mask, instance in zip(masks, instances, strict=True):
        moved = cv2.resize(_decoded(instance, original), (width, height), interpolation=cv2.INTER_NEAREST)
        mask[:] = moved[:, ::-1] if view == 'flip' else moved
    return torch.from_numpy(masks)


def _decoded(instance: Instance, original: Size) -> np.ndarray:
    found = instance.segmentation
    if found is None:
        x1, y1, x2, y2 = instance.box
        found = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if isinstance(found, list):
        found = pycocotools.mask.merge(pycocotools.mask.frPyObjects(found, *original))
    elif isinstance(found['counts'], list):
        found = pycocotools.mask.frPyObjects(found, *original)
    decoded: np.ndarray = pycocotools.mask.decode(found)
    return decoded
