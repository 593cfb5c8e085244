"""Everything between a decoded image and a network input, as values, and the normalisation itself.

Inputs are padded in pixels before the normalisation, or with one number after it: mmdet has both ways. Its data
preprocessor pads normalised inputs to a divisor, with one number for all channels. Its `Pad` step fills in whole pixel
values, and from then on counts the padding as image: boxes are clipped to the padded size. What a student is trained
and evaluated on must be one of the two, or mmdet could not run it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtpd.geometry import Geometry, Size

RGB = tuple[float, float, float]

# What levels are measured on where the input has no fixed size: sides that differ, with few cells on deep levels.
PROBE_SIZE: Size = (256, 320)


def rgb(values: Iterable[float]) -> RGB:
    """Three numbers as floats."""
    first, second, third = map(float, values)
    return first, second, third


@dataclass(frozen=True)
class Normalisation:
    """How pixel values 0..255 become network inputs, per channel in the network's order."""

    mean: RGB = (0.0, 0.0, 0.0)
    std: RGB = (1.0, 1.0, 1.0)
    to_rgb: bool = False  # whether the channels are reversed; images are decoded as BGR
    padding: RGB = (0.0, 0.0, 0.0)  # value of padded pixels, after the normalisation

    def of_pixel(self, bgr: Sequence[float]) -> RGB:
        """The values of one pixel 0..255, in BGR order, after the normalisation."""
        ordered = bgr[::-1] if self.to_rgb else bgr
        return rgb((v - m) / s for v, m, s in zip(ordered, self.mean, self.std, strict=True))


@dataclass(frozen=True)
class Preprocessing:
    """Everything between a decoded image and a network input."""

    geometry: Geometry
    normalisation: Normalisation


def moved(
    own: Preprocessing, geometry: Geometry | None, *, scale: tuple[int, int] | None, name: str
) -> tuple[Preprocessing, tuple[str, ...]]:
    """A detector's own preprocessing at another geometry or scale, and a line for what of its resize is not used."""
    if geometry is None:
        changed = own.geometry if scale is None else replace(own.geometry, scale=scale)
        return replace(own, geometry=changed), ()
    return replace(own, geometry=geometry), resize_notes(own.geometry, geometry, name=name)


def resize_notes(own: Geometry, given: Geometry, *, name: str) -> tuple[str, ...]:
    """A line that says how another geometry resizes, where that is not the detector's own way."""
    ways = (
        [f'{one.interpolation} by {one.backend}', 'down' if one.rounds_down else 'to the nearest px',
         'float32' if one.float_pixels else 'uint8']
        for one in (own, given)
    )  # fmt: skip
    labels = ('interpolation', 'sizes rounded', 'pixels')
    parts = [
        f'{label} {theirs}, not {ours}' for label, ours, theirs in zip(labels, *ways, strict=True) if ours != theirs
    ]
    return (f'{name}: images are not resized in its own way ({"; ".join(parts)})',) if parts else ()


def probe_size(geometry: Geometry) -> Size:
    """An input size (height, width) px to measure a network's levels on: its own where it works at one size only."""
    if geometry.keep_ratio and geometry.pad_size is None:
        height, width = (-(-side // geometry.pad_divisor) * geometry.pad_divisor for side in PROBE_SIZE)
        return (width, width) if geometry.pad_square else (height, width)
    return geometry.padded(PROBE_SIZE)


def normalise(images: Sequence[Tensor], *, padded: Size, normalisation: Normalisation) -> Tensor:
    """Normalised images, each at the top left of a float32 batch (B, 3, *padded).

    The images are (3, h, w), uint8 or float32, 0..255, BGR. The batch is on their device, and pixel for pixel what
    mmdet's data preprocessor gives.
    """
    device = images[0].device
    mean, std, padding = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (normalisation.mean, normalisation.std, normalisation.padding)
    )
    batch = padding.expand(len(images), 3, *padded).clone()
    for slot, image in zip(batch, images, strict=True):
        ordered = image.flip(0) if normalisation.to_rgb else image
        slot[:, : image.shape[1], : image.shape[2]] = (ordered.float() - mean) / std
    return batch


def pads_pixels(preprocessing: Preprocessing) -> bool:
    """Whether mmdet's `Pad` step is needed: for a fixed size, a square, or a value for each channel."""
    geometry = preprocessing.geometry
    return geometry.pad_size is not None or geometry.pad_square or len(set(preprocessing.normalisation.padding)) > 1


def padding_pixel(normalisation: Normalisation) -> tuple[int, int, int]:
    """The pixel 0..255, in BGR order, that comes nearest to the padding after the normalisation."""
    values = [
        min(max(round(padding * std + mean), 0), 255)
        for padding, std, mean in zip(normalisation.padding, normalisation.std, normalisation.mean, strict=True)
    ]
    first, second, third = reversed(values) if normalisation.to_rgb else values
    return first, second, third


def at_geometry(own: Preprocessing, geometry: Geometry) -> Preprocessing:
    """A detector's own preprocessing moved to another geometry, with padding that mmdet can do too."""
    moved = replace(own, geometry=geometry)
    if not pads_pixels(moved):
        return moved
    padding = own.normalisation.of_pixel(padding_pixel(own.normalisation))
    return replace(moved, normalisation=replace(own.normalisation, padding=padding))
