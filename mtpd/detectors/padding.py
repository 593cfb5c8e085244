"""How inputs are padded: in pixels before the normalisation, or with one number after it.

mmdet has both ways. Its data preprocessor pads normalised inputs to a divisor, with one number for all channels. Its
`Pad` step fills in whole pixel values, and from then on counts the padding as image: boxes are clipped to the padded
size. What a student is trained and evaluated on must be one of the two, or mmdet could not run it.
"""

from dataclasses import replace

from mtpd.detectors.preprocessing import Normalisation, Preprocessing
from mtpd.geometry import Geometry

BGR = tuple[int, int, int]


def pads_pixels(preprocessing: Preprocessing) -> bool:
    """Whether mmdet's `Pad` step is needed: for a fixed size, a square, or a value for each channel."""
    geometry = preprocessing.geometry
    return geometry.pad_size is not None or geometry.pad_square or len(set(preprocessing.normalisation.padding)) > 1


def padding_pixel(normalisation: Normalisation) -> BGR:
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
    normalisation = own.normalisation
    pixel = padding_pixel(normalisation)
    ordered = reversed(pixel) if normalisation.to_rgb else pixel
    first, second, third = (
        (value - mean) / std for value, mean, std in zip(ordered, normalisation.mean, normalisation.std, strict=True)
    )
    return replace(moved, normalisation=replace(normalisation, padding=(first, second, third)))
