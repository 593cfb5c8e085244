"""Photometric augmentation of what the student sees: it moves no pixel, so a teacher's maps of the image still fit."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mtpd.detectors.samples import Sample
from mtpd_train.settings.stage_settings import PhotometricSettings


def distorted(samples: Sequence[Sample], options: PhotometricSettings, *, seed: Sequence[int]) -> list[Sample]:
    """The samples, uint8 or floats from 0 to 255, with their colours moved; the given ones stay as they are.

    What is drawn for an image follows from `seed`, of the epoch, and its id: neither a resumed run nor the number of
    processes that read images changes it. The options are those of SSD's `RandomPhotometricDistort`.
    """
    return [replace(one, image=_distorted(one.image, options, seed=(*seed, one.image_id))) for one in samples]


def _distorted(image: Tensor, options: PhotometricSettings, *, seed: Sequence[int]) -> Tensor:
    # Seeds are not negative, and image ids may be.
    generator = np.random.default_rng([one % 2**64 for one in seed])
    ranges = (options.brightness, options.contrast, options.saturation, options.hue)
    brightness, contrast, saturation, hue = (float(value) for value in generator.uniform(-1, 1, 4) * ranges)
    is_brighter, is_contrasted, is_saturated, is_shifted = (generator.random(4) < options.probability).tolist()
    contrast_first = bool(generator.random() < 0.5)
    pixels = image.flip(0)  # The channels are BGR, torchvision's functions take RGB.
    if pixels.is_floating_point():
        pixels = pixels / 255  # They take floats from 0 to 1.
    if is_brighter:
        pixels = F.adjust_brightness(pixels, 1 + brightness)
    if is_contrasted and contrast_first:
        pixels = F.adjust_contrast(pixels, 1 + contrast)
    if is_saturated:
        pixels = F.adjust_saturation(pixels, 1 + saturation)
    if is_shifted:
        pixels = F.adjust_hue(pixels, hue)
    if is_contrasted and not contrast_first:
        pixels = F.adjust_contrast(pixels, 1 + contrast)
    return (pixels * 255 if pixels.is_floating_point() else pixels).flip(0)
