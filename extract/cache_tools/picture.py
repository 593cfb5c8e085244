"""`mtpd-cache picture`: a contact sheet of what a cache holds of one image."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader, map_images
from mtpd.cache.format.manifest import ViewName
from mtpd.cache.map_images import LEAST_ERROR, MOST_ERROR, Picture
from mtpd.data.coco import image_path, read_annotations
from mtpd.data.images import read_image
from mtpd.errors import InputError, UnavailableError
from mtpd.geometry import Level
from mtpd.system.console import say
from mtpd.system.files import write_atomically
from mtpd_extract.cache_tools.sheet import Panel, draw_sheet

PADDING_GREY = 128


def run(options: Mapping[str, Any]) -> None:
    """Draws the sheet and prints its path."""
    cache = mtpd.cache.open(options['cache'])
    out: Path = options['out']
    if out.suffix.lower() != '.png':
        raise InputError(f'--out {out}: the sheet is a PNG file; use a name that ends in .png')
    image_id = cache.image_ids[0] if options['image'] is None else options['image']
    views: tuple[ViewName, ...] = cache.views if options['view'] is None else (options['view'],)
    rows = [_level_row(cache, image_id, level, views) for level in cache.levels]
    if options['images'] is not None:
        file = _image_file(image_id, options['images'], options['annotations'])
        rows.insert(0, _input_row(cache, image_id, file, views))
    height, width = cache.sizes(image_id).padded
    sheet = draw_sheet(rows, title=_title(cache, image_id), aspect=width / height)
    content = io.BytesIO()
    sheet.save(content, format='PNG')
    try:
        write_atomically(out, content.getvalue())
    except OSError as error:
        raise UnavailableError(f'--out {out}: cannot be written ({error.strerror}); choose another path') from error
    say(f'{out}: image {image_id}, {len(cache.levels)} levels, {sheet.width} x {sheet.height} px')


def _title(cache: CacheReader, image_id: int) -> list[str]:
    description = cache.manifest.description
    original, resized, padded = (f'{width} x {height}' for height, width in cache.sizes(image_id))
    return [
        f'{cache.path}: {description.codec}, teacher {description.provenance.get("teacher", "unknown")}',
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
        panels.append(Panel(f'mirrored: {_relative(difference, size):.1e}, cosine {cosine:.3f}', picture, valid))
    return panels


def _relative(error: Tensor, size: Tensor) -> float:
    """The squared error of a whole map, relative to its energy."""
    return float(error.pow(2).sum() / size.pow(2).sum().clamp(min=1e-30))


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
        return image_path(folder, names[image_id])
    file = folder / f'{image_id:012d}.jpg'
    if not file.is_file():
        raise InputError(
            f'--images {folder}: has no {file.name}; give --annotations FILE with the file name of image {image_id}'
        )
    return file
