"""Inputs that are normalised, resized and padded already, in the place of torchvision's own transform of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtpd.geometry import Size


@dataclass(frozen=True)
class ReadyImages:
    """What a detector with a `ReadyTransform` is called with: a batch, and the sizes of its images without padding."""

    batch: Tensor  # (B, 3, H, W), normalised
    sizes: Sequence[Size]

    def __iter__(self) -> Iterator[Tensor]:
        """The images without padding, of which torchvision asks the sizes."""
        for image, (height, width) in zip(self.batch, self.sizes, strict=True):
            yield image[:, :height, :width]


class ReadyTransform(nn.Module):
    """Replaces torchvision's `GeneralizedRCNNTransform`; what the detector finds stays in px of its input.

    It has no tensors, so that a detector's state is that of torchvision's own.
    """

    def forward(self, images: ReadyImages, targets: Any = None) -> tuple[Any, Any]:
        """The images as torchvision's heads take them, and the targets as they are."""
        from torchvision.models.detection.image_list import ImageList

        return ImageList(images.batch, list(images.sizes)), targets

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """What was found, as it is."""
        return result
