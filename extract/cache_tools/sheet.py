"""Composing a contact sheet: rows of panels with captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtpd.cache.map_images import Picture

PANEL_HEIGHT = 224
GAP, CAPTION_HEIGHT, FONT_SIZE = 8, 20, 13
BACKGROUND, INK, OUTLINE = (255, 255, 255), (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """A picture with a line of text above it.

    Attributes:
        caption: the line; it may run over the panels to the right where these are empty.
        picture: (H, W, 3) RGB, or None for an empty place.
        valid: share of the height and of the width that is image and not padding; outlined.
    """

    caption: str
    picture: Picture | None = None
    valid: tuple[float, float] = (1.0, 1.0)


def draw_sheet(rows: Sequence[Sequence[Panel]], *, title: Sequence[str], aspect: float) -> Image.Image:
    """Draws rows of panels below a few lines of text.

    Args:
        rows: the panels.
        title: the lines above them.
        aspect: width of a panel over its height.
    """
    width, height = round(PANEL_HEIGHT * aspect), PANEL_HEIGHT
    cell_width, cell_height = width + GAP, height + CAPTION_HEIGHT + GAP
    font = ImageFont.load_default(FONT_SIZE)
    title_width = max(int(font.getlength(line)) for line in title)
    top = GAP + CAPTION_HEIGHT * len(title) + GAP
    size = (max(GAP + cell_width * max(map(len, rows)), title_width + 2 * GAP), top + cell_height * len(rows))
    sheet = Image.new('RGB', size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        draw.text((GAP, GAP + CAPTION_HEIGHT * number), line, INK, font)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            left, above = GAP + column * cell_width, top + row * cell_height
            draw.text((left, above + 2), panel.caption, INK, font)
            if panel.picture is None:
                continue
            above += CAPTION_HEIGHT
            sheet.paste(_scaled(panel.picture, (width, height)), (left, above))
            if min(panel.valid) < 1:
                down, right = (round(share * side) for share, side in zip(panel.valid, (height, width), strict=True))
                draw.rectangle((left, above, left + right - 1, above + down - 1), outline=OUTLINE)
    return sheet


def _scaled(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """Small pictures keep their cells visible; large ones are averaged."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    is_enlarged = image.width <= size[0]
    return image.resize(size, Image.Resampling.NEAREST if is_enlarged else Image.Resampling.BOX)
