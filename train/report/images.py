"""Pictures in a page: photographs with boxes and other pixels, as data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtpd.cache.map_images import Picture
from mtpd.data.annotation_table import CocoImage
from mtpd.data.images import read_image

# Of the longer side in px; small images are enlarged, so that names of classes can be read on them.
PHOTO_SIZE = 420
MAX_ENLARGEMENT = 4
FONT_SIZE, LINE_WIDTH = 16, 3
# With more boxes than this, letters and lines are smaller, and small boxes go without a label.
MANY_BOXES, SMALL_FONT_SIZE, SMALL_LINE_WIDTH, LABELLED_SIDE = 8, 12, 2, 32
DASH = 6.0
JPEG_QUALITY = 82

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class DrawnBox:
    """A box on a photograph, with a label at its upper left corner."""

    box: Box  # xyxy in px of the photograph
    label: str
    colour: str  # of line and label
    is_dashed: bool = False


def read_pixels(image: CocoImage, folder: Path) -> Picture:
    """The pixels (H, W, 3) BGR of an image in a folder."""
    return read_image(folder / image.file_name, size=(image.height, image.width))


def photo_uri(pixels: Picture, boxes: Sequence[DrawnBox]) -> str:
    """A photograph (H, W, 3) BGR with boxes on it, as a JPEG in a data URI."""
    height, width = pixels.shape[:2]
    factor = min(PHOTO_SIZE / max(height, width), MAX_ENLARGEMENT)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])).resize(size, Image.Resampling.BICUBIC)
    is_crowded = len(boxes) > MANY_BOXES
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(SMALL_FONT_SIZE if is_crowded else FONT_SIZE)
    line_width = SMALL_LINE_WIDTH if is_crowded else LINE_WIDTH
    for one in boxes:
        x1, y1, x2, y2 = (value * factor for value in one.box)
        _rectangle(draw, (x1, y1, x2, y2), one.colour, width=line_width, is_dashed=one.is_dashed)
    for one in boxes:  # above all lines
        longer_side = factor * max(one.box[2] - one.box[0], one.box[3] - one.box[1])
        if is_crowded and longer_side < LABELLED_SIDE:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), one.label, font=font)
        x = min(max(one.box[0] * factor, 0), max(size[0] - (right - left) - 4, 0))
        y = min(max(one.box[1] * factor - (bottom - top) - 4, 0), max(size[1] - (bottom - top) - 4, 0))
        draw.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=one.colour)
        draw.text((x + 2 - left, y + 2 - top), one.label, 'white', font)
    return _image_uri(image, 'jpeg', quality=JPEG_QUALITY)


def map_uri(picture: Picture) -> str:
    """A small picture (H, W, 3) RGB, pixel for pixel, as a PNG in a data URI; the page enlarges it."""
    return _image_uri(Image.fromarray(np.ascontiguousarray(picture)), 'png', optimize=True)


def _image_uri(image: Image.Image, kind: str, **options: Any) -> str:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return data_uri(content.getvalue(), f'image/{kind}')


def data_uri(content: bytes, kind: str) -> str:
    """A file inside an address."""
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def _rectangle(draw: ImageDraw.ImageDraw, box: Box, colour: str, *, width: int, is_dashed: bool) -> None:
    x1, y1, x2, y2 = box
    if not is_dashed:
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)
        return
    for start, end in pairwise(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])):
        length = max(float(np.abs(end - start).sum()), 1.0)
        for place in np.arange(0, length, 2 * DASH):
            points = [start + min(one / length, 1.0) * (end - start) for one in (place, place + DASH)]
            draw.line(np.concatenate(points).tolist(), fill=colour, width=width)
