"""Feature maps and their errors as pictures: C channels become colours. Letters: C channels, H W grid of a level."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps

Picture = npt.NDArray[np.uint8]

# Outliers must not take the contrast of all the rest.
LOW_PERCENTILE, HIGH_PERCENTILE = 1, 99
# Relative errors are shown on a logarithmic scale between these.
LEAST_ERROR, MOST_ERROR = 1e-3, 1.0


def principal_colours(maps: Sequence[Tensor], *, fitted_to: Sequence[Tensor]) -> list[Picture]:
    """The first three principal components of the channels as red, green and blue.

    These show the most besides the magnitude of the features: outlines and objects, and different objects differently.
    The maps (C, H, W) share components and scale, so that equal colours mean equal features; `fitted_to` (C, h, w), the
    maps without their padding, is what these are made for. Returns (H, W, 3) RGB for each map.
    """
    cells = torch.cat([one.flatten(1) for one in fitted_to], dim=1)
    mean = cells.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh((cells - mean) @ (cells - mean).T)
    # Ascending order. The sign of a component is free, so its largest weight is made positive.
    basis = vectors[:, -3:].flip(1)
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    basis = basis[:, torch.arange(3).clamp(max=basis.shape[1] - 1)]
    low, high = np.percentile((basis.T @ (cells - mean)).numpy(), [LOW_PERCENTILE, HIGH_PERCENTILE], axis=1)
    pictures = []
    for one in maps:
        components = torch.einsum('ck,chw->hwk', basis, one - mean[..., None]).numpy()
        position = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
        pictures.append((position * 255).round().astype(np.uint8))
    return pictures


def spread_error(encoded: EncodedMaps) -> Tensor:
    """The root of the squared error of each cell (H, W) of an image, as far as it can be told without the teacher.

    Rounding to steps of size d gives an error of variance d**2 / 12. That says how the error is spread; how large it is
    on the whole was measured when the map was stored.
    """
    if encoded.scale is None:
        values = encoded.codes[0].float()
        # Half precision has 11 significant bits.
        step = torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent - 11)
    else:
        step = encoded.scale[0, 0, :, None, None].float().expand(encoded.shape[1:])
    expected = (step.square() / 12).sum(0)
    assert encoded.error is not None
    energy = encoded.values().square().sum()
    return (expected * (encoded.error * energy / expected.sum().clamp(min=1e-30))).sqrt()


def error_colours(relative_error: Tensor) -> Picture:
    """Errors (H, W) as (H, W, 3) RGB, dark to bright on a logarithmic scale."""
    limited = relative_error.clamp(LEAST_ERROR, MOST_ERROR).numpy()
    position = np.log(limited / LEAST_ERROR) / np.log(MOST_ERROR / LEAST_ERROR)
    coloured = cv2.applyColorMap((position * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(coloured[..., ::-1]).astype(np.uint8, copy=False)


def magnitude(maps: Tensor) -> Tensor:
    """The norm over the channels of each cell, (H, W)."""
    return maps.pow(2).sum(0).sqrt()
