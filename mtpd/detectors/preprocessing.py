"""What a detector's own config says about its input: geometry and normalisation.

Nothing is assumed: RetinaNet subtracts ImageNet means, swaps to RGB and pads with zeros after that; YOLOX takes raw BGR
values and pads with 114 before. Both are read from the config's test pipeline and data preprocessor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtpd.errors import InputError
from mtpd.geometry import Geometry, Size

RGB = tuple[float, float, float]

# What levels are measured on where the input has no fixed size: sides that differ, with few cells on deep levels.
PROBE_SIZE: Size = (256, 320)

# Test-pipeline steps that move no pixel.
_NEUTRAL = frozenset({'LoadImageFromFile', 'LoadAnnotations', 'LoadPanopticAnnotations', 'Normalize', 'PackDetInputs'})
_RESIZES = frozenset({'Resize', 'FixScaleResize'})


@dataclass(frozen=True)
class Normalisation:
    """How pixel values become network inputs.

    Attributes:
        mean, std: per channel in the network's channel order, for pixel values 0..255.
        to_rgb: whether the network takes RGB; images are decoded as BGR.
        padding: value of padded pixels per channel, after the normalisation.
    """

    mean: RGB = (0.0, 0.0, 0.0)
    std: RGB = (1.0, 1.0, 1.0)
    to_rgb: bool = False
    padding: RGB = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Preprocessing:
    """Everything between a decoded image and a network input."""

    geometry: Geometry
    normalisation: Normalisation


def read_preprocessing(config: Any, *, scale: tuple[int, int] | None = None) -> Preprocessing:
    """Reads a detector's preprocessing from its mmdet config.

    Args:
        config: an mmengine Config.
        scale: replaces the config's resize scale (and a fixed pad size with it); None keeps it.

    Raises:
        InputError: the config's test pipeline does something that cannot be reproduced from a cache.
    """
    pipeline = _test_pipeline(config)
    preprocessor = _data_preprocessor(config)
    scale_found, keep_ratio = _resize(pipeline, scale)
    pad = next((step for step in pipeline if step['type'] == 'Pad'), None)
    pad_size, divisor = _padding(pad, preprocessor, scale=scale, resize_scale=scale_found)
    return Preprocessing(
        geometry=Geometry(scale_found, keep_ratio, divisor, pad_size),
        normalisation=_normalisation(pipeline, preprocessor, pad),
    )


def probe_size(geometry: Geometry) -> Size:
    """An input size (height, width) px to measure a network's levels on: its own where it works at one size only."""
    if geometry.keep_ratio and geometry.pad_size is None:
        return PROBE_SIZE
    return geometry.padded(PROBE_SIZE)


def normalise(images: Sequence[Tensor], *, padded: Size, normalisation: Normalisation) -> Tensor:
    """Normalises images and puts each at the top left of one padded batch.

    Args:
        images: uint8 (3, h, w) in BGR order, of sizes up to `padded`.
        padded: (height, width) of the batch, px.
        normalisation: the network's.

    Returns:
        float32 (B, 3, height, width) on the images' device, pixel for pixel what mmdet's data preprocessor gives.
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


def _test_pipeline(config: Any) -> list[Mapping[str, Any]]:
    dataset = config.get('test_dataloader', {}).get('dataset', {})
    while dataset and 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    pipeline = dataset.get('pipeline') or config.get('test_pipeline')
    if not pipeline:
        raise InputError(
            f'{config.filename}: has no test_dataloader or test_pipeline to read the resize and padding from'
        )
    for step in pipeline:
        if step['type'] not in _NEUTRAL | _RESIZES | {'Pad'}:
            raise InputError(
                f'{config.filename}: its test pipeline has the step {step["type"]}, which a cache cannot reproduce; '
                'copy the config and replace it by Resize and Pad'
            )
    return list(pipeline)


def _data_preprocessor(config: Any) -> Mapping[str, Any]:
    found: Any = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    # Semi-supervised and tracking models wrap the detector's own preprocessor.
    inner = found.get('data_preprocessor')
    result: Mapping[str, Any] = inner if inner is not None else found
    return result


def _resize(pipeline: Sequence[Mapping[str, Any]], scale: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    step = next((step for step in pipeline if step['type'] in _RESIZES), None)
    keep_ratio = bool(step.get('keep_ratio', False)) if step else True
    found = scale or (tuple(step['scale']) if step and step.get('scale') else None)
    if found is None or len(found) != 2:
        raise InputError(
            'the test pipeline has no Resize with a scale: give one (--scale, or data.geometry in a stage file)'
        )
    return (int(found[0]), int(found[1])), keep_ratio


def _padding(
    pad: Mapping[str, Any] | None,
    preprocessor: Mapping[str, Any],
    *,
    scale: tuple[int, int] | None,
    resize_scale: tuple[int, int],
) -> tuple[Size | None, int]:
    """Fixed padded (height, width) if any, and the divisor of the padded sides."""
    divisor = int(preprocessor.get('pad_size_divisor', 1))
    if pad is None:
        return None, divisor
    if pad.get('size_divisor'):
        return None, max(divisor, int(pad['size_divisor']))
    if pad.get('pad_to_square'):
        return (max(resize_scale),) * 2, divisor
    if scale is not None:
        return (scale[1], scale[0]), divisor
    width, height = pad['size']
    return (int(height), int(width)), divisor


def _normalisation(
    pipeline: Sequence[Mapping[str, Any]], preprocessor: Mapping[str, Any], pad: Mapping[str, Any] | None
) -> Normalisation:
    step = next((step for step in pipeline if step['type'] == 'Normalize'), None)
    source = step if step is not None else preprocessor
    mean = _channels(source.get('mean') or 0.0)
    std = _channels(source.get('std') or 1.0)
    to_rgb = bool(step.get('to_rgb', True)) if step is not None else bool(preprocessor.get('bgr_to_rgb', False))
    padding = _channels(preprocessor.get('pad_value', 0))
    if pad is not None:
        raw = pad.get('pad_val', 0)
        values = _channels(raw.get('img', 0) if isinstance(raw, Mapping) else raw)
        # A Pad before the normalisation holds pixel values in BGR order.
        ordered = values[::-1] if to_rgb else values
        normalised = [(value - m) / s for value, m, s in zip(ordered, mean, std, strict=True)]
        before = step is None or list(pipeline).index(pad) < list(pipeline).index(step)
        padding = _channels(normalised) if before else values
    return Normalisation(mean=mean, std=std, to_rgb=to_rgb, padding=padding)


def _channels(values: Any) -> RGB:
    if isinstance(values, int | float):
        values = [values] * 3
    if len(values) != 3:
        raise InputError(f'normalisation constants {values}: expected three channels')
    first, second, third = (float(value) for value in values)
    return first, second, third
