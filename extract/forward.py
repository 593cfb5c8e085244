"""Images to the teacher's maps: the part that extraction, its calibration and its checks share."""

from collections.abc import Sequence

from torch import Tensor

from mtpd.data.images import read_image
from mtpd.detectors.transforms import View, image_view
from mtpd.geometry import Size
from mtpd_extract.build import Extraction


def load_images(extraction: Extraction, images: Sequence[tuple[int, Size]]) -> list[Tensor]:
    """Resized images uint8 (3, h, w), BGR.

    Args:
        extraction: knows the files and the geometry.
        images: id and original (height, width) in px of each.
    """
    geometry = extraction.teacher.preprocessing.geometry
    return [
        image_view(read_image(extraction.paths[image_id], size=size), geometry=geometry, view='plain')
        for image_id, size in images
    ]


def view_maps(extraction: Extraction, pixels: Sequence[Tensor], *, padded: Size, view: View) -> dict[str, Tensor]:
    """Level name -> maps (B, C, H, W) on the device, of one view of resized images uint8 (3, h, w)."""
    moved = [image.to(extraction.device, non_blocking=True) for image in pixels]
    if view == 'flip':
        moved = [image.flip(-1) for image in moved]
    return extraction.teacher.maps_of(moved, padded=padded)
