"""`mtpd-cache picture`: a contact sheet of what a cache holds of one image."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader, map_images
from mtpd.cache.format.manifest import ViewName
from mtpd.cache.map_images import LEAST_ERROR, MOST_ERROR, Picture
from mtpd.data.coco import read_annotations
from mtpd.data.images import read_image
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.system.console import say
from mtpd.system.files import write_output

PADDING_GREY = 128
PANEL_HEIGHT = 224
GAP, CAPTION_HEIGHT, FONT_SIZE = 8, 20, 13
BACKGROUND, INK, OUTLINE = (255, 255, 255), (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3), RGB, or an empty place, with a line of text above it.

    The line may run over empty panels to the right. `valid` is the share of the height and of the width that is image
    and not padding; it is outlined.
    """

    caption: str
    picture: Picture | None = None
    valid: tuple[float, float] = (1.0, 1.0)


def run(
    cache: Path | str,
    out: Path,
    *,
    image: int | None,
    view: ViewName | None,
    images: Path | None,
    annotations: Path | None,
) -> None:
    reader = mtpd.cache.open(cache)
    require_png(out, option='--out')
    image_id = reader.image_ids[0] if image is None else image
    views = reader.views if view is None else (view,)
    rows = [_level_row(reader, image_id, level, views) for level in reader.levels]
    if images is not None:
        file = _image_file(image_id, images, annotations)
        rows.insert(0, _input_row(reader, image_id, file, views))
    height, width = reader.sizes(image_id).padded
    sheet = _draw_sheet(rows, title=_title(reader, image_id), aspect=width / height)
    content = io.BytesIO()
    sheet.save(content, format='PNG')
    write_output(out, content.getvalue(), option='--out')
    say(f'{out}: image {image_id}, {len(reader.levels)} levels, {sheet.width} x {sheet.height} px')


def require_png(out: Path, *, option: str) -> None:
    """Checks the name of a picture before anything is read."""
    if out.suffix.lower() != '.png':
        raise InputError(f'{option} {out}: the picture is a PNG file; use a name that ends in .png')


def _title(cache: CacheReader, image_id: int) -> list[str]:
    description = cache.manifest.description
    original, resized, padded = (f'{width} x {height}' for height, width in cache.sizes(image_id))
    return [
        f'{cache.name}: {description.codec}, teacher {description.provenance.get("teacher", "unknown")}',
        f'image {image_id}: {original} px, resized to {resized}, padded to {padded}; a white line marks the padding',
        'maps: first three principal components as red, green and blue, same colour scale for both views of a level',
        'errors: squared, relative to the energy, measured when the map was stored; mirrored: plain against flip',
        f'error maps: relative, per cell, log scale from {LEAST_ERROR:g} (black) to {MOST_ERROR:g} (bright)',
    ]


def _level_row(cache: CacheReader, image_id: int, level: Level, views: Sequence[ViewName]) -> list[Panel]:
    """A level's map and expected error in each view, and how far the mirrored plain map is from the flip view."""
    sizes = cache.sizes(image_id)
    rows, columns = level.grid(*sizes.resized)
    valid = (sizes.resized[0] / sizes.padded[0], sizes.resized[1] / sizes.padded[1])
    encoded = {view: cache.read_encoded(image_id, view, levels=[level.name])[level.name] for view in views}
    maps = {view: one.values()[0] for view, one in encoded.items()}
    inside = {view: one[:, :rows, :columns] for view, one in maps.items()}
    pictures = map_images.principal_colours(list(maps.values()), fitted_to=list(inside.values()))
    panels = []
    for view, picture in zip(views, pictures, strict=True):
        channels, height, width = maps[view].shape
        panels.append(Panel(f'{level.name} {view}: {channels} x {height} x {width}', picture, valid))
        error, size = map_images.spread_error(encoded[view]), map_images.magnitude(maps[view])
        panels.append(Panel(f'error {cache.errors(image_id, view)[level.name]:.1e}', _error(error, size), valid))
    if len(views) == 2:
        mirrored, flip = inside['plain'].flip(-1), inside['flip']
        difference, size = map_images.magnitude(mirrored - flip), map_images.magnitude(flip)
        cosine = torch.nn.functional.cosine_similarity(mirrored.flatten(), flip.flatten(), dim=0)
        picture = np.full_like(pictures[0], PADDING_GREY)
        picture[:rows, :columns] = _error(difference, size)
        relative = float(difference.pow(2).sum() / size.pow(2).sum().clamp(min=1e-30))
        panels.append(Panel(f'mirrored: {relative:.1e}, cosine {cosine:.3f}', picture, valid))
    return panels


def _error(error: Tensor, size: Tensor) -> Picture:
    return map_images.error_colours(error / size.clamp(min=1e-30))


def _input_row(cache: CacheReader, image_id: int, file: Path, views: Sequence[ViewName]) -> list[Panel]:
    """The network's input in each view, above the view's maps."""
    sizes = cache.sizes(image_id)
    image = read_image(file, size=sizes.original)
    resized = cv2.resize(image, sizes.resized[::-1], interpolation=cv2.INTER_LINEAR)[..., ::-1]
    panels = []
    for view in views:
        picture = np.full((*sizes.padded, 3), PADDING_GREY, dtype=np.uint8)
        picture[: sizes.resized[0], : sizes.resized[1]] = resized[:, ::-1] if view == 'flip' else resized
        panels += [Panel(f'{file.name}, {view}', picture), Panel('')]
    return panels


def _image_file(image_id: int, folder: Path, annotations: Path | None) -> Path:
    """The file of an image: its name comes from the annotations, or is the one that COCO would give it."""
    if annotations is not None:
        names = {image.id: image.file_name for image in read_annotations(annotations).images}
        if image_id not in names:
            raise InputError(
                f'--annotations {annotations}: lists no image {image_id}; give the annotation file of the extraction'
            )
        return folder / names[image_id]
    file = folder / f'{image_id:012d}.jpg'
    if not file.is_file():
        raise InputError(
            f'--images {folder}: has no {file.name}; give --annotations FILE with the file name of image {image_id}'
        )
    return file


def _draw_sheet(rows: Sequence[Sequence[Panel]], *, title: Sequence[str], aspect: float) -> Image.Image:
    """Draws rows of panels, whose width over height is `aspect`, below the lines of the title."""
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
            image = Image.fromarray(np.ascontiguousarray(panel.picture))
            # Small pictures keep their cells visible; large ones are averaged.
            resampling = Image.Resampling.NEAREST if image.width <= width else Image.Resampling.BOX
            sheet.paste(image.resize((width, height), resampling), (left, above))
            if min(panel.valid) < 1:
                down, right = (round(share * side) for share, side in zip(panel.valid, (height, width), strict=True))
                draw.rectangle((left, above, left + right - 1, above + down - 1), outline=OUTLINE)
    return sheet
