"""Pixels of committed images, decoded and resized, are the same with every version of OpenCV, Pillow and libjpeg.

Caches and runs of one version are then continued by another. Equal from OpenCV 4.13 and Pillow 11 to OpenCV 5.0 and
Pillow 13; where a version differs, pyproject.toml must exclude it.
"""

from hashlib import sha256
from pathlib import Path

import pytest

from mtpd.data.images import read_image
from mtpd.detectors.samples import image_view
from mtpd.geometry import Geometry

# SHA-256 of the pixels as read, and of the flipped view at scale 96x64.
HASHES = {
    'baseline_420.jpg': ('bf7d8b4d64741e43', '7ee4392be068d7e3'),
    'cmyk.jpg': ('2e18f25c32629a78', '3564e69400cb608b'),
    'grey.jpg': ('7bb66b8392c51cbe', 'b4fa179eb40f9deb'),
    'grey16.png': ('39872413f88dfb78', 'b9b502cc16677de3'),
    'low_422.jpg': ('754250b590f03a96', 'e7335e772a69f16a'),
    'palette.png': ('acada2d511b4f4f7', '27019c993c20f01d'),
    'progressive_444.jpg': ('cc52f7cd9d37bf5c', '155aee6ef3d13afa'),
    'rgb.png': ('4ec3c7a135d1e858', '63de953a57087e02'),
    'rotated.jpg': ('7edcc49a9520d034', '7ac19dd0173c0e5b'),
}


@pytest.mark.parametrize('name', HASHES)
def test_pixels(name: str) -> None:
    image = read_image(Path(__file__).parent / 'pixels' / name)
    view = image_view(image, geometry=Geometry((96, 64)), view='flip').numpy()
    assert tuple(sha256(one.tobytes()).hexdigest()[:16] for one in (image, view)) == HASHES[name]
