"""The graph that is exported: from uint8 images to detections.

N images, H W px of the batch, D detections of an image.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mtpd.detectors.exportable import Exportable
from mtpd.detectors.preprocessing import Normalisation, Preprocessing, pads_pixels
from mtpd.geometry import Geometry, Size
from mtpd.heads.postprocessing import cleared

# Names of inputs and outputs in a file.
IMAGES, SIZES = 'images', 'sizes'
BOXES, SCORES, LABELS, MASKS = 'boxes', 'scores', 'labels', 'masks'


class Program(nn.Module):
    """Images to detections.

    Args of its call:
        images: uint8 (N, H, W, 3), RGB, resized; what is right of and below an image in the batch is ignored.
        sizes: int64 (N, 2), the height and width of each image, px.

    Returns:
        boxes float32 (N, D, 4), absolute xyxy in px of `images`; scores float32 (N, D), the best first; labels int64
        (N, D), class indices, 0-based; for detectors with masks, masks float32 (N, D, h, w): how probable each cell of
        the box is the object's. Rows beyond what was found have score 0 and label -1.
    """

    input_names: ClassVar[Sequence[str]] = (IMAGES, SIZES)

    def __init__(self, network: Exportable, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing

    @property
    def output_names(self) -> list[str]:
        """Those of its results."""
        return [BOXES, SCORES, LABELS, *([MASKS] if self.network.paste else [])]

    def tracing(self) -> AbstractContextManager[None]:
        """See `Exportable`."""
        return self.network.tracing()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        geometry, normalisation = self.preprocessing.geometry, self.preprocessing.normalisation
        inputs = _normalised(images, normalisation)
        (height, width), (padded_height, padded_width) = inputs.shape[2:], _padded(inputs.shape[2:], geometry)
        inputs = pad(inputs, (0, padded_width - width, 0, padded_height - height))
        rows, columns = (torch.arange(side, device=images.device) for side in inputs.shape[2:])
        is_image = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
        inputs = torch.where(is_image[:, None], inputs, _channels(normalisation.padding, images.device))
        # Where pixels are padded, mmdet counts the padding as image.
        limits = _padded_sizes(sizes, geometry) if pads_pixels(self.preprocessing) else sizes
        found, masks = self.network(inputs, limits)
        return (*cleared(found), *([] if masks is None else [masks]))


class RawProgram(nn.Module):
    """Normalised and padded images, float32 (N, 3, H, W), to the outputs of the heads, float32."""

    input_names: ClassVar[Sequence[str]] = (IMAGES,)

    def __init__(self, network: Exportable, output_names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.output_names = list(output_names)

    def tracing(self) -> AbstractContextManager[None]:
        """See `Exportable`."""
        return self.network.tracing()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """In the order of the names."""
        found = self.network.raw(images)
        return tuple(found[name] for name in self.output_names)


def _normalised(images: Tensor, normalisation: Normalisation) -> Tensor:
    """(N, 3, H, W) of uint8 (N, H, W, 3) RGB."""
    ordered = images if normalisation.to_rgb else images.flip(-1)
    values = ordered.permute(0, 3, 1, 2).float()
    mean, std = (_channels(one, images.device) for one in (normalisation.mean, normalisation.std))
    return (values - mean) / std


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


def _padded(size: Sequence[int], geometry: Geometry) -> Size:
    """The size of a batch of images whose largest sides are `size`, as `Geometry.padded` has it."""
    height: Any = size[0]
    width: Any = size[1]
    if geometry.pad_square:
        height = width = torch.sym_max(height, width)
    if geometry.pad_size is not None:
        height, width = torch.sym_max(height, geometry.pad_size[0]), torch.sym_max(width, geometry.pad_size[1])
    divisor = geometry.pad_divisor
    return (height + divisor - 1) // divisor * divisor, (width + divisor - 1) // divisor * divisor


def _padded_sizes(sizes: Tensor, geometry: Geometry) -> Tensor:
    """The same of each image (N, 2)."""
    if geometry.pad_square:
        sizes = sizes.amax(dim=1, keepdim=True).expand(-1, 2)
    if geometry.pad_size is not None:
        sizes = sizes.maximum(torch.tensor(geometry.pad_size, device=sizes.device))
    divisor = geometry.pad_divisor
    return (sizes + divisor - 1) // divisor * divisor
