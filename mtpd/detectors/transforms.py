"""Images and boxes through mmdet's own transforms: resize, mirror, pack.

A view of an image is one of the two that a cache holds: `plain`, the resized image, and `flip`, the resized image
mirrored left to right. Padding comes after that, when a batch is normalised.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtpd.detectors.runtime import prepare
from mtpd.geometry import Geometry, Size

View = Literal['plain', 'flip']
_META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


@dataclass(frozen=True)
class Instance:
    """One annotated object, in px of the original image."""

    box: tuple[float, float, float, float]  # absolute xyxy
    label: int  # class index, 0-based
    ignore: bool = False  # a crowd region, which is neither object nor background
    segmentation: Any = None  # COCO polygons or run-length code


@dataclass(frozen=True)
class Sample:
    """One view of one image, ready to be batched."""

    image: Tensor  # uint8 or, if the geometry says so, float32 (3, h, w), BGR, resized, perhaps mirrored, not padded
    data_sample: Any  # mmdet's DetDataSample with the geometry and, for training, the instances
    image_id: int
    view: View

    @property
    def resized(self) -> Size:
        """Size of the image without padding."""
        return int(self.image.shape[1]), int(self.image.shape[2])

    def pin_memory(self) -> 'Sample':
        """The sample with its pixels where a GPU can fetch them by itself; torch's DataLoader looks for this method."""
        return replace(self, image=self.image.pin_memory())


def image_view(image: np.ndarray, *, geometry: Geometry, view: View) -> Tensor:
    """The pixels of a view, (3, h, w) BGR as in `Sample`, from a decoded image uint8 (H, W, 3) BGR."""
    pixels = _apply(_results(image), geometry=geometry, view=view)['img']
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def make_sample(
    image: np.ndarray,
    *,
    image_id: int,
    path: str,
    geometry: Geometry,
    view: View,
    instances: list[Instance] | None = None,
    with_masks: bool = False,
) -> Sample:
    """A view of an image, uint8 (H, W, 3) BGR, with its annotations (None for inference) moved along."""
    results = _results(image) | {'img_id': image_id, 'img_path': path}
    if instances is not None:
        results['instances'] = [
            {'bbox': list(one.box), 'bbox_label': one.label, 'ignore_flag': int(one.ignore), 'mask': _mask(one)}
            for one in instances
        ]
        results = _transform('LoadAnnotations', with_bbox=True, with_mask=with_masks)(results)
    results = _apply(results, geometry=geometry, view=view)
    packed = _transform('PackDetInputs', meta_keys=_META_KEYS)(results)
    return Sample(image=packed['inputs'], data_sample=packed['data_samples'], image_id=image_id, view=view)


def _results(image: np.ndarray) -> dict[str, Any]:
    return {'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}


def _apply(results: dict[str, Any], *, geometry: Geometry, view: View) -> dict[str, Any]:
    if geometry.float_pixels:
        results['img'] = results['img'].astype(np.float32)
    resize = _transform(
        'FixScaleResize' if geometry.rounds_down else 'Resize',
        scale=geometry.scale,
        keep_ratio=geometry.keep_ratio,
        backend=geometry.backend,
        interpolation=geometry.interpolation,
    )
    results = resize(results)
    return _transform('RandomFlip', prob=1.0)(results) if view == 'flip' else results


@lru_cache(maxsize=16)
def _transform(name: str, **options: Any) -> Any:
    """One of mmdet's transforms."""
    prepare()
    from mmdet.datasets import transforms

    return getattr(transforms, name)(**options)


def _mask(instance: Instance) -> Any:
    # mmdet requires a polygon for every instance; a box without one is its own outline.
    if instance.segmentation is not None:
        return instance.segmentation
    x1, y1, x2, y2 = instance.box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]
